"""Linear layers whose last samples are so few that they are computed by themselves, with the rows of a group in the lanes."""

import pytest
import torch
from problems import assert_close, check_linear, dense_weight, random_pattern, random_values, run

from openwork.kernels import ops
from openwork.pattern import Pattern

HEIGHTS = pytest.mark.parametrize("height", [4, 8, 12, 16, 20, 32])


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@HEIGHTS
@pytest.mark.parametrize("batch", [*range(1, 9), 17, 18, 20, 21, 24, 33, 40, 63, 64, 65, 100, 258])
def test_against_dense(height, batch):
    """The last group is padded, the first one empty, and for even batches a quarter of the rows is in no group."""
    torch.set_num_threads(1 + batch % 4)
    check_linear(random_pattern(67, 91, height, 0.4, drop_rows=batch % 2 == 0), batch, bias=batch % 3 != 0)


@HEIGHTS
@pytest.mark.parametrize("batch", [1, 4, 7, 34, 49, 276, 657, 900])
def test_any_number_of_threads(height, batch):
    pattern, draw = random_pattern(200, 300, height, 0.2), torch.Generator().manual_seed(3)
    inputs = [torch.randn(batch, 300, generator=draw), random_values(pattern), torch.randn(200, generator=draw)]
    found = []
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        found.append(run(lambda x, v, b: ops.linear(x, v, pattern, b, "cpu"), inputs, torch.float32))
    for several in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], several, strict=True))


@HEIGHTS
@pytest.mark.parametrize("batch", [3, 8, 18])
def test_one_gradient_alone(height, batch):
    pattern, draw = random_pattern(45, 70, height, 0.3), torch.Generator().manual_seed(3)
    x, g = torch.randn(batch, 70, generator=draw), torch.randn(batch, 45, generator=draw)
    values, parts = random_values(pattern), (pattern.rows, pattern.offsets, pattern.cols, pattern.shape)
    dx, _ = torch.ops.openwork.linear_backward(g, None, values, *parts, "cpu")
    _, dvalues = torch.ops.openwork.linear_backward(g, x, None, *parts, "cpu")
    exact_dvalues = pattern.pack(g.double().t() @ x.double())
    assert_close([None, dx, dvalues, None], [None, g.double() @ dense_weight(pattern, values.double()), exact_dvalues, None])


@HEIGHTS
@pytest.mark.parametrize("batch", [3, 8, 18])
def test_padding_may_hold_anything(height, batch):
    """Not even an infinite input makes a gradient of a padded row."""
    pattern = random_pattern(45, 70, height, 0.3)
    values, padding = random_values(pattern), pattern.positions < 0
    assert padding.any()
    spoilt, draw = values.masked_fill(padding, float("nan")).requires_grad_(), torch.Generator().manual_seed(3)
    x = torch.randn(batch, 70, generator=draw).requires_grad_()
    out = ops.linear(x, spoilt, pattern, None, "cpu")
    assert torch.equal(out, ops.linear(x, values, pattern, None, "cpu"))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    parts = (pattern.rows, pattern.offsets, pattern.cols, pattern.shape)
    infinite = torch.full((batch, 70), float("inf"))
    _, dvalues = torch.ops.openwork.linear_backward(torch.ones(batch, 45), infinite, None, *parts, "cpu")
    assert (dvalues[padding] == 0).all()
    assert torch.isinf(dvalues[~padding]).all()


def test_bad_columns_are_refused():
    """Inputs are read at a pattern's own columns, after they have been checked."""
    pattern = random_pattern(32, 70, 16, 0.5)
    for column in (-1, 70, 2**31 - 1):
        columns = pattern.cols.clone()
        columns[-1] = column
        wrong = Pattern(pattern.shape, pattern.rows, pattern.offsets, columns)
        with pytest.raises(ValueError, match="out of range"):
            ops.linear(torch.randn(3, 70), random_values(pattern), wrong, None, "cpu")
