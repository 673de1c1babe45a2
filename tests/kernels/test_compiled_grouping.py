"""Compiled row similarity and clustering against the Python functions that say what they do: bit for bit, ties included."""

import numpy as np
import pytest
import torch
from builds import assert_runs

from openwork import _native
from openwork.layouts import compiled
from openwork.layouts.grouping import intersections
from openwork.layouts.linkage import cluster

BUDGET = 64 * 2**20
linkages = pytest.mark.parametrize("linkage", ["average", "complete"])


@pytest.fixture
def threads():
    """``torch.set_num_threads``, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def jaccard(mask):
    """float32 distances of the rows of a mask, with as many ties as it has equal pairs."""
    common = mask.astype(np.float32) @ mask.T.astype(np.float32)
    size = common.diagonal()
    return np.float32(1) - common / np.maximum(size[:, None] + size - common, np.float32(1))


def distances(kind, n, seed):
    rng = np.random.default_rng(seed)
    if kind == "masks":
        return jaccard(rng.random((n, 50)) < rng.uniform(0.05, 0.6, (n, 1)))
    if kind == "hidden groups":
        owner = rng.integers(0, max(1, n // 7), n)
        return jaccard((owner[:, None] == np.arange(40) // 3) ^ (rng.random((n, 40)) < 0.02))
    if kind == "few values":
        coarse = rng.integers(0, 3, (n, n))
        return np.maximum(coarse, coarse.T).astype(np.float32) / 2
    if kind == "equal":
        return np.full((n, n), 0.5, dtype=np.float32)
    free = rng.random((n, n)).astype(np.float32)
    return np.maximum(free, free.T)


@linkages
@pytest.mark.parametrize("kind", ["masks", "hidden groups", "few values", "equal", "free"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 31, 64, 65, 130, 257])
def test_clusters_are_those_of_the_reference(kind, linkage, n):
    for seed in range(2):
        distance = distances(kind, n, seed)
        for n_clusters in {1, min(2, n), max(1, n // 16), max(1, n // 3), n}:
            expected = cluster(distance.copy(), n_clusters, linkage)
            np.testing.assert_array_equal(compiled.cluster(distance.copy(), n_clusters, linkage), expected)


@linkages
@pytest.mark.parametrize("kind", ["masks", "few values"])
def test_clusters_of_700_rows(kind, linkage):
    distance = distances(kind, 700, 0)
    expected = cluster(distance.copy(), 43, linkage)
    np.testing.assert_array_equal(compiled.cluster(distance, 43, linkage), expected)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 64), (4, 65), (5, 63), (37, 1000), (64, 27), (130, 4608), (700, 130)])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_common_columns_are_those_of_the_reference(rows, cols, density, n_threads, threads):
    threads(n_threads)
    rng = np.random.default_rng(rows + cols)
    flat = np.flatnonzero(rng.random((rows, cols)) < density)
    rng.shuffle(flat)
    for panel in (range(rows), range(rows // 3, rows), range(rows // 2 + 1)):
        # The last budget holds 64 columns at a time, the others several words or all of them.
        for budget in (BUDGET, 3 * 64 * len(panel), 1):
            found = compiled.intersections(flat, (rows, cols), panel, budget)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, intersections(flat, (rows, cols), panel, BUDGET))


def test_work_for_several_threads_and_positions_of_more_than_32_bits(threads):
    rows, cols = 9, 2**29 + 77
    rng = np.random.default_rng(0)
    col = np.unique(rng.integers(0, cols, 400))
    mask = rng.random((rows, len(col))) < 0.3
    flat = (np.arange(rows)[:, None] * np.int64(cols) + col)[mask]
    assert flat.max() > 2**32
    expected = mask.astype(np.float32) @ mask.T.astype(np.float32)
    for n_threads in (1, 3):
        threads(n_threads)
        np.testing.assert_array_equal(compiled.intersections(flat, (rows, cols), range(rows), BUDGET), expected)


def test_positions_outside_the_matrix_are_passed_over():
    flat = np.array([-1, 0, 5, 19, 20, 2**62, -(2**62)], dtype=np.int64)
    np.testing.assert_array_equal(compiled.intersections(flat, (2, 10), range(2), BUDGET), [[2, 0], [0, 1]])


SQUARE = np.zeros((4, 4), dtype=np.float32)
READ_ONLY = SQUARE.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("distance", "n_clusters", "message"),
    [
        (SQUARE.astype(np.float64), 2, "float32 square, got float64"),
        (SQUARE[:3].copy(), 2, r"of shape \(3, 4\)"),
        (SQUARE[0], 1, r"of shape \(4,\)"),
        (np.zeros((0, 0), dtype=np.float32), 1, r"of shape \(0, 0\)"),
        (np.zeros((4, 8), dtype=np.float32)[:, ::2], 2, "contiguous and writable"),
        (READ_ONLY, 2, "contiguous and writable"),
        (SQUARE, 0, r"n_clusters=0 must lie in \[1, 4\]"),
        (SQUARE, 5, r"n_clusters=5 must lie in \[1, 4\]"),
    ],
)
def test_clustering_refuses(distance, n_clusters, message):
    with pytest.raises(ValueError, match=message):
        compiled.cluster(distance, n_clusters)


@pytest.mark.parametrize(
    ("flat", "rows", "message"),
    [
        (np.zeros(3, dtype=np.int32), range(4), "int64, got int32"),
        (np.zeros((3, 1), dtype=np.int64), range(4), r"of shape \(3, 1\)"),
        (np.zeros(3, dtype=np.int64), range(5), r"range\(0, 5\) must be consecutive rows"),
        (np.zeros(3, dtype=np.int64), range(-1, 3), "must be consecutive rows"),
        (np.zeros(3, dtype=np.int64), range(2, 2), "must be consecutive rows"),
        (np.zeros(3, dtype=np.int64), range(0, 4, 2), "must be consecutive rows"),
    ],
)
def test_counting_refuses(flat, rows, message):
    with pytest.raises(ValueError, match=message):
        compiled.intersections(flat, (4, 7), rows, BUDGET)


def outcome(distance, n_clusters, linkage):
    """The labels, or what the native module said was wrong."""
    try:
        return set(compiled.cluster(distance, n_clusters, linkage).tolist())
    except ValueError as refused:
        return str(refused)


@linkages
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_distances_that_make_no_sense_end(linkage, fill):
    """Whatever is in the matrix, the search ends within its memory: with an error or with labels."""
    rng = np.random.default_rng(0)
    for trial in range(40):
        distance = rng.random((23, 23)).astype(np.float32)
        if trial % 2:
            distance[rng.random((23, 23)) < 0.3] = fill
        assert outcome(distance, 3, linkage) in ("the distances are not finite or not symmetric", {0, 1, 2})
    with pytest.raises(ValueError, match="not finite or not symmetric"):
        compiled.cluster(np.full((5, 5), abs(fill), dtype=np.float32), 2, linkage)


CHECK = """
import torch
from openwork import _native
from test_compiled_grouping import *
assert _native.isa() == {isa!r}, _native.isa()
for kind in ("masks", "few values"):
    for linkage in ("average", "complete"):
        test_clusters_are_those_of_the_reference(kind, linkage, 65)
test_common_columns_are_those_of_the_reference(130, 4608, 0.5, 2, torch.set_num_threads)
"""


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_every_build_says_the_same(isa):
    assert_runs(CHECK, isa)
