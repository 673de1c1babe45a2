"""Layouts against brute force: counts, pooling, candidates, and drop and grow in one projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import layouts, methods
from openwork.budgets import active_weights
from openwork.layouts import Block, LayoutError, OutVector, RefitLayout, ShuffledBlock, Unstructured
from openwork.names import resolve
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import Proposal, Scores, highest, lowest

ATOMIC = [Unstructured(), Block(4, 4), Block(2, 3), Block(1, 5), OutVector(4), OutVector(3)]
ALL = [*ATOMIC, ShuffledBlock(4, 4), ShuffledBlock(3, 2), ShuffledBlock(1, 1)]
SHAPES = [(16, 24), (13, 22), (4, 9), (5, 4), (12, 3, 3, 3), (7, 5, 1, 2)]

every_layout = pytest.mark.parametrize("layout", ALL, ids=repr)
every_atomic = pytest.mark.parametrize("layout", ATOMIC, ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(layout, dims, density=0.4, seed=0):
    count = layout.fit(dims, density)
    return layout.initial(dims, count, torch.randn(dims, generator=generator(seed)), generator(seed)), count


@every_layout
@given(st.sampled_from(SHAPES), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_fit_gives_the_fewest_units_that_reach_the_count(layout, dims, density):
    wanted = active_weights(math.prod(dims), density)
    pattern, count = made(layout, dims, density)
    layout.check(pattern, count)
    assert pattern.nnz >= wanted
    if count:
        fewer = layout.initial(dims, count - 1, torch.randn(dims), generator())
        layout.check(fewer, count - 1)
        assert fewer.nnz < wanted
        assert pattern.nnz - fewer.nnz <= math.prod(layout.block)


@every_layout
def test_density_zero_and_one(layout):
    for dims in SHAPES:
        assert made(layout, dims, 0.0)[0].nnz == 0
        assert made(layout, dims, 1.0)[0].nnz == math.prod(dims)


@every_layout
def test_counts_of_divisible_shapes_by_hand(layout):
    m, n = layout.block
    # 12 m x 10 n has 120 units; 0.3 of the weights are 36 units, 0.301 are 36.12.
    assert layout.fit((12 * m, 10 * n), 0.3) == 36
    assert layout.fit((12 * m, 10 * n), 0.301) == 37


def naive_atoms(layout, shape):
    """Atom id -> flat positions, for consecutive rows: tile g * T + t."""
    m, n = layout.block if not isinstance(layout, RefitLayout) else (layout.block[0], 1)
    tiles = -(-shape[1] // n)
    found = {}
    for r in range(shape[0]):
        for c in range(shape[1]):
            found.setdefault((r // m) * tiles + c // n, []).append(r * shape[1] + c)
    return found


@every_atomic
@pytest.mark.parametrize("dims", SHAPES)
def test_atoms_and_pooling_are_those_of_the_tiles(layout, dims):
    pattern, _ = made(layout, dims)
    tiles = naive_atoms(layout, pattern.shape)
    ids = layout.atoms(pattern).tolist()
    assert len(set(ids)) == len(ids)
    assert layout.n_atoms(pattern) == len(tiles)
    at = pattern.positions
    assert sorted(at[at >= 0].tolist()) == sorted(flat for i in ids for flat in tiles[i])
    scores = torch.rand(pattern.value_shape, dtype=torch.float64).masked_fill(at < 0, 0.0)
    dense = pattern.unpack(scores).flatten()
    expected = [float(dense[tiles[i]].mean()) for i in ids]
    assert layout.pool(pattern, scores).tolist() == pytest.approx(expected)


@every_layout
@pytest.mark.parametrize("dims", SHAPES)
def test_samples_are_inactive_distinct_and_exact_in_number(layout, dims):
    pattern, _ = made(layout, dims)
    active = set(layout.atoms(pattern).tolist())
    free = layout.n_atoms(pattern) - len(active)
    for n in (0, 1, 3, free, free + 10):
        ids = layout.sample_inactive(pattern, n, generator(n)).ids.tolist()
        ids = [i for i in ids if i >= 0]
        assert len(ids) >= min(n, free)
        assert len(set(ids)) == len(ids)
        assert not set(ids) & active
        assert all(0 <= i < layout.n_atoms(pattern) for i in ids)


def test_samples_are_uniform():
    layout = Unstructured()
    pattern, _ = made(layout, (5, 8), 0.5)
    draw, trials = generator(1), 4000
    counts = np.zeros(40)
    for _ in range(trials):
        counts[layout.sample_inactive(pattern, 3, draw).ids.numpy()] += 1
    free = np.setdiff1d(np.arange(40), layout.atoms(pattern).numpy())
    expected = trials * 3 / len(free)
    assert counts.sum() == trials * 3
    assert ((counts[free] - expected) ** 2 / expected).sum() < 48, "chi-square, 19 degrees of freedom"


@every_atomic
@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("n", [1, 4, 1000])
def test_the_best_candidates_do_not_depend_on_the_chunks(layout, dims, n):
    pattern, _ = made(layout, dims)
    tiles = naive_atoms(layout, pattern.shape)
    dense = torch.rand(pattern.shape, dtype=torch.float64)
    kept = layout.atoms(pattern)[::2]
    height = pattern.height
    padded = torch.zeros(pattern.groups * height, pattern.shape[1], dtype=torch.float64)
    padded[: pattern.shape[0]] = dense
    # What stands in padded rows must not matter.
    padded[pattern.shape[0] :] = 99.0
    padded = padded.view(pattern.groups, height, -1)
    outside = {i: float(dense.flatten()[flat].mean()) for i, flat in tiles.items() if i not in set(kept.tolist())}
    ranked = sorted(outside, key=lambda i: -outside[i])
    for step in (1, 2, pattern.groups):
        chunks = ((first, padded[first : first + step]) for first in range(0, pattern.groups, step))
        scores = layout.best_inactive(pattern, kept, chunks, n)
        offered = dict(zip(scores.ids.tolist(), scores.value.tolist(), strict=True))
        assert set(ranked[:n]) <= set(offered), "the best are among those offered"
        assert offered == {i: pytest.approx(outside[i]) for i in offered}


@every_atomic
@given(st.sampled_from(SHAPES), st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_stays_and_the_best_candidates_come(layout, dims, seed, share):
    rng = np.random.default_rng(seed)
    pattern, count = made(layout, dims, rng.uniform(0.1, 0.6), seed)
    active = layout.atoms(pattern).numpy()
    keep = rng.permutation(len(active)).astype(np.float64)
    n_drop = int(share * len(active))
    free = rng.permutation(np.setdiff1d(np.arange(layout.n_atoms(pattern)), active))
    proposal = Proposal(
        torch.from_numpy(keep), n_drop, Scores(torch.arange(len(free), 0, -1).double(), torch.from_numpy(free)), count
    )
    revised = layout.revise(pattern, proposal)
    layout.check(revised, count)
    kept = active[keep >= n_drop]
    now = layout.atoms(revised).numpy()
    assert set(kept) <= set(now), "nothing falls that the method keeps"
    # The classes that ragged edges make keep their share; within each the best come first.
    sizes = {i: len(flat) for i, flat in naive_atoms(layout, pattern.shape).items()}
    edges = {
        i: (size, i % -(-pattern.shape[1] // layout.block[1]), i // -(-pattern.shape[1] // layout.block[1]))
        for i, size in sizes.items()
    }
    kind = {i: class_of(layout, pattern.shape, edges[i]) for i in sizes}
    for own in set(kind.values()):
        room = sum(kind[i] == own for i in active) - sum(kind[i] == own for i in kept)
        fresh = [i for i in free if kind[i] == own][:room]
        fallen = sorted((i for i in active[keep < n_drop] if kind[i] == own), key=lambda i: -keep[list(active).index(i)])
        expected = fresh + fallen[: room - len(fresh)]
        assert {i for i in now if kind[i] == own} == {i for i in kept if kind[i] == own} | set(expected)


def class_of(layout, shape, edge):
    """Whether a tile is cut by the lower and by the right edge."""
    _, column, row = edge
    m, n = layout.block
    return (row + 1) * m > shape[0], (column + 1) * n > shape[1]


@every_layout
@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("n_drop", [1, 2, 5])
def test_dropping_even_one_unit_moves_something(layout, dims, n_drop):
    """The freeze trap, at its sharpest: one unit goes, random ones may come, and the ragged edges must not hold it fast."""
    for seed in range(10):
        pattern, count = made(layout, dims, 0.4, seed)
        active = layout.atoms(pattern)
        if not 0 < len(active) < layout.n_atoms(pattern):
            continue
        keep = torch.rand(len(active), generator=generator(seed)) + 0.5
        gone = keep.argsort()[:n_drop].tolist()
        sizes = [int((pattern.positions >= 0).sum())]
        proposal = Proposal(keep, min(n_drop, len(active)), layout.sample_inactive(pattern, n_drop, generator(seed)), count)
        revised = layout.revise(pattern, proposal)
        layout.check(revised, count)
        assert revised.nnz == sizes[0]
        if not has_room(layout, pattern, [int(active[i]) for i in gone]):
            continue
        before, after = set(pattern.positions.flatten().tolist()), set(revised.positions.flatten().tolist())
        assert before != after, f"seed {seed}: dropped atoms {active[gone].tolist()} came back"


def has_room(layout, pattern, gone):
    """Whether a dropped unit could be another of its kind."""
    if isinstance(layout, RefitLayout):
        return True
    tiles = -(-pattern.shape[1] // layout.block[1])
    kinds = {i: class_of(layout, pattern.shape, (0, i % tiles, i // tiles)) for i in range(layout.n_atoms(pattern))}
    active = set(layout.atoms(pattern).tolist())
    return any(kinds[i] == kinds[j] for i in gone for j in kinds if j not in active)


@every_layout
def test_scores_of_another_length_are_refused(layout):
    pattern, count = made(layout, (16, 24))
    free = layout.sample_inactive(pattern, 2, generator())
    with pytest.raises((LayoutError, ValueError), match="keep has 2 scores"):
        layout.revise(pattern, Proposal(torch.rand(2), 1, free, count))


@every_layout
def test_check_refuses_what_is_not_its_own(layout):
    pattern, count = made(layout, (16, 24))
    with pytest.raises(LayoutError, match=str(count + 1)):
        layout.check(pattern, count + 1)
    other = OutVector(5) if layout.height != 5 else OutVector(6)
    foreign, _ = made(other, (16, 24))
    with pytest.raises(ValueError, match=r"group|partly|rows"):
        layout.check(foreign, count)


@pytest.mark.parametrize("layout", [Block(4, 4), OutVector(4), Unstructured()], ids=repr)
def test_fixed_rows_may_not_be_shuffled(layout):
    pattern, count = made(layout, (16, 24))
    shuffled = Pattern(pattern.shape, pattern.rows.flatten().flip(0).view_as(pattern.rows), pattern.offsets, pattern.cols)
    shuffled.validate()
    with pytest.raises(LayoutError, match="row"):
        layout.check(shuffled, count)


def test_half_a_block_is_refused():
    layout = Block(2, 2)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:2, :3] = True
    with pytest.raises(LayoutError, match="partly"):
        layout.check(Pattern.from_mask(mask, 2), 2)


def test_small_layers_are_named():
    assert Block(4, 4).unfit((4, 4)) is None
    assert "3 x 36" in Block(4, 4).unfit((3, 4, 3, 3))
    assert Block(4, 4).unfit((8, 3)) is not None
    assert Unstructured().unfit((1, 1)) is None
    assert OutVector(8).unfit((7, 100)) is not None


@pytest.mark.parametrize("bad", [0, -1, 1.5, "4", None])
def test_sizes_must_be_positive_integers(bad):
    for make in (lambda: Block(bad, 4), lambda: ShuffledBlock(bad, 4)):
        with pytest.raises(ValueError, match=f"m={bad!r}"):
            make()
    for kind in (Block, ShuffledBlock):
        if bad is None:
            assert kind(4, bad).block == (4, 4)
            continue
        with pytest.raises(ValueError, match=f"n={bad!r}"):
            kind(4, bad)
    with pytest.raises(ValueError, match=f"v={bad!r}"):
        OutVector(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": -0.1}, r"q=-0\.1.*\[0, 1\]"),
        ({"q": 1.1}, r"q=1\.1.*\[0, 1\]"),
        ({"linkage": "ward"}, "linkage='ward'.*average, complete"),
    ],
)
def test_shuffled_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ShuffledBlock(4, 4, **options)


def test_layouts_are_values():
    assert Block(2, 3) == Block(2, 3) != Block(3, 2)
    assert len({Block(2, 3), Block(2, 3), OutVector(2), Unstructured()}) == 3
    assert eval(repr(ShuffledBlock(4, 2, q=0.1)), vars(layouts)) == ShuffledBlock(4, 2, q=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Unstructured()),
        ("Unstructured()", Unstructured()),
        ("block(2, 3)", Block(2, 3)),
        ("shuffled_block(16,16)", ShuffledBlock(16, 16)),
        ("ShuffledBlock(16, n=8, q=0.5)", ShuffledBlock(16, 8, q=0.5)),
        (" out_vector(v=8) ", OutVector(8)),
    ],
)
def test_layouts_come_from_strings(text, expected):
    assert resolve("layout", text, layouts.Layout, layouts) == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("blok(4, 4)", ValueError, "layout='blok.*Block, OutVector, ShuffledBlock, Unstructured"),
        ("", ValueError, "layout=''"),
        ("block(4,", ValueError, "layout='block"),
        ("block(4, x)", ValueError, "layout='block.*literal"),
        ("block(*[1, 2])", ValueError, "layout="),
        ("block(**{'m': 1})", ValueError, "layout="),
        ("__import__('os')", ValueError, "layout="),
        ("layouts.Block(1, 2)", ValueError, "layout="),
        ("block", TypeError, r"layout='block'.*Block\(m: int, n: int\)|layout='block'.*Block\("),
        ("block(1, 2, 3)", TypeError, "layout='block"),
        ("block(0, 2)", ValueError, "m=0"),
        (3, TypeError, "layout=3"),
        (None, TypeError, "layout=None"),
        (Block, TypeError, "layout=<class"),
        ("Layout", ValueError, "layout='Layout'"),
    ],
)
def test_strings_that_name_no_layout(text, error, message):
    with pytest.raises(error, match=message):
        resolve("layout", text, layouts.Layout, layouts)


def test_methods_come_from_strings():
    method = resolve("method", "dsb(lift='mean', interval=5)", methods.Method, methods)
    assert (type(method), method.lift, method.interval) == (methods.DSB, "mean", 5)
    assert type(resolve("method", "rigl", methods.Method, methods)) is methods.RigL
    with pytest.raises(ValueError, match=r"method='rigel'.*DSB, GSE, MEST, RigL, SET, Static"):
        resolve("method", "rigel", methods.Method, methods)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(-2, 40))
@settings(max_examples=100, deadline=None)
def test_selection_is_exact_with_ties_to_the_lowest_index(values, n):
    score = np.array(values, dtype=np.float64)
    ranked = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert lowest(score, n).tolist() == sorted(ranked[: max(0, n)])
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert highest(score, n).tolist() == sorted(ranked[: max(0, n)])


def test_a_full_width_projection_takes_the_greatest_columns():
    """Shuffled blocks one column wide in kept row groups are the global top of all group columns."""
    layout = ShuffledBlock(4, 1)
    pattern, count = made(layout, (16, 24), 0.3)
    keep = torch.rand(len(layout.atoms(pattern)))
    grow = layout.sample_inactive(pattern, 9, generator())
    revised = layout.revise(pattern, Proposal(keep, 9, grow, count))
    kept = set(layout.atoms(pattern)[keep.argsort()[9:]].tolist())
    assert set(layout.atoms(revised).tolist()) == kept | set(grow.ids.tolist())
    assert torch.equal(revised.rows, pattern.rows)
    assert not torch.equal(pattern.rows, consecutive_rows(16, 4)) or pattern.groups == 4
