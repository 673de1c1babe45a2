"""The callback that measures a training's costs and writes them to ``run.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import nn

from openwork.analysis import Comparison, Flops, compare_memory, flops, training_flops
from openwork.methods import Method
from openwork.nn import SparseModule
from openwork.report import Report
from openwork.sparsify import Sparsity
from openwork.train.checkpoint import CheckpointError
from openwork.train.classifier import Classifier, classifier
from openwork.train.facts import FACTS, FORMAT, Facts, table_3
from openwork.train.history import Stopwatch
from openwork.train.plain import as_json, decode
from openwork.train.settings import Settings

T = TypeVar("T")


class FactSheet(pl.Callback):
    """Writes ``run.json`` at the start, after the steps in which memory is counted, and after every epoch.

    Args:
        folder: the run's folder.
        name: "sparse" or "dense".
        settings: of the run.
        watch: counts the bytes; it has to come before in the list of callbacks.
    """

    def __init__(self, folder: Path, name: str, settings: Settings, watch: Stopwatch) -> None:
        self.folder = folder
        self.name = name
        self.settings = settings
        self.watch = watch
        self.notes: dict[str, str] = {}
        self.cost: Flops | None = None
        self.formulas: Comparison | None = None
        self.forward = 0
        self._counted: object = None

    def state_dict(self) -> dict[str, Any]:
        """FLOPs of all forward passes so far, and the formulas beside the bytes that the stopwatch keeps."""
        return {"forward": self.forward, "formulas": None if self.formulas is None else as_json(self.formulas)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: the state is damaged.
        """
        try:
            self.forward = int(state_dict["forward"])
            held = state_dict["formulas"]
            self.formulas = None if held is None else decode(Comparison, held, "formulas")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's record of costs is damaged: {error}") from error
        self._counted = self.watch.memory

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the FLOPs of one image."""
        module = classifier(pl_module)
        image = torch.zeros(1, *module.loader.images.pixels.shape[1:], device=pl_module.device)
        self.cost = self._try("FLOPs", lambda: flops(module.model, image))
        if trainer.global_step == 0 or not (self.folder / FACTS).exists():
            self._write(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up this step's FLOPs; the topology may have changed at its end."""
        module = classifier(pl_module)
        if self.cost is not None:
            self.forward += self.cost.forward
            if module.topology_changed:
                self.cost = _recounted(self.cost, module.model)
        if self.watch.memory is not self._counted:
            self._counted = self.watch.memory
            if (sparsity := module.sparsity) is not None:
                self.formulas = self._try("bytes by formula", lambda: compare_memory(sparsity))
            self._write(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the file up to date."""
        self._write(trainer, classifier(pl_module))

    def _write(self, trainer: pl.Trainer, module: Classifier) -> None:
        sparsity, step = module.sparsity, trainer.global_step
        forward = self.forward / step if self.cost is not None and step else None
        # The surplus of a soft memory bound is a mean over the run, which is not known better than this.
        wide = float(self.cost.forward) if forward is None and self.cost is not None else forward
        method: Method | str = "dense" if sparsity is None else sparsity.method
        cost = self.cost
        training = None if cost is None else self._try("topology updates", lambda: training_flops(method, cost, wide=wide))
        Facts(
            format=FORMAT,
            name=self.name,
            settings=in_short(self.settings, sparsity, trainer.optimizers[0]),
            epochs=self.settings.epochs,
            step=step,
            report=Report(()) if sparsity is None else sparsity.report(),
            memory=self.watch.memory,
            formulas=self.formulas,
            flops=cost,
            forward=forward,
            training=training,
            peak=None if sparsity is None else table_3(sparsity.method, cost),
            notes=tuple(f"{what}: {why}" for what, why in self.notes.items()),
        ).save(self.folder)

    def _try(self, what: str, count: Callable[[], T]) -> T | None:
        """What can be counted; a layout, method or model of a user's own may have no formula, which is noted."""
        try:
            return count()
        except (ValueError, RuntimeError) as error:
            self.notes[what] = str(error)
            return None


def in_short(
    settings: Settings, sparsity: Sparsity | None, optimizer: torch.optim.Optimizer
) -> dict[str, str | int | float | None]:
    """The settings that say what a run was."""
    words: dict[str, str | int | float | None] = {"model": type(settings.model).__name__, "data": type(settings.data).__name__}
    if sparsity is not None:
        words |= {"layout": repr(settings.layout), "method": repr(sparsity.method)}
        words |= {"sparsity": settings.sparsity, "budget": str(settings.budget), "kernel": settings.kernel}
        words |= {name: ", ".join(names) for name, names in (("exclude", settings.exclude), ("force", settings.force)) if names}
    known = {
        name: optimizer.defaults[name] for name in ("lr", "momentum", "betas", "weight_decay") if name in optimizer.defaults
    }
    listed = ", ".join(f"{name}={value}" for name, value in known.items())
    words |= {"optimizer": f"{type(optimizer).__name__}({listed})", "learning_rate": type(settings.learning_rate).__name__}
    words |= {"epochs": settings.epochs, "batch_size": settings.batch_size, "seed": settings.seed}
    if settings.data_efficiency is not None:
        words["data_efficiency"] = repr(settings.data_efficiency)
    return words


def _recounted(cost: Flops, model: nn.Module) -> Flops:
    """The same for the present topology: positions do not change."""
    active = {name: module.pattern.nnz for name, module in model.named_modules() if isinstance(module, SparseModule)}
    return Flops(tuple(replace(layer, active=active.get(layer.layer, layer.active)) for layer in cost.layers))
