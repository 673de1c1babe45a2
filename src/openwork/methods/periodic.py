"""Methods whose topology updates come at fixed intervals until a last step."""

from __future__ import annotations

from openwork.methods.base import Method

PAPER_END = 75_000
"""Last update of RigL and DSB on CIFAR, in steps: the default where the length of the training is not known."""


class Periodic(Method):
    """An update every ``interval`` steps, none from ``end`` on.

    Args:
        interval: optimizer steps between topology updates (Delta T).
        end: no update from here on: a step count, or a float, the share of ``total_steps``.  None: ``usual_end``.
        total_steps: optimizer steps of the whole training; needed for a float ``end``.
        usual_end: the share of ``total_steps`` that stands for None; without ``total_steps`` it is 75,000 steps.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    def __init__(self, interval: int, end: int | float | None, total_steps: int | None, usual_end: float = 0.75) -> None:
        if not is_count(interval):
            raise ValueError(f"interval={interval!r} must be a positive number of steps")
        if not (end is None or is_moment(end)):
            raise ValueError(f"end={end!r} must be a positive step count, or a float in (0, 1], a share of total_steps")
        if not (total_steps is None or is_count(total_steps)):
            raise ValueError(f"total_steps={total_steps!r} must be a positive number of steps")
        self.interval, self.end, self.total_steps = interval, end, total_steps
        self._usual_end = usual_end

    @property
    def last_step(self) -> int:
        """The step from which on nothing changes.

        Raises:
            ValueError: ``end`` is a share and ``total_steps`` is not set.
        """
        if self.end is None and self.total_steps is None:
            return PAPER_END
        return self.step_at("end", self._usual_end if self.end is None else self.end)

    def step_at(self, argument: str, moment: int | float) -> int:
        """A step count as it is, a share of ``total_steps`` as a step count.

        Raises:
            ValueError: it is a share and ``total_steps`` is not set.
        """
        if isinstance(moment, int):
            return moment
        if self.total_steps is None:
            raise ValueError(
                f"{argument}={moment!r} is a share of total_steps, which is not set; give total_steps or {argument} in steps"
            )
        return max(1, round(moment * self.total_steps))

    def due(self, step: int) -> bool:
        """Every ``interval`` steps, from the first interval until ``end``: step 0 has seen no gradient."""
        last = self.last_step  # read at step 0 too, so that attach learns of a missing total_steps
        return 0 < step < last and step % self.interval == 0


def is_count(value: object) -> bool:
    """A positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_moment(value: object) -> bool:
    """A step count, or a share of all steps."""
    return is_count(value) or (isinstance(value, float) and 0.0 < value <= 1.0)
