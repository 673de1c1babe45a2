"""How the drop fraction falls over training, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cubic": lambda progress: (1.0 - progress) ** 3,
}
"""Name -> the share of the initial drop fraction left at ``progress`` in [0, 1]."""


def drop_fraction(step: int, *, end: int, initial: float, schedule: str = "cosine") -> float:
    """The share of active units to drop at ``step``: ``initial`` at step 0, nothing from ``end`` on.

    Cosine is ``initial / 2 * (1 + cos(pi * step / end))`` (DSB eq. 1, RigL).

    Raises:
        ValueError: ``schedule`` is unknown or ``end`` is not positive.
    """
    if end <= 0:
        raise ValueError(f"end={end!r} must be a positive number of steps")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
    if step >= end:
        return 0.0
    return initial * SCHEDULES[schedule](max(0, step) / end)
