"""The learning rates against torch's and by hand."""

import math

import pytest
import torch
from torch import nn

from openwork.train import Constant, Cosine, OneCycle, Restart, Step


def test_one_cycle_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, cycle_momentum=False)
    ours = OneCycle()
    # torch puts the peak on a step of its own, 0.3 * 101 - 1, so only the legs are compared, each on its own time.
    peak = 0.3 * 101 - 1
    for step in range(101):
        part = 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (100 - peak)
        assert ours.factor(part, 1.0) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 100:
            schedule.step()


def test_learning_rates_by_hand():
    assert Cosine(warmup=2).factor(1, 10) == 0.5
    assert Cosine(warmup=2).factor(6, 10) == pytest.approx(0.5)
    assert Cosine(final=0.1).factor(10, 10) == pytest.approx(0.1)
    assert Cosine().factor(5, 20) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [Step([80, 120]).factor(epoch, 160) for epoch in (79.9, 80, 120)] == pytest.approx([1, 0.1, 0.01])
    assert Constant(warmup=5).factor(1, 10) == 0.2
    assert Constant().factor(9, 10) == 1
    # Ten epochs, anew after four: a cosine of four, then one of six with a warm-up of its own.
    twice = Restart(Cosine(warmup=1), at=0.4)
    assert [twice.factor(epoch, 10) for epoch in (0.5, 1, 2.5, 4, 4.5, 5, 7.5, 10)] == pytest.approx(
        [0.5, 1, 0.5, 0, 0.5, 1, 0.5, 0]
    )
    with pytest.raises(ValueError, match=r"at=1 must lie in"):
        Restart(Constant(), at=1)
    with pytest.raises(ValueError, match=r"rise=1\.0 must lie in"):
        OneCycle(rise=1.0)
    with pytest.raises(ValueError, match="warmup=-1 must not be negative"):
        Cosine(warmup=-1)
