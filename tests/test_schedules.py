"""How the drop fraction falls."""

import math
from itertools import pairwise

import pytest

from openwork.schedules import SCHEDULES, drop_fraction


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_starts_whole_falls_and_ends_at_nothing(schedule):
    values = [drop_fraction(step, end=100, initial=0.3, schedule=schedule) for step in range(120)]
    assert values[0] == pytest.approx(0.3)
    assert values[100:] == [0.0] * 20
    assert all(a >= b for a, b in pairwise(values))
    assert all(0 <= value <= 0.3 for value in values)


def test_values_by_hand():
    assert drop_fraction(50, end=100, initial=0.3) == pytest.approx(0.15)
    assert drop_fraction(25, end=100, initial=0.3) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert drop_fraction(75, end=100, initial=0.4, schedule="linear") == pytest.approx(0.1)
    assert drop_fraction(50, end=100, initial=0.4, schedule="cubic") == pytest.approx(0.05)
    assert drop_fraction(99, end=100, initial=0.4, schedule="constant") == 0.4


@pytest.mark.parametrize("end", [0, -5])
def test_the_end_must_be_positive(end):
    with pytest.raises(ValueError, match=f"end={end}"):
        drop_fraction(1, end=end, initial=0.3)


def test_unknown_schedules_are_named():
    with pytest.raises(ValueError, match=r"schedule='sine'.*cosine, constant, linear, cubic"):
        drop_fraction(1, end=10, initial=0.3, schedule="sine")
