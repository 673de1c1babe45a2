"""Vectors over clustered rows and balanced groups: against all groupings there are, planted groups and hand-checked counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork.layouts import LayoutError, OutVector
from openwork.layouts.exchange import keep_most
from openwork.names import resolve
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import Proposal

both = pytest.mark.parametrize("balance", ["layer", "group"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kept_mass(pattern, weight):
    return float(weight.double().reshape(pattern.shape).abs()[pattern.mask()].sum())


def most_of(weight, groups, kept, balance):
    """The most that ``kept`` columns in all, or in every group, hold of these groups of rows."""
    norms = [np.abs(weight[list(group)]).sum(0) for group in groups]
    if balance == "group":
        return sum(np.sort(own)[::-1][: kept // len(groups)].sum() for own in norms)
    return np.sort(np.concatenate(norms))[::-1][:kept].sum()


def pairings(rows):
    """All ways to put rows in pairs."""
    if not rows:
        yield []
        return
    first, *rest = rows
    for other in rest:
        for more in pairings([row for row in rest if row != other]):
            yield [(first, other), *more]


@both
def test_groups_lie_between_the_identity_and_the_best_of_all_pairings(balance):
    reached = []
    for seed in range(40):
        weight = torch.randn(6, 5, generator=generator(seed), dtype=torch.float64)
        layout = OutVector(2, True, balance)
        count = layout.fit((6, 5), 0.4)
        pattern = layout.initial((6, 5), count, weight, generator())
        layout.check(pattern, count)
        every = [most_of(weight.numpy(), groups, count, balance) for groups in pairings(list(range(6)))]
        assert len(every) == 15
        identity = most_of(weight.numpy(), [(0, 1), (2, 3), (4, 5)], count, balance)
        found = kept_mass(pattern, weight)
        assert identity - 1e-12 <= found <= max(every) + 1e-12
        assert found == pytest.approx(most_of(weight.numpy(), pattern.rows.tolist(), count, balance)), "the best columns"
        reached.append((found - identity) / (max(every) - identity + 1e-12))
    assert np.mean(reached) > 0.5, "most of what there is to gain on so few rows"


dims = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(1, 12)),
    st.tuples(st.integers(1, 20), st.integers(1, 4), st.sampled_from([1, 2]), st.just(3)),
)


@given(dims, st.integers(1, 7), st.floats(0, 1), st.integers(0, 10**6), st.booleans(), st.sampled_from(["layer", "group"]))
@settings(max_examples=150, deadline=None)
def test_never_less_than_consecutive_rows_at_the_same_count(shape, v, density, seed, coarse, balance):
    weight = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    weight = weight.round() if coarse else weight  # many ties, many zeros
    layout = OutVector(v, True, balance)
    count = layout.fit(shape, density)
    pattern = layout.initial(shape, count, weight, generator())
    layout.check(pattern, count)
    assert len(pattern.cols) == count
    matrix = weight.reshape(shape[0], -1).numpy()
    # The low last group, if there is one, has its own share, the same for any grouping.
    cut = shape[0] % v != 0 or balance == "group"
    last = int(pattern.offsets[-1] - pattern.offsets[-2]) if cut else 0
    groups = [list(range(r, min(r + v, shape[0]))) for r in range(0, shape[0], v)]
    full = groups[:-1] if cut else groups
    identity = most_of(matrix, full, count - last, balance) if full else 0.0
    identity += most_of(matrix, groups[-1:], last, "layer") if cut else 0.0
    assert kept_mass(pattern, weight) >= identity * (1 - 1e-12)


@both
def test_planted_groups_are_found(balance):
    rng = np.random.default_rng(3)
    owner = rng.permutation(np.repeat(np.arange(8), 4))
    weight = torch.zeros(32, 5, 4, 1)
    for row, group in enumerate(owner):
        weight.view(32, 20)[row, rng.permutation(20)[:1]] = 0.01
        weight.view(32, 20)[row, [group, group + 8, (3 * group + 1) % 20]] = torch.rand(3, generator=generator(row)) + 1
    layout = OutVector(4, True, balance)
    count = layout.fit((32, 5, 4, 1), 3 / 20)
    pattern = layout.initial((32, 5, 4, 1), count, weight, generator())
    assert all(len(set(owner[group])) == 1 for group in pattern.rows.numpy())
    assert kept_mass(pattern, weight) >= float(weight[weight > 0.5].double().sum()) - 1e-9


def structured(rows, cols, kinds, seed=0):
    """Rows of a few kinds, which do not come in numbers that divide."""
    kind = torch.rand(kinds, cols, generator=generator(seed)).pow(4)[torch.randint(kinds, (rows,), generator=generator(seed))]
    return kind * torch.randn(rows, cols, generator=generator(seed + 1))


def best_columns(count):
    return lambda norms: np.argsort(-norms, kind="stable")[:count]


def test_exchanges_keep_more_than_any_start_until_no_pair_gains():
    size = structured(24, 40, 5).abs().double()
    starts = [consecutive_rows(24, 4), torch.randperm(24, generator=generator(2)).int().view(6, 4).sort(1).values]
    alone = [keep_most(size, [rows], best_columns(30)) for rows in starts]
    for rows in starts:
        assert keep_most(size, [rows], best_columns(30)).mass > most_of(size.numpy(), rows.tolist(), 30, "layer") * 1.05
    found = keep_most(size, starts, best_columns(30))
    assert found.mass in [one.mass for one in alone]
    assert found.mass == pytest.approx(most_of(size.numpy(), found.rows.tolist(), 30, "layer"))
    # With these columns, no two rows would both together hold more in each other's place.
    kept = [[int(i) % 40 for i in found.ids if i // 40 == g] for g in range(6)]
    group = {row: g for g, members in enumerate(found.rows.tolist()) for row in members}
    for a, b in itertools.combinations(range(24), 2):
        here = size[a, kept[group[a]]].sum() + size[b, kept[group[b]]].sum()
        there = size[a, kept[group[b]]].sum() + size[b, kept[group[a]]].sum()
        assert there <= here + 1e-9


def test_ties_go_to_consecutive_rows_and_the_lowest_columns():
    layout = OutVector(4, cluster=True)
    pattern = layout.initial((10, 6), 5, torch.ones(10, 6), generator())
    assert torch.equal(pattern.rows, consecutive_rows(10, 4))
    # Two full groups and one of two rows: of five vectors, in proportion, three and two.
    assert pattern.offsets.tolist() == [0, 3, 3, 5]
    assert pattern.cols.tolist() == [0, 1, 2, 0, 1]


def test_the_seed_has_no_part_and_precision_little():
    weight = structured(26, 30, 6)
    layout = OutVector(4, cluster=True)
    first, other = (layout.initial((26, 30), 40, weight, generator(seed)) for seed in (0, 1))
    assert ow.pattern.same_pattern(first, other)
    assert not torch.equal(first.rows, consecutive_rows(26, 4))
    assert ow.pattern.same_pattern(first, layout.initial((26, 30), 40, -weight.double(), generator()))
    half = layout.initial((26, 30), 40, weight.bfloat16(), generator())
    assert kept_mass(half, weight) == pytest.approx(kept_mass(first, weight), rel=0.05)


def test_counts_of_balanced_groups_by_hand():
    layout = OutVector(4, balance="group")
    # 12 x 10: three groups.  Three columns in each hold 36 weights; for 37 it takes four.
    assert layout.fit((12, 10), 0.3) == 9
    assert layout.fit((12, 10), 0.301) == 12
    # 10 rows: the last group has two, and a column of all groups is 10 weights.
    assert layout.fit((10, 10), 0.3) == 9
    assert layout.weights_of((10, 10), 9) == 30
    assert [layout.fit((10, 10), density) for density in (0.0, 0.001, 1.0)] == [0, 3, 30]
    with pytest.raises(LayoutError, match=r"3 row groups.*count=10"):
        layout.initial((12, 10), 10, torch.zeros(12, 10), generator())
    assert not layout.resizable


@pytest.mark.parametrize("cluster", [False, True])
def test_balanced_groups_take_their_own_best(cluster):
    layout = OutVector(3, cluster, "group")
    score = torch.rand(11, 9, generator=generator(3), dtype=torch.float64)
    count = layout.fit((11, 9), 0.4)
    now = layout.initial((11, 9), count, score.flip(0), generator())
    rows = now.rows.long()
    chunks = [(g, score[rows[g].clamp(min=0)][None]) for g in range(4)]
    keep = torch.zeros(count, dtype=torch.float64)
    grow = layout.best_inactive(now, torch.empty(0, dtype=torch.int64), chunks, count)
    pattern = layout.revise(now, Proposal(keep, count, grow, count))
    layout.check(pattern, count)
    for g, members in enumerate(rows.tolist()):
        best = score[[r for r in members if r >= 0]].sum(0).topk(4).indices.sort().values
        assert pattern.cols[pattern.offsets[g] : pattern.offsets[g + 1]].tolist() == best.tolist()


def test_random_balanced_vectors_are_uniform_in_every_group():
    layout, counts = OutVector(2, balance="group"), np.zeros((4, 8))
    for seed in range(800):
        pattern = layout.initial((8, 8), 12, torch.zeros(8, 8), generator(seed))
        np.add.at(counts, (pattern.group_of_column.numpy(), pattern.cols.numpy()), 1)
    assert (counts.sum(1) == 2400).all()
    assert ((counts - 300) ** 2 / 300).sum() < 56.9, "chi-square, 28 degrees of freedom, 0.1 %"


def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 13, 3), nn.ReLU(), nn.Flatten(), nn.Linear(13 * 16, 22), nn.ReLU(), nn.Linear(22, 10))


def trained(layout, method, seed=0, steps=0):
    net = model(seed)
    sparsity = ow.sparsify(net, sparsity=0.7, layout=layout, method=method, budget="uniform", kernel="reference")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    for index in range(steps):
        net(torch.randn(4, 3, 6, 6, generator=generator(index))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield sparsity
    yield sparsity


METHODS = [
    ow.methods.SET(interval=1, end=100), ow.methods.RigL(interval=1, end=100), ow.methods.DSB(interval=1, end=100),
    ow.methods.GSE(interval=1, end=100), ow.methods.MEST("soft", interval=1, end=4, mutation=0.3),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=repr)
@both
def test_rows_keep_their_groups_and_groups_their_columns(balance, method):
    rows, moved = {}, 0
    for sparsity in trained(OutVector(4, True, balance), method, steps=5):
        for name, module in sparsity.layers.items():
            pattern = module.pattern
            assert torch.equal(rows.setdefault(name, pattern.rows.clone()), pattern.rows)
            if balance == "group":
                columns = pattern.offsets.diff().tolist()
                assert len(set(columns)) == 1
                if method.__class__ is not ow.methods.MEST:
                    n_cols = pattern.shape[1]
                    assert columns[0] == -(-3 * n_cols // 10), "0.3 of the columns, rounded up"
        moved += sum(change.dropped for change in sparsity.last_update.values())
    assert moved > 0
    assert any(not torch.equal(own, consecutive_rows(int(own.max()) + 1, 4)) for own in rows.values())


def test_a_state_brings_its_groups_along():
    method = ow.methods.SET(interval=2, end=100)
    *_, saved = trained(OutVector(4, cluster=True), method, seed=1, steps=3)
    state = saved.state_dict()
    *_, other = trained(OutVector(4, cluster=True), method, seed=2)
    assert any(not torch.equal(a.rows, b.rows) for a, b in zip(saved.layers.values(), other.layers.values(), strict=True))
    other.load_state_dict(state)
    for a, b in zip(saved.layers.values(), other.layers.values(), strict=True):
        assert ow.pattern.same_pattern(a.pattern, b.pattern)
    *_, plain = trained(OutVector(4), method)
    with pytest.raises(ValueError, match=r"of another model: OutVector\(v=4, cluster=True\)"):
        plain.load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held["rows"][0].fill_(0), "two groups"),
        (lambda held: held.update(rows=held["rows"].view(2, 5)), "offsets must"),
        (lambda held: held.update(rows=held["rows"][:-1], offsets=held["offsets"][:-1]), "offsets must"),
        (lambda held: held["rows"][-1, -1:].fill_(-1), "row groups differ"),
        (lambda held: held["offsets"][1].add_(1), "holds"),
        (lambda held: held.update(count=held["count"] + 1), "row groups.*count="),
    ],
)
def test_a_damaged_state_is_refused(damage, message):
    *_, sparsity = trained(OutVector(2, True, "group"), ow.methods.SET(interval=2, end=100))
    state = sparsity.state_dict()
    before = sparsity.state_dict()["layers"]["5"]["rows"]
    damage(state["layers"]["5"])
    with pytest.raises(ValueError, match=message):
        sparsity.load_state_dict(state)
    assert torch.equal(sparsity.layers["5"].rows, before)


def test_clustered_rows_may_stand_in_any_group_but_whole():
    layout, plain = OutVector(4, cluster=True), OutVector(4)
    rows = torch.randperm(16, generator=generator(1)).int().view(4, 4)
    pattern = Pattern((16, 5), rows, torch.tensor([0, 2, 2, 3, 3]).int(), torch.tensor([0, 4, 1]).int())
    layout.check(pattern, 3)
    with pytest.raises(LayoutError, match="row groups differ"):
        plain.check(pattern, 3)
    with pytest.raises(LayoutError, match="row groups differ"):
        OutVector(2, cluster=True).check(pattern, 3)
    with pytest.raises(LayoutError, match="not 4"):
        layout.check(pattern, 4)


def test_options_are_checked_and_read_from_strings():
    assert repr(OutVector(4)) == "OutVector(v=4)"
    layout = OutVector(8, cluster=True, balance="group")
    assert resolve("layout", repr(layout), ow.layouts.Layout, ow.layouts) == layout != OutVector(8)
    assert resolve("layout", "out_vector(8, True, 'group')", ow.layouts.Layout, ow.layouts) == layout
    with pytest.raises(ValueError, match=r"balance='row'.*layer, group"):
        OutVector(8, balance="row")
    with pytest.raises(ValueError, match="cluster=1 "):
        OutVector(8, cluster=1)


@pytest.mark.parametrize("cluster", [False, True])
def test_masks_of_balanced_groups_are_counted(cluster):
    # Two groups of two rows, two of four columns in each: C(4, 2)^2.
    layout = OutVector(2, cluster, "group")
    assert ow.analysis.mask_diversity(layout, (4, 4), 0.5) == 36
    assert ow.analysis.mask_diversity(layout, (4, 4), 0.5, formula="brute") == 36
    assert ow.analysis.mask_diversity(OutVector(2, cluster), (4, 4), 0.5) == 70
