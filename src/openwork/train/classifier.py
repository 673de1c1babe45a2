"""The Lightning module: a classifier with its sparsity, optimizer and running figures."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from openwork.data.efficient import DataEfficientSampler
from openwork.data.loader import Batch, BatchLoader
from openwork.sparsify import Sparsity
from openwork.train.checkpoint import CheckpointError, random_state, set_random_state
from openwork.train.data_efficiency import Timetable, shorten
from openwork.train.learning_rate import LearningRate
from openwork.train.settings import OptimizerFactory


class Running:
    """Loss and accuracy summed over samples."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.correct = 0
        self.count = 0

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Take in one batch and its mean loss."""
        self.loss += float(loss.detach()) * len(labels)
        self.correct += int((scores.detach().argmax(1) == labels).sum())
        self.count += len(labels)

    @property
    def mean_loss(self) -> float:
        """Mean loss per sample."""
        return self.loss / max(1, self.count)

    @property
    def accuracy(self) -> float:
        """Share of samples whose highest score is their label's."""
        return self.correct / max(1, self.count)


class Classifier(pl.LightningModule):
    """Cross-entropy training of a model, sparse or dense.

    Args:
        model: the model, already sparsified where it is to be.
        sparsity: what ``openwork.sparsify`` returned, or None.
        optimizer: makes the optimizer; the sparsity is attached to it.
        learning_rate: how the learning rate moves.
        epochs: epochs of the run.
        loader: the training images; where it has a selection, forgetting events are counted for it.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: Sparsity | None,
        optimizer: OptimizerFactory,
        learning_rate: LearningRate,
        epochs: int,
        loader: BatchLoader,
    ) -> None:
        super().__init__()
        self.model = model
        self.sparsity = sparsity
        self.make_optimizer = optimizer
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.loader = loader
        self.full = len(loader)
        self.seen = Running()
        self.tested = Running()
        self._resumed: dict[str, Any] | None = None
        self.topology_changed = False
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        scores: Tensor = self.model(x)
        return scores

    def configure_optimizers(self) -> Any:
        """The optimizer, with the topology updates on it, and the learning rate by step."""
        optimizer = self.make_optimizer(self.model.parameters())
        if self.sparsity is not None:
            self.sparsity.attach(optimizer)
        # A step stands for its middle: neither the first step of a warm-up nor the last of a decay has a factor of 0.
        schedule = LambdaLR(optimizer, lambda step: self.learning_rate.factor(self.timetable.epoch(step + 0.5), self.epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Data and random numbers go on where the checkpoint left them."""
        if self._resumed is not None:
            # Lightning puts the loader back too, but not after a whole epoch.
            self.loader.load_state_dict(self._resumed["loader"])
            set_random_state(self._resumed["random_state"])
            self._resumed = None

    def on_train_epoch_start(self) -> None:
        """Figures are per epoch."""
        self.seen = Running()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x, y, ids = batch
        scores = self(x)
        loss = F.cross_entropy(scores, y)
        self.seen.add(loss, scores, y)
        if self.loader.selection is not None:
            self.loader.selection.events.record(ids, scores, y)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; its learning rate, and whether the topology changed in it."""
        before = None if self.sparsity is None else self.sparsity.last_update
        self.rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        super().optimizer_step(*args, **kwargs)
        self.topology_changed = self.sparsity is not None and self.sparsity.last_update is not before
        sampler = self.loader.selection
        # The loader moves on before it hands out a batch: this was the last one of the epochs on all examples.  The learning
        # rate and the checkpoint that follow belong to the time after.
        if sampler is not None and not sampler.selected and self.loader.epoch >= sampler.start:
            sampler.select()
            self._shorten()

    @property
    def timetable(self) -> Timetable:
        """When which step is made, as far as is known: until examples are removed, all epochs have as many steps."""
        start = self.epochs if self.loader.selection is None else self.loader.selection.start
        return Timetable(self.epochs, self.full, start, len(self.loader))

    def _shorten(self) -> None:
        if self.sparsity is not None:
            shorten(self.sparsity.method, self.timetable)

    def on_validation_epoch_start(self) -> None:
        """Figures are per epoch."""
        self.tested = Running()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Figures of one batch of test images."""
        x, y, _ = batch
        scores = self(x)
        self.tested.add(F.cross_entropy(scores, y), scores, y)

    def on_validation_epoch_end(self) -> None:
        """Hand the figures to whoever asks Lightning for them."""
        self.log("test_accuracy", self.tested.accuracy, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs to go on bit for bit."""
        sampler = self.loader.selection
        checkpoint["loader"] = self.loader.state_dict()
        checkpoint["data_efficiency"] = None
        if sampler is not None:
            checkpoint["data_efficiency"] = {"events": sampler.events.state_dict(), "sampler": sampler.state_dict()}
        checkpoint["random_state"] = random_state()
        checkpoint["seen"] = dict(vars(self.seen))
        checkpoint["sparsity"] = None if self.sparsity is None else self.sparsity.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring back the topology before the weights that belong to it."""
        self._resumed = {name: checkpoint[name] for name in ("loader", "random_state")}
        vars(self.seen).update(checkpoint["seen"])
        if self.loader.selection is not None:
            self._load_sampler(self.loader.selection, checkpoint.get("data_efficiency"))
        if self.sparsity is not None:
            self.sparsity.load_state_dict(checkpoint["sparsity"])

    def _load_sampler(self, sampler: DataEfficientSampler, state: dict[str, Any] | None) -> None:
        if state is None:
            raise CheckpointError("the checkpoint has no forgetting events: its run was made without data_efficiency")
        sampler.events.load_state_dict(state["events"])
        sampler.load_state_dict(state["sampler"])
        if sampler.selected:
            self._shorten()


def classifier(module: pl.LightningModule) -> Classifier:
    """The module that callbacks are handed, as what it is here."""
    assert isinstance(module, Classifier)
    return module
