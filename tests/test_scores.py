"""Selection and membership against NumPy's own, on arrays of every kind: ties, padding, not a number, any order."""

import numpy as np
import pytest

from openwork import compiled
from openwork.scores import ascending, descending, highest, lowest, member


@pytest.fixture(params=["compiled", "python"], autouse=True)
def _either(request, monkeypatch):
    """With the native module and without it."""
    if request.param == "python":
        monkeypatch.setattr(compiled, "built", lambda: False)
    elif not compiled.built():
        pytest.skip("openwork._native is not built")


def cases():
    """Short arrays with many ties, and a long one that takes the paths for many ids."""
    random = np.random.default_rng(0)
    for _ in range(400):
        yield random.integers(-1, random.integers(1, 60), random.integers(0, 50))
    yield random.integers(0, 10**6, 200_000)


def test_member_is_isin():
    random = np.random.default_rng(1)
    found = 0
    for ids in cases():
        for few in (1, 7, max(1, len(ids))):
            ranked = np.sort(random.integers(0, max(2, ids.max(initial=1)), few))
            for asked in (ids, np.unique(ids), np.unique(ids) + 2**40):
                for held in (ranked, ranked + 2**40):
                    assert np.array_equal(member(asked, held), np.isin(asked, held))
                    found += int(member(asked, held).sum())
    assert found > 1000
    table = np.arange(12).reshape(3, 4)
    assert np.array_equal(member(table, np.array([2, 7])), np.isin(table, [2, 7]))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_descending_is_a_stable_argsort(dtype):
    for ids in cases():
        score = ids.astype(dtype)
        if dtype != np.int64 and len(score) > 4:
            score[:5] = 0.0, -0.0, np.nan, np.inf, np.nan
        assert np.array_equal(descending(score), np.argsort(-score, kind="stable"))


def test_lowest_and_highest_are_the_ends_of_a_stable_argsort():
    for score in cases():
        for n in (0, 1, len(score) // 3, len(score), len(score) + 1):
            assert np.array_equal(lowest(score, n), np.sort(np.argsort(score, kind="stable")[:n]))
            assert np.array_equal(highest(score, n), np.sort(np.argsort(-score, kind="stable")[:n]))


def test_ascending_sorts_and_leaves_alone_what_is_sorted():
    for ids in cases():
        assert np.array_equal(ascending(ids), np.sort(ids))
        two_runs = np.concatenate([np.sort(ids), np.sort(ids)])
        assert np.array_equal(ascending(two_runs), np.sort(two_runs))
    ids = np.arange(5)
    assert ascending(ids) is ids
