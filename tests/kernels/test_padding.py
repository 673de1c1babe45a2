"""Taps that lie in the padding are passed over, however columns are sorted for that, and so are lanes beyond the batch."""

import pytest
import torch
from problems import Conv, check_conv, random_pattern, random_values

from openwork.kernels import ops
from openwork.kernels.window import Window
from openwork.resident import native
from openwork.resident.formula import Formula, blocked_shape

GEOMETRIES = {
    "3 x 3 on 4 x 4": ((4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "3 x 3 on 8 x 7": ((8, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    "3 x 3 on 2 x 1": ((2, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "more padding than image": ((1, 2), (3, 5), (1, 1), (3, 4), (1, 1)),
    "wide taps": ((5, 6), (3, 3), (1, 1), (3, 2), (3, 2)),
    "no padding beside it": ((6, 4), (3, 2), (1, 1), (1, 0), (1, 1)),
    "padding beside it alone": ((3, 5), (1, 3), (1, 1), (0, 1), (1, 1)),
    "one tap": ((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "stride down": ((9, 5), (3, 3), (2, 1), (1, 1), (1, 1)),
    "stride both ways": ((8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    "wide": ((5, 21), (3, 3), (1, 1), (1, 1), (1, 1)),
    "tall": ((40, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)
heights = pytest.mark.parametrize("height", [1, 4, 8, 16, 19])


@geometries
@heights
@pytest.mark.parametrize("batch", [9, 16, 17, 40])
def test_against_dense(geometry, height, batch):
    conv = Conv(40, 5, batch, *GEOMETRIES[geometry])
    check_conv(random_pattern(conv.rows, conv.columns, height, 0.3, drop_rows=True), conv)


@heights
@pytest.mark.parametrize("batch", [20, 50])
def test_many_channels(height, batch):
    """Windows of input channels for either direction, and batches that leave four and two images over."""
    conv = Conv(96, 224, batch, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    check_conv(random_pattern(conv.rows, conv.columns, height, 0.05), conv)


def test_many_channels_with_a_stride():
    """Single rows scatter, from windows that are sorted for the weight gradient."""
    conv = Conv(64, 224, 18, (16, 16), (3, 3), (2, 2), (1, 1), (1, 1))
    check_conv(random_pattern(conv.rows, conv.columns, 1, 0.05), conv)


@heights
def test_infinite_padding_taps(height):
    """On a 1 x 1 image only the middle tap counts, whatever the others are, where they are passed over."""
    pattern = random_pattern(16, 45, height, 1.0)
    corner = pattern.cols % 9 == 0
    values = random_values(pattern)
    values[corner] = float("inf")
    x = torch.randn(16, 5, 1, 1)
    out = ops.conv2d(x, values, pattern, None, kernel_size=(3, 3), padding=(1, 1), kernel="cpu")
    assert torch.isfinite(out).all()


@geometries
@heights
def test_lanes_beyond_the_batch(geometry, height):
    """What stands there is neither read into results nor into moments."""
    conv = Conv(24, 5, 21, *GEOMETRIES[geometry])
    pattern = random_pattern(conv.rows, conv.columns, height, 0.4)
    values, window = random_values(pattern), Window(**conv.window)
    size = (conv.batch, conv.channels, *conv.size)
    clean = native.numbers(torch.randn(size))[0].x
    spoilt = clean.clone()
    spoilt[-1, ..., 5:] = float("nan")
    g_size = (conv.batch, conv.rows, *window.output_size(*conv.size))
    g = native.numbers(torch.randn(g_size))[0]
    found = []
    for x in (clean, spoilt):
        y, moments = native.conv2d(Formula(size, x), values, pattern, None, window)
        dx, dvalues = native.conv2d_backward(g, Formula(size, x), values, pattern, window, conv.size, plain=False)
        assert tuple(y.x.shape) == blocked_shape(g_size)
        found.append((native.to_nchw(y), moments, native.to_nchw(dx), dvalues))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
