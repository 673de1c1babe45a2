"""Everything that defines a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from openwork import layouts, methods
from openwork.budgets import FixedRatio
from openwork.data.images import ImageSource
from openwork.layouts import LayoutRule
from openwork.methods import Method
from openwork.names import resolve
from openwork.train.data_efficiency import DataEfficiency
from openwork.train.learning_rate import LearningRate
from openwork.train.pictures import Pictures

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass
class Settings:
    """What to train, on what, and how.

    Args:
        model: any module from images ``[N, C, H, W]`` to class scores.
        data: where the images come from.
        layout: where non-zeros may lie, an object or a string such as ``shuffled_block(16, 16)``.
        method: how the topology is chosen, an object or a string such as ``rigl``; where it has no ``total_steps``, it is told
            the length of this run.
        optimizer: the optimizer, given everything but the parameters.
        learning_rate: how the optimizer's learning rate moves.
        sparsity: share of zeros over the sparsified weights; 0 trains the dense model only.
        budget: how the sparsity is shared among layers.
        exclude: names or globs of modules that stay dense.
        force: names or globs of modules that are made sparse although the rules would leave them dense.
        kernel: backend of the sparse layers; null chooses the fastest, ``auto`` measures that one against the dense product,
            layer by layer, and takes the faster. With ``auto`` a run cannot be repeated or resumed bit for bit.
        epochs: passes over the training images.
        batch_size: samples per step.
        data_efficiency: leave out easy examples after some epochs, such as ``{start: 70, threshold: 0}``; null trains on all.
        seed: of the weights, the topology, the order of the data and the augmentation.
        dense_twin: train the dense model too, from the same weights, with the same data order and schedule, and compare.
        exploration: keep count of the weights that were ever active (ITOP's R_s); it takes one bit for every weight of the
            dense matrices, on the CPU and in checkpoints.
        pictures: of which layers' masks small pictures are kept over the training; null keeps none.
        run_dir: a new folder for this run; null makes one under ``runs/``.
        checkpoint_every: write the checkpoint every so many steps too, not only after every epoch.
        progress: show a progress bar.
        device: where to train.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    model: nn.Module
    data: ImageSource
    layout: LayoutRule | str
    method: Method | str
    optimizer: OptimizerFactory
    learning_rate: LearningRate
    sparsity: float = 0.9
    budget: Literal["erk", "erdos_renyi", "uniform", "uniform_dense_first", "proportional"] | FixedRatio = "erk"
    exclude: list[str] = field(default_factory=list)
    force: list[str] = field(default_factory=list)
    kernel: str | None = None
    epochs: int = 15
    batch_size: int = 64
    data_efficiency: DataEfficiency | None = None
    seed: int = 0
    dense_twin: bool = True
    exploration: bool = True
    pictures: Pictures | None = field(default_factory=Pictures)
    run_dir: str | None = None
    checkpoint_every: int | None = None
    progress: bool = True
    device: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        try:
            self.layout = resolve("layout", self.layout, LayoutRule, layouts)  # type: ignore[type-abstract]
            self.method = resolve("method", self.method, Method, methods)  # type: ignore[type-abstract]
        except TypeError as error:
            raise ValueError(str(error)) from error
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity!r} must lie in [0, 1); 0 trains the dense model only")
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "checkpoint_every": self.checkpoint_every}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        if self.data_efficiency is not None and self.data_efficiency.start >= self.epochs:
            raise ValueError(f"data_efficiency.start={self.data_efficiency.start!r} must be less than epochs={self.epochs!r}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must not be negative")
