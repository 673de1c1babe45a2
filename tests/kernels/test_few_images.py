"""Convolutions of the last images of a batch where they are so few that all lines of an image are computed as one."""

import pytest
import torch
from problems import Conv, assert_close, check_conv, dense_weight, random_pattern, random_values, run

from openwork.kernels import kept_bytes, ops

HEIGHTS = pytest.mark.parametrize("height", [1, 3, 4, 8, 16, 19])
GEOMETRIES = [
    # size, kernel_size, padding, dilation
    ((4, 4), (3, 3), (1, 1), (1, 1)),
    ((1, 5), (3, 3), (1, 1), (1, 1)),
    ((7, 1), (1, 1), (0, 2), (1, 1)),
    ((5, 8), (2, 3), (0, 2), (2, 1)),
    ((9, 6), (3, 1), (3, 0), (1, 2)),
    ((6, 7), (3, 4), (0, 0), (1, 1)),
    ((3, 3), (3, 3), (4, 3), (1, 3)),
]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def conv_of(geometry, batch, rows=45, channels=7):
    size, kernel_size, padding, dilation = geometry
    return Conv(rows, channels, batch, size, kernel_size, (1, 1), padding, dilation)


@HEIGHTS
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 17, 20, 40])
def test_against_dense(geometry, height, batch):
    """The last group is padded, the first one empty, and for even batches a quarter of the rows is in no group."""
    torch.set_num_threads(1 + batch % 4)
    conv = conv_of(geometry, batch)
    check_conv(random_pattern(45, conv.columns, height, 0.4, drop_rows=batch % 2 == 0), conv, bias=batch % 3 != 0)


@pytest.mark.parametrize("height", [1, 4, 16])
@pytest.mark.parametrize("batch", [1, 4, 18])
def test_windows_of_many_channels(height, batch):
    conv = conv_of(GEOMETRIES[0], batch, rows=130, channels=150)
    check_conv(random_pattern(130, conv.columns, height, 0.2), conv)


@HEIGHTS
@pytest.mark.parametrize("batch", [1, 4, 17, 18, 19])
def test_any_number_of_threads(height, batch):
    """But for the weight gradient, which sums over threads where there are other images."""
    conv, draw = conv_of(GEOMETRIES[0], batch, rows=90, channels=30), torch.Generator().manual_seed(3)
    pattern = random_pattern(90, conv.columns, height, 0.3)
    inputs = [torch.randn(batch, 30, 4, 4, generator=draw), random_values(pattern), torch.randn(90, generator=draw)]
    found = []
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        found.append(run(lambda x, v, b: ops.conv2d(x, v, pattern, b, **conv.window, kernel="cpu"), inputs, torch.float32))
    for several in found[1:]:
        assert torch.equal(found[0][0], several[0])
        assert torch.equal(found[0][1], several[1])
        assert batch > 16 or torch.equal(found[0][2], several[2])


@HEIGHTS
@pytest.mark.parametrize("batch", [2, 17])
def test_one_gradient_alone(height, batch):
    conv, draw = conv_of(GEOMETRIES[3], batch), torch.Generator().manual_seed(3)
    pattern = random_pattern(45, conv.columns, height, 0.3)
    x, values = torch.randn(batch, 7, 5, 8, generator=draw), random_values(pattern)
    exact_x, weight = x.double().requires_grad_(), dense_weight(pattern, values.double()).detach().requires_grad_()
    out = torch.nn.functional.conv2d(
        exact_x, weight.view(45, 7, *conv.kernel_size), None, conv.stride, conv.padding, conv.dilation
    )
    g = torch.randn(out.shape, generator=draw)
    exact_dx, dweight = torch.autograd.grad(out, (exact_x, weight), g.double())
    parts = (pattern.rows, pattern.offsets, pattern.cols, pattern.shape, *conv.window.values(), conv.size, "cpu")
    dx, _ = torch.ops.openwork.conv2d_backward(g, None, values, *parts)
    _, dvalues = torch.ops.openwork.conv2d_backward(g, x, None, *parts)
    assert_close([None, dx, dvalues, None], [None, exact_dx, pattern.pack(dweight), None])


@pytest.mark.parametrize("height", [1, 4, 16])
def test_kept_orders(height):
    """How the columns were sorted is kept and counted, but not beyond a change of the index in place."""
    conv = conv_of(GEOMETRIES[0], 34, rows=64, channels=70)
    pattern = random_pattern(64, conv.columns, height, 0.3)
    before = kept_bytes(pattern.cols)
    check_conv(pattern, conv)
    first = kept_bytes(pattern.cols)
    assert first > before
    check_conv(pattern, conv)
    assert kept_bytes(pattern.cols) == first
    pattern.cols.copy_(conv.columns - 1 - pattern.cols)
    check_conv(pattern, conv)


@pytest.mark.parametrize("height", [1, 16])
def test_more_kinds_of_batches_than_orders_are_kept(height):
    pattern = None
    for side in (3, 4, 5, 6, 9, 14, 17, 18):
        conv = conv_of(((side, side), (3, 3), (1, 1), (1, 1)), 16, rows=40, channels=60)
        pattern = random_pattern(40, conv.columns, height, 0.3) if pattern is None else pattern
        check_conv(pattern, conv)


@pytest.mark.parametrize("batch", [1, 17])
def test_rows_too_long_for_short_places(batch):
    """Where a column stood in a row is kept in 16 bits; longer rows are sorted on every call."""
    conv = conv_of(GEOMETRIES[-1], batch, rows=2, channels=7400)
    pattern = random_pattern(2, conv.columns, 1, 1.0)
    assert conv.columns > 2**16
    check_conv(pattern, conv)
    check_conv(pattern, conv)
