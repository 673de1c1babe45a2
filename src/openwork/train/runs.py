"""Run folders, read back: finished, interrupted or still running."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from openwork.train.facts import FACTS, Facts
from openwork.train.files import Table
from openwork.train.plain import from_text
from openwork.train.report import SUMMARY, Summary

TWIN = "dense"

_MARKS = ("config.yaml", FACTS, SUMMARY, "metrics.csv")
R = TypeVar("R")


@dataclass(frozen=True)
class Epoch:
    """A row of ``metrics.csv``; what a dense training, or a short one, does not have is None."""

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    parameters: int
    step_ms: float | None
    sparsity: float | None
    exploration_rate: float | None


@dataclass(frozen=True)
class LayerEpoch:
    """A row of ``layers.csv``."""

    epoch: int
    step: int
    layer: str
    weights: int
    active: int
    sparsity: float
    exploration_rate: float | None


@dataclass(frozen=True)
class Update:
    """A row of ``topology.csv``: one layer in one topology update."""

    step: int
    layer: str
    dropped: int
    grown: int
    evicted: int
    evicted_mass: float


@dataclass(frozen=True)
class Run:
    """One training as its folder tells it.

    Args:
        folder: where it is.
        title: what to call it.
        facts: what it is and costs; None before its first step, or of a version that did not write it.
        summary: its figures at the end; None where it has not finished.
        epochs: one row an epoch.
        layers: one row a layer and epoch, the start included.
        updates: one row a layer and topology update.
    """

    folder: Path
    title: str
    facts: Facts | None
    summary: Summary | None
    epochs: tuple[Epoch, ...]
    layers: tuple[LayerEpoch, ...]
    updates: tuple[Update, ...]

    @property
    def is_dense(self) -> bool:
        """Whether it is a dense training, as far as is known."""
        known = self.facts or self.summary
        return known.name == "dense" if known is not None else self.folder.name == TWIN

    @property
    def step_ms(self) -> float | None:
        """Median milliseconds of a step without topology update: of all of them, or of the last epoch's until the end."""
        if self.summary is not None and self.summary.step is not None:
            return 1e3 * self.summary.step
        known = [row.step_ms for row in self.epochs if row.step_ms is not None]
        return known[-1] if known else None

    @property
    def last_layers(self) -> dict[str, LayerEpoch]:
        """The newest row of every layer."""
        return {row.layer: row for row in self.layers}


def read_run(folder: Path, title: str | None = None) -> Run:
    """Read a run folder, or the ``dense`` one inside.

    Raises:
        ValueError: it is no run folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; a run folder is wanted, as openwork train makes it")
    if not any((folder / mark).is_file() for mark in _MARKS):
        raise ValueError(f"{folder} is no run folder: it has none of {', '.join(_MARKS)}")
    return Run(
        folder,
        title or name_of(folder),
        Facts.read(folder),
        Summary.read(folder),
        _rows(Epoch, folder / "metrics.csv"),
        _rows(LayerEpoch, folder / "layers.csv"),
        _rows(Update, folder / "topology.csv"),
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, each with its dense twin after it; every folder once.

    Titles are the folders' names, or the paths as given where names are the same.

    Raises:
        ValueError: one is no run folder, or a file in it is damaged.
    """
    names = [name_of(folder) for folder in folders]
    runs: dict[Path, Run] = {}
    for folder, name in zip(folders, names, strict=True):
        title = name if names.count(name) == 1 else str(folder)
        runs.setdefault(folder.resolve(), read_run(folder, title))
        twin = folder / TWIN
        if any((twin / mark).is_file() for mark in _MARKS):
            runs.setdefault(twin.resolve(), read_run(twin, f"{title}, dense twin"))
    return list(runs.values())


def twin_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The dense twin of a run, if it is among ``runs``."""
    wanted = (run.folder / TWIN).resolve()
    return next((other for other in runs if other.folder.resolve() == wanted), None)


def name_of(folder: Path) -> str:
    """The last part of a folder's name that says which run it is."""
    whole = folder.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.name == TWIN else whole.name


def _rows(kind: type[R], path: Path) -> tuple[R, ...]:
    try:
        rows = Table(path, ()).rows()
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return tuple(from_text(kind, row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))
