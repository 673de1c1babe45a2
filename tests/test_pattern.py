"""The storage format: packing, masks, carrying, and what validate refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import openwork as ow
from openwork.pattern import Pattern, PatternError, carried, carry, consecutive_rows, same_pattern


def random_pattern(seed, n_rows, n_cols, height, density):
    """Rows in shuffled groups, any columns in any order; some groups may be empty."""
    rng = np.random.default_rng(seed)
    groups = max(1, -(-n_rows // height))
    ids = np.full(groups * height, -1)
    ids[:n_rows] = rng.permutation(n_rows)
    columns = [rng.permutation(n_cols)[: rng.binomial(n_cols, density)] for _ in range(groups)]
    offsets = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
    as_int = lambda a: torch.as_tensor(np.asarray(a), dtype=torch.int32)  # noqa: E731
    return Pattern((n_rows, n_cols), as_int(ids.reshape(groups, height)), as_int(offsets), as_int(np.concatenate(columns)))


patterns = st.builds(
    random_pattern, st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 15), st.integers(1, 6), st.floats(0, 1)
)


def entries(pattern, values):
    """{(row, column): value}, read off the index tensors."""
    found = {}
    for g in range(pattern.groups):
        for k in range(int(pattern.offsets[g]), int(pattern.offsets[g + 1])):
            for i, row in enumerate(pattern.rows[g].tolist()):
                if row >= 0:
                    found[row, int(pattern.cols[k])] = float(values[k, i])
    return found


@given(patterns)
@settings(max_examples=60, deadline=None)
def test_pack_and_unpack_are_inverse(pattern):
    pattern.validate()
    dense = torch.randn(pattern.shape, dtype=torch.float64) + 10
    values = pattern.pack(dense)
    assert tuple(values.shape) == pattern.value_shape
    found = entries(pattern, values)
    assert found == {at: float(dense[at]) for at in found}
    assert len(found) == pattern.nnz
    assert pattern.density == pytest.approx(pattern.nnz / dense.numel())
    mask = torch.zeros(pattern.shape, dtype=torch.bool)
    for at in found:
        mask[at] = True
    assert torch.equal(pattern.mask(), mask)
    assert torch.equal(pattern.unpack(values), dense * mask)
    assert torch.equal(pattern.pack(pattern.unpack(values)), values)
    assert not values[pattern.positions < 0].any()


@given(patterns)
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_unpack_is_zero_at_padding(pattern):
    values = torch.randn(pattern.value_shape, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(pattern.shape, dtype=torch.float64)
    (pattern.unpack(values) * scale).sum().backward()
    assert torch.equal(values.grad, pattern.pack(scale))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_from_mask_is_the_inverse_of_mask(seed, n_rows, n_cols, height):
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(rng.random((-(-n_rows // height), n_cols)) < 0.4)
    mask = groups.repeat_interleave(height, 0)[:n_rows]
    pattern = ow.Pattern.from_mask(mask, height).validate()
    assert pattern.height == height
    assert torch.equal(pattern.mask(), mask)
    assert pattern.nnz == int(mask.sum())


@given(patterns, st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_carry_moves_what_both_patterns_hold(old, seed, height):
    new = random_pattern(seed, *old.shape, height, 0.5)
    values = torch.randn(old.value_shape)
    before, after = entries(old, values), entries(new, carried(values, old, new))
    assert after == {at: before.get(at, 0.0) for at in after}
    source, target = carry(old, new)
    assert len(source) == len(target) == len(before.keys() & after.keys())
    assert len(set(target.tolist())) == len(target)
    again = carried(carried(values, old, new), new, new)
    assert torch.equal(again, carried(values, old, new))


def test_carry_refuses_other_shapes():
    a, b = (ow.Pattern.from_mask(torch.ones(*shape, dtype=torch.bool)) for shape in ((2, 3), (3, 2)))
    with pytest.raises(PatternError, match=r"\(2, 3\) and \(3, 2\)"):
        carry(a, b)


def broken(**changes):
    good = {
        "rows": [[0, 2], [3, 1], [4, -1]],
        "offsets": [0, 2, 3, 4],
        "cols": [5, 0, 2, 2],
    }
    tensors = {name: torch.tensor(value, dtype=torch.int32) for name, value in good.items()}
    tensors.update(
        {name: v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=torch.int32) for name, v in changes.items()}
    )
    return Pattern((5, 6), **tensors)


def test_a_good_pattern_is_returned():
    pattern = broken()
    assert pattern.validate() is pattern
    assert (pattern.groups, pattern.height, pattern.nnz) == (3, 2, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [[0, 2], [3, 0], [4, -1]]}, "two groups"),
        ({"rows": [[0, -1], [3, 1], [4, 2]]}, "padding in the last group"),
        ({"rows": [[0, 2], [3, 1], [5, -1]]}, r"0\.\.4"),
        ({"rows": [[0, 2], [3, 1], [4, -2]]}, "padding"),
        ({"rows": [0, 1, 2]}, r"\[G, h\]"),
        ({"rows": torch.zeros(3, 2)}, "rows must be int32"),
        ({"rows": torch.zeros(3, 0, dtype=torch.int32)}, r"\[G, h\]"),
        ({"offsets": [0, 2, 3]}, "offsets"),
        ({"offsets": [0, 2, 3, 5]}, "offsets"),
        ({"offsets": [0, 3, 2, 4]}, "offsets"),
        ({"offsets": [1, 2, 3, 4]}, "offsets"),
        ({"offsets": torch.tensor([0, 2, 3, 4])}, "offsets must be int32, got torch.int64"),
        ({"offsets": torch.zeros(0, dtype=torch.int32)}, "offsets"),
        ({"cols": [5, 0, 2, 6]}, r"0\.\.5"),
        ({"cols": [5, -1, 2, 2]}, r"0\.\.5"),
        ({"cols": [5, 5, 2, 2]}, "twice"),
        ({"cols": [[5, 0, 2, 2]]}, "cols"),
    ],
)
def test_validate_refuses(changes, message):
    with pytest.raises(PatternError, match=message):
        broken(**changes).validate()


@pytest.mark.parametrize(
    ("mask", "height", "message"),
    [
        (torch.zeros(4, 4), 1, "bool"),
        (torch.zeros(4, dtype=torch.bool), 1, "matrix"),
        (torch.eye(4, dtype=torch.bool), 2, "height=2"),
        (torch.eye(4, dtype=torch.bool), 0, "height=0"),
    ],
)
def test_from_mask_refuses(mask, height, message):
    with pytest.raises(PatternError, match=message):
        ow.Pattern.from_mask(mask, height)


def test_pack_and_unpack_refuse_other_sizes():
    pattern = broken()
    with pytest.raises(PatternError, match=r"\(4, 6\).*\(5, 6\)"):
        pattern.pack(torch.zeros(4, 6))
    with pytest.raises(PatternError, match=r"\(3, 2\).*\(4, 2\)"):
        pattern.unpack(torch.zeros(3, 2))


def test_convolution_weights_pack_in_channel_row_column_order():
    weight = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    pattern = Pattern(
        (2, 12), *(torch.tensor(t, dtype=torch.int32) for t in ([[0], [1]], [0, 1, 2], [(1 * 2 + 0) * 2 + 1, 11]))
    )
    assert pattern.pack(weight).flatten().tolist() == [int(weight[0, 1, 0, 1]), int(weight[1, 2, 1, 1])]


def test_same_pattern_sees_order():
    assert same_pattern(broken(), broken())
    assert not same_pattern(broken(), broken(cols=[0, 5, 2, 2]))
    assert not same_pattern(broken(), broken(rows=[[2, 0], [3, 1], [4, -1]]))


def test_consecutive_rows_pad_the_last_group_only():
    assert consecutive_rows(5, 2).tolist() == [[0, 1], [2, 3], [4, -1]]
    assert consecutive_rows(4, 2).tolist() == [[0, 1], [2, 3]]
