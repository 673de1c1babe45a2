"""Training on the hard examples only, after some epochs on all: the setting, the time table, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl
from rich.console import Console

from openwork.data.efficient import DataEfficientSampler, check_choice, expected_speedup
from openwork.data.forgetting import ForgettingEvents

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
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.start * self.full + (self.epochs - self.start) * self.short

    def epoch(self, step: float) -> float:
        """The time of a step, in epochs."""
        whole = self.start * self.full
        return step / self.full if step < whole else self.start + (step - whole) / self.short


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
