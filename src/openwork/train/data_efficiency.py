"""Training on the hard examples only, after some epochs on all: the setting, the time table, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning.pytorch as pl
from rich.console import Console

from openwork.data.efficient import DataEfficientSampler, check_choice, expected_speedup
from openwork.data.forgetting import ForgettingEvents
from openwork.methods import Method
from openwork.methods.periodic import Periodic

FIGURES = ("examples", "removed", "removed_share", "unforgettable_share", "never_learned_share")


@dataclass(frozen=True)
class DataEfficiency:
    """Count forgetting events for some epochs, then leave out the easy examples (MEST, section 4.3).

    Args:
        start: epochs on all examples.
        threshold: leave out the examples that were learned and forgotten so many times or fewer; 0: never.
        remove: leave out so many of the easiest examples; exactly one of ``threshold`` and ``remove`` is given.

    Raises:
        ValueError: a value outside its range, or both or none of ``threshold`` and ``remove``.
    """

    start: int
    threshold: int | None = None
    remove: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.start, self.threshold, self.remove)

    def sampler(self, n_examples: int, batch_size: int, seed: int) -> DataEfficientSampler:
        """A sampler with events of its own, which leaves at least one batch.

        Raises:
            ValueError: ``remove`` is not less than the number of examples.
        """
        # A batch larger than the training set is the loader's to refuse.
        return DataEfficientSampler(
            ForgettingEvents(n_examples),
            self.start,
            threshold=self.threshold,
            remove=self.remove,
            at_least=min(batch_size, n_examples),
            seed=seed,
        )


@dataclass(frozen=True)
class Timetable:
    """When which step is made in a training whose epochs get shorter once.

    Args:
        epochs: of the whole training.
        full: steps in each of the first ``start`` epochs.
        start: how many these are.
        short: steps in each of the others.
    """

    epochs: int
    full: int
    start: int
    short: int

    @property
    def whole(self) -> int:
        """Steps of the full epochs."""
        return self.start * self.full

    def epoch(self, step: float) -> float:
        """The time of a step, in epochs."""
        return step / self.full if step < self.whole else self.start + (step - self.whole) / self.short

    def moved(self, step: int) -> int:
        """The step made when ``step`` would have been, were all epochs full; at least one after the full epochs, if it was."""
        if step <= self.whole:
            return step
        return max(self.whole + 1, math.ceil(self.whole + (step - self.whole) * self.short / self.full))


def shorten(method: Method, timetable: Timetable) -> None:
    """Let a method that was told the length of full epochs end at the same time in the shorter run.

    A method that makes its last update at a share of ``total_steps`` is told the number of which that share is its end's new
    step; one without, the steps that there are.  One that was given another number keeps it.
    """
    total = timetable.epochs * timetable.full
    if method.total_steps != total:
        return
    if not isinstance(method, Periodic) or isinstance(method.end, int):
        method.total_steps = timetable.moved(total)
        return
    wanted = timetable.moved(method.last_step)
    # Step by step, because the method rounds as it likes, and an end that is missed may be an update that is never made.
    while method.last_step > wanted:
        total -= 1
        method.total_steps = total


def epoch_figures(sampler: DataEfficientSampler, epoch: int) -> dict[str, float]:
    """The ``FIGURES`` of an epoch that has just ended; shares are of all training examples."""
    events = sampler.events
    size = events.n_examples
    removed = sampler.removed if epoch >= sampler.start else 0
    shares = (removed / size, events.n_unforgettable / size, events.n_never_learned / size)
    return dict(zip(FIGURES, (size - removed, removed, *shares), strict=True))


class Announcement(pl.Callback):
    """Says how many examples go when they go.

    Args:
        sampler: which examples stay.
        epochs: of the whole training.
        console: where to print; while a progress bar is shown, above it.
    """

    def __init__(self, sampler: DataEfficientSampler, epochs: int, console: Console) -> None:
        self.sampler = sampler
        self.epochs = epochs
        self.console = console

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line at the first epoch without the easy examples."""
        if trainer.current_epoch != self.sampler.start:
            return
        removed, size = self.sampler.removed, self.sampler.events.n_examples
        speedup = expected_speedup(removed / size, self.sampler.start, self.epochs)
        text = (
            f"Epoch {self.sampler.start + 1}: {removed:,} of {size:,} examples removed ({100 * removed / size:.1f} %); "
            f"{trainer.num_training_batches} steps an epoch from here, the whole run sees {speedup:.3f} times fewer examples"
        )
        bar = trainer.progress_bar_callback
        if bar is None:
            self.console.print(text)
        else:
            bar.print(text)
