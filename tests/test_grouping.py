"""Row similarity, the q filter, clustering and the cut into groups, against brute force and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from openwork.layouts.grouping import group_rows, intersections
from openwork.layouts.linkage import cluster

BUDGET = 64 * 2**20


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


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30), st.floats(0, 1), st.integers(1, 9), st.integers(99, 4000))
@settings(max_examples=80, deadline=None)
def test_every_row_stands_in_one_group_whatever_the_budget(seed, rows, cols, density, height, budget):
    mask = masks(seed, rows, cols, density)
    groups = group_rows(np.flatnonzero(mask), mask.shape, height, q=0.2, linkage="average", budget=budget)
    assert groups.shape == (-(-rows // height), height)
    members = groups.flatten().tolist()
    assert sorted(r for r in members if r >= 0) == list(range(rows))
    assert all(r >= 0 for r in members[: (groups.shape[0] - 1) * height])


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


def test_rows_with_little_in_common_keep_their_order():
    mask = np.eye(12, 30, dtype=bool)
    groups = group_rows(np.flatnonzero(mask), mask.shape, 4, q=0.2, linkage="average", budget=BUDGET)
    assert groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_the_share_is_of_the_rows_own_nonzeros_and_must_exceed_q():
    # Row 0 has 10 non-zeros, 2 of them shared: exactly q.  Row 1 has 4, 2 of them shared: more.
    mask = np.zeros((3, 30), dtype=bool)
    mask[0, :10] = True
    mask[1, 8:12] = True
    mask[2, 20:25] = True
    assert brute_force_participants(mask, 0.2) == [1]
    groups = group_rows(np.flatnonzero(mask), mask.shape, 1, q=0.2, linkage="average", budget=BUDGET)
    assert groups.flatten().tolist() == [1, 0, 2]
