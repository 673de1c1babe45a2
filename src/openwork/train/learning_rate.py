"""How the learning rate moves, as pure functions of time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence


class LearningRate(ABC):
    """A factor on the optimizer's learning rate for every moment of training."""

    @abstractmethod
    def factor(self, epoch: float, epochs: float) -> float:
        """The factor at time ``epoch`` of ``epochs``, both in epochs; steps within an epoch are fractions of it."""


def _warm(epoch: float, warmup: float) -> float:
    """Linear from 0 (excluded) to 1 over ``warmup`` epochs."""
    return min(1.0, epoch / warmup) if warmup > 0 else 1.0


def _not_negative(warmup: float) -> float:
    if warmup < 0:
        raise ValueError(f"warmup={warmup!r} must not be negative")
    return warmup


class Constant(LearningRate):
    """1 throughout.

    Args:
        warmup: epochs of linear warm-up.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        self.warmup = _not_negative(warmup)

    def factor(self, epoch: float, epochs: float) -> float:
        """1, after the warm-up."""
        return _warm(epoch, self.warmup)


class Cosine(LearningRate):
    """Half a cosine from 1 to ``final``.

    Args:
        warmup: epochs of linear warm-up; the cosine starts after them.
        final: factor at the end.
    """

    def __init__(self, warmup: float = 0.0, final: float = 0.0) -> None:
        self.warmup = _not_negative(warmup)
        self.final = final

    def factor(self, epoch: float, epochs: float) -> float:
        """``final + (1 - final) (1 + cos(pi t)) / 2`` with ``t`` from 0 after the warm-up to 1 at the end."""
        if epoch < self.warmup:
            return _warm(epoch, self.warmup)
        part = min(1.0, (epoch - self.warmup) / max(epochs - self.warmup, 1e-12))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * part)) / 2


class Step(LearningRate):
    """Multiplied by ``gamma`` at every milestone.

    Args:
        milestones: epochs, for instance ``[80, 120]``.
        gamma: the multiplier.
        warmup: epochs of linear warm-up.
    """

    def __init__(self, milestones: Sequence[float], gamma: float = 0.1, warmup: float = 0.0) -> None:
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warmup = _not_negative(warmup)

    def factor(self, epoch: float, epochs: float) -> float:
        """``gamma`` to the power of the number of milestones passed."""
        power: float = self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return power * _warm(epoch, self.warmup)


class OneCycle(LearningRate):
    """Up from ``1 / initial_div`` to 1 and down to nothing, both along cosines (Smith and Topin, 2018).

    Args:
        rise: share of training spent on the way up, in (0, 1).
        initial_div: the factor starts at its inverse.
        final_div: the factor ends at ``1 / (initial_div * final_div)``.

    Raises:
        ValueError: ``rise`` outside (0, 1).
    """

    def __init__(self, rise: float = 0.3, initial_div: float = 25.0, final_div: float = 1e4) -> None:
        if not 0 < rise < 1:
            raise ValueError(f"rise={rise!r} must lie in (0, 1)")
        self.rise = rise
        self.initial_div = initial_div
        self.final_div = final_div

    def factor(self, epoch: float, epochs: float) -> float:
        """The factor at ``epoch / epochs`` of the cycle."""
        low = 1 / self.initial_div
        part = min(1.0, epoch / epochs)
        if part < self.rise:
            return _between(low, 1.0, part / self.rise)
        return _between(1.0, low / self.final_div, (part - self.rise) / (1 - self.rise))


class Restart(LearningRate):
    """A schedule that runs through twice: in a first phase of training, and anew in a second.

    It is for methods of two phases, such as ``CSTraining``, whose ``end`` is the share ``at`` of all steps.

    Args:
        schedule: of each phase; its epochs are the phase's own.
        at: share of training at which it starts anew, in (0, 1).

    Raises:
        ValueError: ``at`` outside (0, 1).
    """

    def __init__(self, schedule: LearningRate, at: float = 0.5) -> None:
        if not 0 < at < 1:
            raise ValueError(f"at={at!r} must lie in (0, 1)")
        self.schedule = schedule
        self.at = at

    def factor(self, epoch: float, epochs: float) -> float:
        """That of ``schedule`` in the present phase."""
        first = self.at * epochs
        if epoch < first:
            return self.schedule.factor(epoch, first)
        return self.schedule.factor(epoch - first, epochs - first)


def _between(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
