"""The loop that most methods share: every so often drop a share of each layer and grow as much."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

from openwork.methods.base import Layer
from openwork.methods.periodic import Periodic
from openwork.schedules import SCHEDULES, drop_fraction
from openwork.scores import Proposal


class DropGrow(Periodic):
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
        super().__init__(interval, end, total_steps)
        if not (isinstance(drop_fraction, float) and 0.0 < drop_fraction < 1.0):
            raise ValueError(f"drop_fraction={drop_fraction!r} must be a number strictly between 0 and 1")
        if not (isinstance(schedule, str) and schedule in SCHEDULES):
            raise ValueError(f"schedule={schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        self.drop_fraction, self.schedule = drop_fraction, schedule

    @final
    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal]:
        """One proposal for each layer, all with the same drop fraction."""
        share = drop_fraction(step, end=self.last_step, initial=self.drop_fraction, schedule=self.schedule)
        return {name: self.propose_layer(step, layer, share) for name, layer in layers.items()}

    @abstractmethod
    def propose_layer(self, step: int, layer: Layer, share: float) -> Proposal:
        """What to drop and grow in one layer when ``share`` of its active units should go."""
