"""Row similarity, the q filter, clustering and the cut into groups, against brute force and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from openwork.layouts import ShuffledBlock, compiled, shuffled_block
from openwork.layouts.grouping import group_rows, intersections
from openwork.layouts.linkage import cluster
from openwork.layouts.settle import Weights
from openwork.pattern import Pattern, consecutive_rows

BUDGET = 64 * 2**20


@pytest.fixture(params=["compiled", "python"])
def _either(request, monkeypatch):
    """With the native module and without it."""
    if request.param == "python":
        monkeypatch.setattr(compiled, "built", lambda: False)
    elif not compiled.built():
        pytest.skip("openwork._native is not built")


either = pytest.mark.usefixtures("_either")


def partition(labels):
    """Labels as a set of sets, whatever the numbers."""
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def random_distances(n, seed):
    """Distinct distances, so that no merge hangs on a tie."""
    rng = np.random.default_rng(seed)
    condensed = rng.permutation(n * (n - 1) // 2).astype(np.float64) + 1
    return squareform(condensed / len(condensed))


@pytest.mark.parametrize("how", ["average", "complete"])
@pytest.mark.parametrize(("n", "n_clusters"), [(2, 1), (3, 2), (7, 3), (20, 1), (20, 20), (33, 8), (60, 7), (120, 15)])
def test_clusters_are_those_of_scipy(how, n, n_clusters):
    for seed in range(5):
        distance = random_distances(n, seed)
        expected = fcluster(linkage(squareform(distance), how), n_clusters, "maxclust")
        labels = cluster(distance.astype(np.float32), n_clusters, how)
        assert partition(labels) == partition(expected)
        assert len(partition(labels)) == n_clusters


@pytest.mark.parametrize("how", ["average", "complete"])
def test_ties_end_and_give_the_asked_number_of_clusters(how):
    for fill in (0.0, 0.5, 1.0):
        distance = np.full((17, 17), fill, dtype=np.float32)
        assert len(np.unique(cluster(distance, 5, how))) == 5
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (40, 40))
    distance = np.maximum(coarse, coarse.T).astype(np.float32) / 2
    assert len(np.unique(cluster(distance, 10, how))) == 10


def masks(seed, rows, cols, density):
    return np.random.default_rng(seed).random((rows, cols)) < density


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 40), st.floats(0, 1), st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_intersections_are_counted_exactly_in_any_number_of_chunks(seed, rows, cols, density, budget):
    mask = masks(seed, rows, cols, density)
    first = seed % rows
    common = intersections(np.flatnonzero(mask), mask.shape, range(first, rows), budget)
    inside = mask[first:].astype(int)
    np.testing.assert_array_equal(common, inside @ inside.T)


def brute_force_participants(mask, q):
    """Rows with more than a share q of their non-zeros in common with some other row."""
    taking = []
    for i, row in enumerate(mask):
        shares = [(row & other).sum() / row.sum() for j, other in enumerate(mask) if j != i and row.any()]
        if shares and max(shares) > q:
            taking.append(i)
    return taking


def brute_force_order(mask, height, q, how):
    """DSB sec. 4, step by step: filter, Jaccard, SciPy's clusters, the largest first, the others after them."""
    taking = brute_force_participants(mask, q)
    rest = [i for i in range(len(mask)) if i not in taking]
    if len(taking) <= height:
        return taking + rest
    chosen = mask[taking]
    jaccard = np.array([[(a & b).sum() / (a | b).sum() for b in chosen] for a in chosen])
    distance = squareform(1 - jaccard, checks=False)
    labels = fcluster(linkage(distance, how), max(1, len(taking) // height), "maxclust")
    groups = sorted(partition(labels), key=lambda members: (-len(members), min(members)))
    return [taking[i] for members in groups for i in sorted(members)] + rest


@either
@pytest.mark.parametrize("how", ["average", "complete"])
@pytest.mark.parametrize("q", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("rows", "height"), [(24, 4), (26, 4), (15, 16), (31, 3)])
def test_groups_are_those_of_the_definition(how, q, rows, height):
    for seed in range(6):
        # Many columns and rows of uneven density: similarities hardly ever tie.
        rng = np.random.default_rng(seed)
        mask = rng.random((rows, 3000)) < rng.uniform(0.05, 0.6, (rows, 1))
        groups = group_rows(np.flatnonzero(mask), mask.shape, height, q=q, linkage=how, budget=BUDGET).numpy()
        order = brute_force_order(mask, height, q, how)
        cut = [sorted(order[i : i + height]) for i in range(0, rows, height)]
        assert [[r for r in group if r >= 0] for group in groups.tolist()] == cut


@either
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30), st.floats(0, 1), st.integers(1, 9), st.integers(99, 4000))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_stands_in_one_group_whatever_the_budget(seed, rows, cols, density, height, budget):
    mask = masks(seed, rows, cols, density)
    groups = group_rows(np.flatnonzero(mask), mask.shape, height, q=0.2, linkage="average", budget=budget)
    assert groups.shape == (-(-rows // height), height)
    members = groups.flatten().tolist()
    assert sorted(r for r in members if r >= 0) == list(range(rows))
    assert all(r >= 0 for r in members[: (groups.shape[0] - 1) * height])


@either
def test_hidden_groups_are_found():
    """Rows that share their columns meet, however they were shuffled."""
    rng = np.random.default_rng(1)
    owner = rng.permutation(np.repeat(np.arange(8), 4))
    mask = np.zeros((32, 80), dtype=bool)
    for row, group in enumerate(owner):
        mask[row, group * 10 : group * 10 + 10] = True
        mask[row, rng.integers(80)] = True
    groups = group_rows(np.flatnonzero(mask), mask.shape, 4, q=0.2, linkage="average", budget=BUDGET)
    assert all(len(set(owner[group])) == 1 for group in groups.numpy())


@either
def test_rows_with_little_in_common_keep_their_order():
    mask = np.eye(12, 30, dtype=bool)
    groups = group_rows(np.flatnonzero(mask), mask.shape, 4, q=0.2, linkage="average", budget=BUDGET)
    assert groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@either
def test_the_share_is_of_the_rows_own_nonzeros_and_must_exceed_q():
    # Row 0 has 10 non-zeros, 2 of them shared: exactly q.  Row 1 has 4, 2 of them shared: more.
    mask = np.zeros((3, 30), dtype=bool)
    mask[0, :10] = True
    mask[1, 8:12] = True
    mask[2, 20:25] = True
    assert brute_force_participants(mask, 0.2) == [1]
    groups = group_rows(np.flatnonzero(mask), mask.shape, 1, q=0.2, linkage="average", budget=BUDGET)
    assert groups.flatten().tolist() == [1, 0, 2]


def structured(rows, cols, seed):
    """Shuffled groups of rows that share columns, some of them alike, some empty, some with nothing in common."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, max(1, rows // 9), rows)
    mask = (owner[:, None] == np.arange(cols) % max(1, rows // 9)) ^ (rng.random((rows, cols)) < 0.03)
    mask[rng.random(rows) < 0.1] = mask[0]
    mask[rng.random(rows) < 0.1] = False
    return mask


@pytest.mark.skipif(not compiled.built(), reason="openwork._native is not built")
@pytest.mark.parametrize("how", ["average", "complete"])
@pytest.mark.parametrize("q", [0.0, 0.2])
@pytest.mark.parametrize(("rows", "cols", "height"), [(1, 5, 4), (16, 70, 16), (50, 64, 8), (131, 300, 16), (700, 90, 32)])
def test_the_native_module_changes_no_group(how, q, rows, cols, height, monkeypatch):
    alike = (np.ones((rows, cols), dtype=bool), np.zeros((rows, cols), dtype=bool))
    for mask in (structured(rows, cols, 0), masks(1, rows, cols, 0.1), *alike):
        for budget in (BUDGET, 16 * 40**2):
            flat = np.flatnonzero(mask)
            found = group_rows(flat, mask.shape, height, q=q, linkage=how, budget=budget)
            with monkeypatch.context() as patch:
                patch.setattr(compiled, "built", lambda: False)
                expected = group_rows(flat, mask.shape, height, q=q, linkage=how, budget=budget)
            assert torch.equal(found, expected)


def plain_blocks(rows, flat, score, cols, block, count):
    """Every run of ``block`` columns by falling l1 norm, the best of all groups first: the definition, one step at a time."""
    dense = np.zeros((rows, cols))
    dense.ravel()[flat] = score
    runs = []
    for group in range(rows // block):
        norm = dense[group * block : (group + 1) * block].sum(0)
        order = sorted(range(cols), key=lambda c: (-norm[c], c))
        for first in range(0, cols, block):
            run = order[first : first + block]
            runs.append((-norm[run].sum(), group, first, sorted(run)))
    kept = sorted(sorted(runs)[:count], key=lambda run: run[1:3])
    return [column for *_, run in kept for column in run]


@pytest.mark.parametrize("budget", [BUDGET, 8 * 24 * 48 * 2])
@pytest.mark.parametrize("density", [0.05, 0.4, 1.0])
def test_the_best_blocks_are_those_of_the_definition_at_once_or_in_chunks(budget, density, monkeypatch):
    monkeypatch.setattr(shuffled_block, "TOPOLOGY_BUDGET", budget)
    rows, cols, block = 24, 48, 4
    now = Pattern(
        (rows, cols), consecutive_rows(rows, block), torch.zeros(7, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    )
    for seed in range(5):
        rng = np.random.default_rng(seed)
        flat = rng.permutation(np.flatnonzero(rng.random(rows * cols) < density))
        # Whole numbers tie; their sums do not depend on an order.
        score = rng.integers(1, 4, len(flat)).astype(np.float64)
        for count in (1, 17, 60, 72):
            pattern = ShuffledBlock(block).project(now, Weights(flat, score), count, regroup=False)
            assert pattern.cols.tolist() == plain_blocks(rows, flat, score, cols, block, count)
