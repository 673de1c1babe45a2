"""Callbacks that watch a run: figures by epoch, topology updates, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from openwork.analysis import Memory, active_parameters, memory
from openwork.train.checkpoint import CheckpointError
from openwork.train.classifier import classifier
from openwork.train.data_efficiency import FIGURES, epoch_figures
from openwork.train.files import Table
from openwork.train.layer_history import LayerHistory
from openwork.train.plain import as_json, decode
from openwork.update import Change

EPOCH_COLUMNS = (
    "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "parameters", "step_ms",
)  # fmt: skip
SPARSE_COLUMNS = ("sparsity", "exploration_rate")
TOPOLOGY_COLUMNS = ("step", "layer", *Change._fields)


class Stopwatch(pl.Callback):
    """Seconds of every step, from the batch at hand to the end of the optimizer's step, and the most memory seen.

    Args:
        warmup: steps at the start of the process that are not counted; allocators and kernels settle in them.
    """

    def __init__(self, warmup: int = 10) -> None:
        self.warmup = warmup
        self.seconds: list[float] = []
        self.plain: list[float] = []
        self.memory: Memory | None = None
        self._seen = 0
        self._start = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop; the gradients of this step are still there to be counted."""
        seconds = time.perf_counter() - self._start
        self._seen += 1
        if self._seen > self.warmup:
            self.seconds.append(seconds)
            if not classifier(pl_module).topology_changed:
                self.plain.append(seconds)
        # By the run's steps, not this process's, and the first of equals: a resumed run counts what a whole one does.
        if self.memory is None or trainer.global_step <= 2 or batch_idx == 0:
            now = memory(classifier(pl_module).model, trainer.optimizers[0])
            if self.memory is None or now.trained > self.memory.trained:
                self.memory = now

    def state_dict(self) -> dict[str, Any]:
        """The most memory so far; times are those of one process."""
        return {"memory": None if self.memory is None else as_json(self.memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the most memory so far.

        Raises:
            CheckpointError: the state is damaged.
        """
        try:
            held = state_dict["memory"]
            self.memory = None if held is None else decode(Memory, held, "memory")
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's record of memory is damaged: {error}") from error

    @property
    def median(self) -> float | None:
        """Median seconds of a step without a topology update."""
        return statistics.median(self.plain) if self.plain else None

    @property
    def mean(self) -> float | None:
        """Mean seconds of all steps, topology updates included."""
        return statistics.fmean(self.seconds) if self.seconds else None


class History(pl.Callback):
    """Writes ``metrics.csv`` after every epoch and ``topology.csv`` at every topology update, and both to TensorBoard.

    Steps count from 0: an epoch's row has the number of steps done, an update's row the step in which it happened.

    Args:
        folder: the run's folder.
        watch: times the steps.
        layers: knows the sparse layers' totals, which have columns of their own; None for a dense training.
        data_efficient: whether examples are removed, which has columns of its own.
    """

    def __init__(
        self, folder: Path, watch: Stopwatch, layers: LayerHistory | None = None, data_efficient: bool = False
    ) -> None:
        sparse = () if layers is None else SPARSE_COLUMNS
        self.metrics = Table(folder / "metrics.csv", EPOCH_COLUMNS + sparse + (FIGURES if data_efficient else ()))
        self.topology = Table(folder / "topology.csv", TOPOLOGY_COLUMNS)
        self.watch = watch
        self.layers = layers

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rows that an interrupted run wrote after its checkpoint will be written again."""
        done = trainer.global_step
        self.metrics.keep(lambda row: int(row["step"]) <= done)
        self.topology.keep(lambda row: int(row["step"]) < done)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One row for every layer whose topology has just changed."""
        sparsity = classifier(pl_module).sparsity
        if sparsity is None or not classifier(pl_module).topology_changed:
            return
        changes, step = sparsity.last_update, sparsity.last_update_step
        self.topology.append([{"step": step, "layer": name, **change._asdict()} for name, change in changes.items()])
        for logger in trainer.loggers:
            masses = {f"evicted_mass/{name}": change.evicted_mass for name, change in changes.items()}
            logger.log_metrics({**totals(changes.values()), **masses}, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One row for the epoch."""
        module = classifier(pl_module)
        epoch_time = self.watch.plain[-int(trainer.num_training_batches) :]
        figures: dict[str, float] = {
            "learning_rate": module.rate,
            "train_loss": module.seen.mean_loss,
            "train_accuracy": module.seen.accuracy,
            "test_loss": module.tested.mean_loss,
            "test_accuracy": module.tested.accuracy,
            "parameters": active_parameters(module.model),
        }
        if self.layers is not None:
            figures |= self.layers.totals()
        if module.loader.selection is not None:
            figures |= epoch_figures(module.loader.selection, trainer.current_epoch)
        row: dict[str, object] = dict.fromkeys(self.metrics.columns, "")
        row |= {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **figures}
        row["step_ms"] = round(1e3 * statistics.median(epoch_time), 3) if epoch_time else ""
        self.metrics.append([row])
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)


def totals(changes: Iterable[Change]) -> dict[str, float]:
    """What an update did to all layers together."""
    listed = list(changes)
    return {name: float(sum(getattr(change, name) for change in listed)) for name in ("dropped", "grown", "evicted")}


class Bar(RichProgressBar):
    """Lightning's rich progress bar with the epoch's running loss and accuracy."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown at the right."""
        module = classifier(pl_module)
        shown: dict[str, int | str | float | dict[str, float]] = {"loss": f"{module.seen.mean_loss:.3f}"}
        if module.tested.count:
            shown["test accuracy"] = f"{module.tested.accuracy:.4f}"
        return shown


class EventFiles(TensorBoardLogger):
    """TensorBoard's event files alone; the settings are in ``config.yaml`` already."""

    def save(self) -> None:
        """Flush the events, without Lightning's own copy of the settings."""
        self.experiment.flush()
