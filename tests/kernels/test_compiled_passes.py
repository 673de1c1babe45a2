"""Compiled passes of a topology update against the Python that says what they do: bit for bit, whatever they are given."""

import numpy as np
import pytest
import torch

import openwork as ow
from openwork import compiled, pattern, scores
from openwork.layouts import Block, OutVector, Unstructured
from openwork.methods import draws
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import Proposal, Scores

FAR = np.array([-(2**63), -(2**63) + 1, -1, 0, 1, 2**62, 2**63 - 1])


@pytest.fixture(params=[1, 3], autouse=True)
def _threads(request):
    """Whatever the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def python(monkeypatch):
    """Calls a function as if the native module were not there."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "built", lambda: False)
            return function(*arguments)

    return call


def arrays(seed):
    """Ids in any order with repeats, padding and gaps: none, one, few, as many as a thread of its own is worth."""
    random = np.random.default_rng(seed)
    yield np.empty(0, dtype=np.int64)
    yield np.array([5])
    yield np.array([-1, -1, -1])
    yield FAR
    for n in (2, 7, 63, 64, 65, 500):
        for top in (1, 64, 3 * n, 200 * n):
            yield random.integers(-1, top, n)
            yield 2**63 - 1 - random.integers(0, top, n)
    yield random.integers(0, 10**6, 40_000)
    yield np.sort(random.choice(10**6, 40_000, replace=False))


def test_absent_and_member_are_those_of_sets(python):
    reached = 0
    for ids in arrays(0):
        for other in arrays(1):
            ranked = np.sort(other)
            expected = np.setdiff1d(ids, ranked)
            for found in (scores.absent(ids, ranked), python(scores.absent, ids, ranked), compiled.absent(ids, other)):
                assert found is None or np.array_equal(found, expected)
            found = compiled.member(ids, other)
            reached += found is not None
            assert found is None or np.array_equal(found, np.isin(ids, other))
            assert np.array_equal(scores.member(ids, ranked), np.isin(ids, ranked))
    assert reached > 500


def test_ids_too_far_apart_for_a_table_are_left_to_python():
    assert compiled.absent(FAR, FAR) is None
    assert compiled.member(FAR, FAR) is None
    assert compiled.absent(np.array([0, 2**40]), np.array([0])) is None
    assert scores.absent(np.array([2**40, 0, 2**40]), np.array([0])).tolist() == [2**40]


def test_unlisted_is_what_no_column_stands_for():
    for shape, mask, random in matrices():
        now = Pattern.from_mask(torch.from_numpy(mask))
        for n in (0, 5, 2 * mask.size):
            flat = random.integers(0, mask.size, n)
            found = compiled.unlisted((now.offsets.numpy(), now.cols.numpy()), shape[1], flat)
            assert mask.size > 64 * n or np.array_equal(found, np.setdiff1d(flat, np.flatnonzero(mask)))


def test_ids_outside_a_pattern_are_left_to_python():
    assert compiled.unlisted(GOOD, 5, ids(10)) is None
    assert compiled.unlisted(GOOD, 5, ids(-1)) is None
    assert compiled.unlisted(GOOD, 2**20, ids(1)) is None
    assert compiled.unlisted(index([0, 9, 3], [1, 4, 0]), 5, ids(1)) is None
    assert compiled.unlisted(index([0, 2, 3], [-(2**31), 2**31 - 1, 0]), 5, ids(1, 5, 9)).tolist() == [1, 9]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8])
def test_without_is_delete(dtype, python):
    random = np.random.default_rng(0)
    for n in (0, 1, 2, 50, 1000):
        items = random.integers(-100, 100, n).astype(dtype)
        for share in (0.0, 0.2, 1.0):
            at = np.flatnonzero(random.random(n) < share)
            expected = np.delete(items, at)
            for found in (scores.without(items, at), python(scores.without, items, at)):
                assert found.dtype == dtype
                assert np.array_equal(found, expected)


def matrices():
    """Masks, and how many of their columns may be there."""
    random = np.random.default_rng(0)
    for shape in ((1, 1), (1, 70), (40, 1), (13, 29), (300, 400)):
        for density in (0.0, 0.1, 0.6, 1.0):
            yield shape, random.random(shape) < density, random


def test_ids_are_split_and_joined_as_in_python(python):
    for shape, mask, _ in matrices():
        ids = np.flatnonzero(mask)
        for layout, height in ((Unstructured(), 1), (OutVector(4), 4)):
            rows = consecutive_rows(shape[0] * height, height)
            whole = (shape[0] * height, shape[1])
            built, reference = layout.build(whole, ids, rows), python(layout.build, whole, ids, rows)
            assert pattern.same_pattern(built, reference)
            assert built.offsets.dtype == built.cols.dtype == torch.int32
            for found in (layout.atoms(built), python(layout.atoms, built)):
                assert found.dtype == torch.int64
                assert np.array_equal(found, ids)


def test_values_are_carried_as_in_python(python):
    for shape, mask, random in matrices():
        for share in (0.0, 0.3, 1.0):
            other = torch.from_numpy(mask ^ (random.random(shape) < share))
            old, new = Pattern.from_mask(torch.from_numpy(mask)), Pattern.from_mask(other)
            for found, expected in zip(pattern.carry(old, new), python(pattern.carry, old, new), strict=True):
                assert found.dtype == expected.dtype == torch.int64
                assert torch.equal(found, expected)


def test_columns_in_any_order_are_carried_as_in_python(python):
    """Where they do not ascend, and where rows are named in another order or not at all."""
    random = np.random.default_rng(1)
    for rows in (torch.arange(6), torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([0, 2, 3, 4, 5, -1])):
        for shuffled in (0, 1, 2):
            two = []
            for which in range(2):
                counts = random.integers(0, 9, 6) * (rows.numpy() >= 0)
                columns = [
                    random.permutation(9)[:n] if shuffled > which else np.sort(random.permutation(9)[:n]) for n in counts
                ]
                offsets = torch.from_numpy(np.append(0, counts.cumsum()).astype(np.int32))
                cols = torch.from_numpy(np.concatenate(columns).astype(np.int32))
                two.append(Pattern((6, 9), rows.int()[:, None], offsets, cols).validate())
            for found, expected in zip(pattern.carry(*two), python(pattern.carry, *two), strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize("layout", [Unstructured(), OutVector(4), Block(1, 4), Block(3, 1)], ids=repr)
@pytest.mark.parametrize("candidates", ["inactive", "any", "padded", "twice", "few", "equal scores", "not a number"])
def test_layouts_move_as_in_python(layout, candidates, python):
    """Candidates that are active, dropped just now, padding or drawn twice; more units, fewer, as many."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 8), (10, 7), (120, 400)):
        count = layout.fit(shape, 0.3)
        now = layout.initial(shape, count, torch.randn(shape), generator)
        active = layout.atoms(now)
        for step, n_drop in ((0, 0), (0, len(active) // 4), (0, len(active)), (2, 3), (-3, 2)):
            keep = torch.rand(len(active), generator=generator)
            n = 2 if candidates == "few" else len(active)
            ids = torch.randint(layout.total_atoms(shape), (n,), generator=generator)
            if candidates == "inactive":
                ids = torch.from_numpy(scores.absent(ids.numpy(), np.sort(active.numpy())))
            elif candidates == "padded":
                ids[::3] = -1
            elif candidates == "twice":
                ids[1::2] = ids[: 2 * (len(ids) // 2) : 2]
            value = torch.rand(len(ids), generator=generator)
            if candidates == "equal scores":
                keep, value = (keep * 2).floor(), (value * 2).floor()
            elif candidates == "not a number":
                keep[::5] = value[::3] = torch.nan
            proposal = Proposal(keep, n_drop, Scores(value, ids), count + step)
            assert pattern.same_pattern(layout.revise(now, proposal), python(layout.revise, now, proposal))
            flat = torch.randint(shape[0] * shape[1], (50,), generator=generator).numpy()
            assert np.array_equal(layout.inactive_at(now, flat), python(layout.inactive_at, now, flat))


@pytest.mark.parametrize("n", [0, 1, 1000, 40_000])
def test_draws_are_those_of_python(n, python):
    gaps = torch.rand(500) * (torch.rand(500) < 0.1)
    weights = [None, torch.zeros(7), torch.tensor([0.0, 1.0, -3.0, 0.0]), gaps, torch.rand(300) ** 40, torch.tensor([2.0])]
    for weight in weights:
        size = 2**53 if weight is None else len(weight)
        two = [torch.Generator().manual_seed(n) for _ in range(2)]
        found, expected = draws.draw(size, weight, n, two[0]), python(draws.draw, size, weight, n, two[1])
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)
        assert torch.equal(two[0].get_state(), two[1].get_state())


def test_sums_that_make_no_sense_end():
    for sums in ([np.nan, 1.0], [1.0, np.nan], [np.inf, np.inf], [3.0, 1.0, 2.0], [-1.0, -2.0], [0.0], [1e-320, 2e-320]):
        found = compiled.draw_weighted(1, np.array(sums), len(sums) - 1, 100)
        assert found.min() >= 0
        assert found.max() < len(sums)


def index(offsets, cols):
    return np.array(offsets, dtype=np.int32), np.array(cols, dtype=np.int32)


GOOD = index([0, 2, 3], [1, 4, 0])


def ids(*some):
    return np.array(some, dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compiled.absent(np.zeros(3, dtype=np.int32), ids()), "ids must be contiguous one-dimensional int64"),
        (lambda: compiled.member(ids(1, 2, 3, 4)[::2], ids()), "ids must be contiguous"),
        (lambda: compiled.member(ids(1), np.zeros((1, 1), dtype=np.int64)), "others must be contiguous"),
        (lambda: compiled.without(np.zeros((2, 2)), ids(0)), "items must be contiguous"),
        (lambda: compiled.without(np.zeros(2), ids(0, 1, 2)), "more indices than items"),
        (lambda: compiled.without(np.zeros(4), ids(1, 1)), "do not ascend or leave"),
        (lambda: compiled.without(np.zeros(4), ids(3, 0)), "do not ascend or leave"),
        (lambda: compiled.without(np.zeros(4), ids(4)), "do not ascend or leave"),
        (lambda: compiled.without(np.zeros(4), ids(-1)), "do not ascend or leave"),
        (lambda: compiled.split(ids(0, 6), 2, 3), "outside the matrix"),
        (lambda: compiled.split(ids(-1, 3), 2, 3), "outside the matrix"),
        (lambda: compiled.split(ids(0, 2**63 - 1, 3), 2, 3), "do not ascend"),
        (lambda: compiled.split(ids(0), 2, 0), "size of the matrix"),
        (lambda: compiled.split(ids(0), -1, 3), "size of the matrix"),
        (lambda: compiled.join(*index([0, 2, 1, 3], [0, 1, 2]), 3), "offsets descend"),
        (lambda: compiled.join(*index([0, 1, 2], [0, 1, 2]), 3), "do not run from 0"),
        (lambda: compiled.join(*index([], []), 3), "one number more"),
        (lambda: compiled.join(ids(0, 1), GOOD[1], 3), "offsets must be contiguous one-dimensional int32"),
        (lambda: compiled.carry(GOOD, index([0, 3], [0, 1, 2]), 5), "before has 2 groups, after 1"),
        (lambda: compiled.carry(GOOD, GOOD, 4), "columns are out of range"),
        (lambda: compiled.carry(index([0, 2, 3], [-1, 4, 0]), GOOD, 5), "columns are out of range"),
        (lambda: compiled.carry(GOOD, index([0, 9, 3], [1, 4, 0]), 5), "offsets descend"),
        (lambda: compiled.exchange(index([0, 9, 3], [1, 4, 0]), 5, ids(), ids()), "offsets descend"),
        (lambda: compiled.exchange(GOOD, 5, ids(0, 1, 2, 3), ids()), "more columns go"),
        (lambda: compiled.draw_even(-1, 5, 3), "seed=-1"),
        (lambda: compiled.draw_even(2**64, 5, 3), "must lie in"),
        (lambda: compiled.draw_even(1, 0, 3), "size to draw from"),
        (lambda: compiled.draw_weighted(1, np.zeros(3, dtype=np.float32), 0, 3), "sums must be contiguous"),
        (lambda: compiled.draw_weighted(1, np.zeros(3), 3, 3), "no such last one"),
        (lambda: compiled.draw_weighted(1, np.zeros(0), 0, 3), "no sums"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("before", "gone", "fresh"),
    [
        (GOOD, [0, 0], []), (GOOD, [1, 0], []), (GOOD, [3], []), (GOOD, [-1], []), (GOOD, [], [2, 2]), (GOOD, [], [3, 2]),
        (GOOD, [], [-1]), (GOOD, [], [10]), (GOOD, [], [2**63 - 1]), (GOOD, [0], [4]), (GOOD, [], [0, -5, 3]),
        (index([0, 2, 3], [4, 1, 0]), [], [2]), (index([0, 2, 3], [1, 5, 0]), [], [2]), (index([0, 2, 3], [1, 1, 0]), [], [2]),
        (index([0, 2, 3], [-(2**31), 2**31 - 1, 0]), [0], [0, 2, 9]),
    ],
)  # fmt: skip
def test_an_exchange_out_of_order_is_left_to_python(before, gone, fresh):
    assert compiled.exchange(before, 5, ids(*gone), ids(*fresh)) is None


def test_an_exchange_in_order():
    found = compiled.exchange(GOOD, 5, ids(1), ids(0, 2, 9))
    assert [part.tolist() for part in found.after] == [[0, 3, 5], [0, 1, 2, 0, 4]]
    assert found.distinct
    assert found.new_at.tolist() == [0, 2, 4]
    assert found.origin.tolist() == [0, 0, 0, 2, 0]


def test_an_exchange_says_what_comes_back():
    found = compiled.exchange(GOOD, 5, ids(1), ids(0, 4, 9))
    assert [part.tolist() for part in found.after] == [[0, 3, 5], [0, 1, 4, 0, 4]]
    assert not found.distinct


def test_moves_are_those_of_carry():
    layout, generator = Unstructured(), torch.Generator().manual_seed(0)
    for shape in ((12, 8), (120, 400), (300, 700)):
        now = layout.initial(shape, layout.fit(shape, 0.3), torch.randn(shape), generator)
        active = layout.atoms(now)
        keep = torch.rand(len(active), generator=generator)
        inactive = layout.inactive_at(now, torch.randint(shape[0] * shape[1], (len(active),), generator=generator).numpy())
        grow = Scores(torch.rand(len(inactive), generator=generator), torch.from_numpy(inactive))
        for n_drop, step in ((0, 0), (len(inactive) // 2, 0), (len(inactive) // 2, 3), (5, -2)):
            proposal = Proposal(keep, n_drop, grow, len(active) + step)
            swap = layout.swapped(now, proposal)
            assert pattern.same_pattern(swap.new, layout.revise(now, proposal))
            values = torch.randn(len(active), 1)
            assert torch.equal(swap.moves.carried(values), pattern.carried(values, now, swap.new))


def test_columns_that_do_not_ascend_are_not_carried():
    assert compiled.carry(GOOD, index([0, 2, 3], [4, 1, 0]), 5) is None
    assert compiled.carry(GOOD, index([0, 2, 3], [4, 4, 0]), 5) is None
    source, target = compiled.carry(index([0, 2, 3], [4, 1, 0]), GOOD, 5)
    assert (source.tolist(), target.tolist()) == ([1, 0, 2], [0, 1, 2])


@pytest.mark.parametrize("sampling", ["uniform", "grabo", "graest"])
def test_training_is_the_same_with_and_without(sampling, python):
    def train():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.ReLU(), torch.nn.Linear(200, 30))
        sparsity = ow.sparsify(
            model, sparsity=0.8, layout="unstructured", method=ow.methods.GSE(sampling, interval=2, end=20), kernel="reference"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsity.attach(optimizer)
        changes = []
        for _ in range(9):
            model(torch.randn(8, 300)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            changes.append(dict(sparsity.last_update))
        return changes, model.state_dict()

    (changes, state), (expected_changes, expected) = train(), python(train)
    assert changes == expected_changes
    assert sum(change.grown for change in changes[-1].values()) > 1000
    # What went was what the method wanted to go.
    assert all(change.evicted == 0 and change.evicted_mass == 0 for change in changes[-1].values())
    assert all(torch.equal(state[key], expected[key]) for key in expected)
