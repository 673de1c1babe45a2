"""When methods act, what they propose, and the options they refuse."""

from __future__ import annotations

import pytest
import torch

from openwork import methods
from openwork.layouts.settle import settle
from openwork.methods import DSB, SET, RigL, Static
from openwork.pattern import Pattern
from openwork.scores import Evidence, Proposal, Refit, Scores

MOVING = [SET, RigL, DSB]

moving = pytest.mark.parametrize("kind", MOVING)


@moving
def test_updates_come_every_interval_from_the_first_until_the_end(kind):
    method = kind(interval=3, end=12)
    assert [step for step in range(30) if method.due(step)] == [3, 6, 9]


@moving
def test_the_end_may_be_a_share_of_the_training(kind):
    assert kind(end=0.5, total_steps=2000).last_step == 1000
    assert kind(end=1.0, total_steps=2000).last_step == 2000
    assert kind(total_steps=2000).last_step == 1500
    assert kind().last_step == 75_000
    method = kind(end=0.5)
    with pytest.raises(ValueError, match=r"end=0\.5.*total_steps"):
        method.due(0)  # attach asks this, so that a training does not fail at its first update
    method.total_steps = 100
    assert method.last_step == 50


def test_static_never_acts():
    assert not any(Static().due(step) for step in range(1000))
    assert Static().propose(1, {}) == {}


def test_which_methods_take_the_place_of_the_step():
    assert (Static.replaces_step, SET.replaces_step, RigL.replaces_step, DSB.replaces_step) == (False, False, True, True)


def test_what_methods_look_at():
    assert SET().needs == frozenset()
    assert RigL().needs == {Evidence.DENSE_GRAD}
    assert DSB().needs == {Evidence.L1_NORMS}
    assert DSB(norm="l2").needs == {Evidence.L2_NORMS}
    assert DSB(grow="gradient").needs == {Evidence.DENSE_GRAD}


@moving
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0.*positive"),
        ({"interval": -3}, "interval=-3"),
        ({"interval": 2.5}, r"interval=2\.5"),
        ({"interval": True}, "interval=True"),
        ({"interval": "3"}, "interval='3'"),
        ({"end": 0}, "end=0"),
        ({"end": 1.5}, r"end=1\.5"),
        ({"end": -0.5}, r"end=-0\.5"),
        ({"end": "late"}, "end='late'"),
        ({"end": float("nan")}, "end=nan"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": "many"}, "total_steps='many'"),
        ({"total_steps": 10.5}, r"total_steps=10\.5"),
        ({"drop_fraction": 0.0}, r"drop_fraction=0\.0"),
        ({"drop_fraction": 1.0}, r"drop_fraction=1\.0"),
        ({"drop_fraction": -0.1}, r"drop_fraction=-0\.1"),
        ({"drop_fraction": "half"}, "drop_fraction='half'"),
        ({"drop_fraction": None}, "drop_fraction=None"),
        ({"schedule": "sine"}, "schedule='sine'.*cosine"),
        ({"schedule": None}, "schedule=None.*cosine"),
        ({"schedule": []}, r"schedule=\[\].*cosine"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lift": "sum"}, "lift='sum'.*max, mean"),
        ({"grow": "random"}, "grow='random'.*norms, gradient"),
        ({"norm": "l3"}, "norm='l3'.*l1, l2"),
        ({"regroup": -1}, "regroup=-1"),
        ({"regroup": 1.5}, r"regroup=1\.5"),
        ({"regroup": "often"}, "regroup='often'"),
        ({"block_aware": "yes"}, "block_aware='yes'"),
        ({"regrow": 2}, "regrow=2"),
    ],
)
def test_bad_options_of_dsb_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DSB(**options)


def test_methods_print_as_they_are_made():
    method = DSB(interval=7, lift="mean", end=0.5, total_steps=10)
    assert eval(repr(method), vars(methods)).__dict__ == method.__dict__


class FakeLayer:
    """A layer of 4 x 8 blocks with a pattern that tests choose."""

    count = 3
    block = (4, 8)
    shape = (16, 16)
    generator = torch.Generator()

    def __init__(self, keep):
        self.keep = keep
        self.asked = []

    def magnitudes(self):
        return self.keep

    weights = magnitudes

    def positions(self):
        return torch.arange(len(self.keep))

    def sample_inactive(self, n):
        self.asked.append(n)
        return Scores(torch.rand(n), torch.arange(n) + 100)

    def largest_gradients(self, keep, n, *, single=False):
        self.asked.append((n, single))
        return Scores(torch.rand(n), torch.arange(n) + 100)

    def norms(self):
        return torch.rand(16), torch.rand(16)


@pytest.mark.parametrize("kind", [SET, RigL])
def test_the_number_dropped_is_truncated_cosine(kind):
    layer = FakeLayer(torch.rand(37))
    # Step 50 of 100: half of the initial 0.3, 5.55 of 37.
    proposal = kind(interval=50, end=100).propose(50, {"x": layer})["x"]
    assert (proposal.n_drop, proposal.count, proposal.refit) == (5, 3, None)
    assert torch.equal(proposal.keep, layer.keep)
    assert layer.asked == [5 if kind is SET else (5, False)]


@pytest.mark.parametrize(
    ("regroup", "expected"),
    [
        (True, [True] * 6),
        (1, [True] * 6),
        (False, [False] * 6),
        (0, [False] * 6),
        (2, [False, True] * 3),
        (3, [False, False, True] * 2),
    ],
)
def test_rows_regroup_at_every_nth_update(regroup, expected):
    method = DSB(interval=5, end=1000, regroup=regroup)
    got = [method.propose(5 * i, {"x": FakeLayer(torch.rand(40))})["x"].refit.regroup for i in range(1, 7)]
    assert got == expected


def test_dsb_asks_for_blocks_of_the_layers_own_size():
    proposal = DSB(interval=1, end=100).propose(1, {"x": FakeLayer(torch.rand(40))})["x"]
    assert proposal.refit == Refit("max", True, True, 32, True)
    assert len(proposal.grow.ids) % 32 == 0


def pattern_of_one_block():
    """4 rows x 4 columns, all active, in one group of one 4-column block."""
    as_int = lambda *v: torch.tensor(v, dtype=torch.int32)  # noqa: E731
    return Pattern((4, 8), as_int([0, 1, 2, 3]), as_int(0, 4), as_int(0, 2, 4, 6))


def test_a_weight_drops_only_where_its_row_or_column_is_half_marked():
    pattern = pattern_of_one_block()
    # Marked (the lowest five): row 0 at its first two columns, and three single ones in rows 1 to 3 and columns 2 and 3.
    magnitude = torch.full((4, 4), 9.0)  # [column, row], as stored
    magnitude[0, 0] = magnitude[1, 0] = 1.0  # row 0 is half marked
    magnitude[2, 1] = magnitude[3, 2] = 1.0  # alone in their rows and columns
    grow = Scores(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 3, 5]))
    refit = Refit(block_aware=True)
    weights = settle(pattern, Proposal(magnitude.flatten(), 4, grow, 1, refit), (4, 4))
    gone = set(pattern.positions.flatten().tolist()) - set(weights.flat.tolist())
    assert gone == {0, 2}, "row 0, columns 0 and 2"
    assert set(weights.flat.tolist()) - set(pattern.positions.flatten().tolist()) == {1, 3}, "as many come as go"
    lifted = dict(zip(weights.flat.tolist(), weights.score.tolist(), strict=True))
    assert lifted[1] == lifted[3] == 9.0
    everything = settle(pattern, Proposal(magnitude.flatten(), 4, grow, 1, Refit()), (4, 4))
    assert set(pattern.positions.flatten().tolist()) - set(everything.flat.tolist()) == {0, 2, 1 * 8 + 4, 2 * 8 + 6}


def test_the_mean_lifts_less():
    pattern = pattern_of_one_block()
    magnitude = torch.arange(1.0, 17.0)
    grow = Scores(torch.ones(2), torch.tensor([1, 3]))
    weights = settle(pattern, Proposal(magnitude, 2, grow, 1, Refit(lift="mean")), (4, 4))
    assert weights.score[-2:].tolist() == [8.5, 8.5]


def test_a_batch_is_taken_whole_and_what_was_dropped_may_be_kept_out():
    pattern = pattern_of_one_block()
    magnitude = torch.arange(1.0, 17.0)
    # Stored first: column 0, rows 0 to 3; the two lowest are positions 0 and 8.
    ids = torch.tensor([0, 1, 3, 5, 7, 9])
    grow = Scores(torch.arange(6, 0, -1).float(), ids)
    for regrow, expected in ((True, {0, 1, 3}), (False, {1, 3})):
        weights = settle(pattern, Proposal(magnitude, 2, grow, 1, Refit(batch=3, regrow=regrow)), (4, 4))
        kept = set(pattern.positions.flatten().tolist()) - {0, 8}
        assert set(weights.flat.tolist()) - kept == expected
