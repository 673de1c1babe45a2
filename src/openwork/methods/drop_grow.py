"""The loop that most methods share: every so often drop a share of each layer and grow as much."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

from openwork.methods.base import Layer, Method
from openwork.schedules import SCHEDULES, drop_fraction
from openwork.scores import Proposal

PAPER_END = 75_000
"""Last update of RigL and DSB on CIFAR, in steps: the default where the length of the training is not known."""


class DropGrow(Method):
    """Every ``interval`` steps, drop a share of each layer that falls over time and grow as much.

    Args:
        interval: optimizer steps between topology updates (Delta T).
        end: no update from here on: a step count, or a float, the share of ``total_steps``.  Default: 0.75 of ``total_steps``
            where that is given, else 75,000 steps, as in the papers.
        total_steps: optimizer steps of the whole training; needed for a float ``end``.
        drop_fraction: the share of active units dropped at first (alpha).
        schedule: how it falls until ``end``: cosine, constant, linear or cubic.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    def __init__(
        self,
        interval: int = 100,
        end: int | float | None = None,
        total_steps: int | None = None,
        drop_fraction: float = 0.3,
        schedule: str = "cosine",
    ) -> None:
        if not _is_count(interval):
            raise ValueError(f"interval={interval!r} must be a positive number of steps")
        if not (end is None or _is_count(end) or (isinstance(end, float) and 0.0 < end <= 1.0)):
            raise ValueError(f"end={end!r} must be a positive step count, or a float in (0, 1], a share of total_steps")
        if not (total_steps is None or _is_count(total_steps)):
            raise ValueError(f"total_steps={total_steps!r} must be a positive number of steps")
        if not (isinstance(drop_fraction, float) and 0.0 < drop_fraction < 1.0):
            raise ValueError(f"drop_fraction={drop_fraction!r} must be a number strictly between 0 and 1")
        if not (isinstance(schedule, str) and schedule in SCHEDULES):
            raise ValueError(f"schedule={schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        self.interval, self.end, self.total_steps = interval, end, total_steps
        self.drop_fraction, self.schedule = drop_fraction, schedule

    @property
    def last_step(self) -> int:
        """The step from which on nothing changes.

        Raises:
            ValueError: ``end`` is a share and ``total_steps`` is not set.
        """
        if isinstance(self.end, int):
            return self.end
        if self.total_steps is None:
            if self.end is None:
                return PAPER_END
            raise ValueError(f"end={self.end!r} is a share of total_steps, which is not set; give total_steps or end in steps")
        return max(1, round((0.75 if self.end is None else self.end) * self.total_steps))

    @final
    def due(self, step: int) -> bool:
        """Every ``interval`` steps, from the first interval until ``end``: step 0 has seen no gradient."""
        last = self.last_step  # read at step 0 too, so that attach learns of a missing total_steps
        return 0 < step < last and step % self.interval == 0

    @final
    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal]:
        """One proposal for each layer, all with the same drop fraction."""
        share = drop_fraction(step, end=self.last_step, initial=self.drop_fraction, schedule=self.schedule)
        return {name: self.propose_layer(step, layer, share) for name, layer in layers.items()}

    @abstractmethod
    def propose_layer(self, step: int, layer: Layer, share: float) -> Proposal:
        """What to drop and grow in one layer when ``share`` of its active units should go."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
