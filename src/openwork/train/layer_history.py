"""Per-layer figures of every epoch: sparsity, active weights, and the share of weights that were ever active."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from openwork.analysis import Exploration
from openwork.sparsify import Sparsity
from openwork.train.checkpoint import CheckpointError
from openwork.train.classifier import classifier
from openwork.train.files import Table

LAYERS = "layers.csv"
LAYER_COLUMNS = ("epoch", "step", "layer", "weights", "active", "sparsity", "exploration_rate")


class LayerHistory(pl.Callback):
    """Writes ``layers.csv``, a row for every sparse layer at the start and after every epoch, and the same to TensorBoard.

    Args:
        folder: the run's folder.
        sparsity: its layers are watched.
        explore: keep count of the weights that were ever active; it takes one bit for every weight of the *dense* matrices,
            on the CPU and in every checkpoint.
    """

    def __init__(self, folder: Path, sparsity: Sparsity, explore: bool) -> None:
        self.table = Table(folder / LAYERS, LAYER_COLUMNS)
        self.sparsity = sparsity
        self.explored = Exploration(sparsity.layers) if explore else None

    def totals(self) -> dict[str, float]:
        """Sparsity and, where it is known, ``R_s`` over all sparse layers."""
        patterns = [module.pattern for module in self.sparsity.layers.values()]
        weights = sum(math.prod(pattern.shape) for pattern in patterns)
        sparsity = {"sparsity": 1.0 - sum(pattern.nnz for pattern in patterns) / max(1, weights)}
        return sparsity if self.explored is None else {**sparsity, "exploration_rate": self.explored.rate}

    def state_dict(self) -> dict[str, Any]:
        """What was ever active."""
        return {} if self.explored is None else {"explored": self.explored.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was ever active; the topologies of the checkpoint are in place already.

        Raises:
            CheckpointError: the state is damaged.
        """
        if self.explored is not None and "explored" in state_dict:
            try:
                self.explored.load_state_dict(state_dict["explored"])
            except ValueError as error:
                raise CheckpointError(f"the checkpoint's record of explored weights is damaged: {error}") from error

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint after which the exploration rate would be wrong.

        Raises:
            CheckpointError: it does not say what was ever active.
        """
        if self.explored is not None and "explored" not in checkpoint.get("callbacks", {}).get(self.state_key, {}):
            raise CheckpointError("the checkpoint does not say which weights were ever active, which exploration=true needs")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rows that an interrupted run wrote after its checkpoint will be written again."""
        done = trainer.global_step
        self.table.keep(lambda row: 0 < done >= int(row["step"]))
        if done == 0:
            self._record(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the topology if it has just changed: what is grown may be gone again by the end of the epoch."""
        if self.explored is not None and classifier(pl_module).topology_changed:
            self.explored.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A row for every layer."""
        self._record(trainer, trainer.current_epoch + 1)

    def _record(self, trainer: pl.Trainer, epoch: int) -> None:
        rates = {} if self.explored is None else self.explored.rates
        rows: list[dict[str, object]] = []
        shown = {f"exploration_rate/{name}": rate for name, rate in rates.items()}
        for name, module in self.sparsity.layers.items():
            weights, active = math.prod(module.shape), module.pattern.nnz
            shown[f"sparsity/{name}"] = sparsity = 1.0 - active / max(1, weights)
            when = {"epoch": epoch, "step": trainer.global_step, "layer": name}
            rows.append(
                {**when, "weights": weights, "active": active, "sparsity": sparsity, "exploration_rate": rates.get(name, "")}
            )
        self.table.append(rows)
        for logger in trainer.loggers:
            logger.log_metrics(shown, trainer.global_step)
