"""Convolutions of blocked numbers, which higher row groups read where they are."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Conv, assert_close, convs, dense_weight, random_pattern, random_values

from openwork.kernels.window import Window
from openwork.pattern import Pattern
from openwork.resident import native

GEOMETRIES = {
    "wide": ((9, 33), (3, 3), (1, 1), (1, 1), (1, 1)),
    "odd": ((7, 17), (3, 3), (1, 1), (1, 1), (1, 1)),
    "narrow": ((6, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    "as wide as its padding": ((3, 9), (3, 7), (1, 1), (1, 7), (1, 1)),
    "more padding than image": ((2, 5), (3, 5), (1, 1), (4, 9), (1, 1)),
    "wide taps": ((12, 19), (3, 3), (1, 1), (2, 2), (2, 2)),
    "padding on neither side": ((8, 24), (3, 4), (1, 1), (0, 0), (1, 1)),
    "padding above alone": ((8, 24), (2, 3), (1, 1), (1, 0), (1, 1)),
    "lines without a tap": ((3, 24), (2, 2), (1, 1), (3, 1), (5, 1)),
    "stride down": ((11, 17), (3, 3), (2, 1), (1, 1), (1, 1)),
    "a single line of taps": ((5, 20), (1, 3), (1, 1), (0, 1), (1, 1)),
}


def compare(conv: Conv, pattern: Pattern) -> None:
    """Output, its moments and the gradients, in every mixture of numbers and formulas, against float64."""
    window, draw = Window(**conv.window), torch.Generator().manual_seed(4)
    x = torch.randn(conv.batch, conv.channels, *conv.size, generator=draw)
    g = torch.randn(conv.batch, conv.rows, *window.output_size(*conv.size), generator=draw)
    bias, values = torch.randn(conv.rows, generator=draw), random_values(pattern)
    blocked_x, blocked_g = native.numbers(x)[0], native.numbers(g)[0]
    for cut_x in (False, True):
        image = blocked_x.replace(relu=cut_x)
        leaves = [(x.relu() if cut_x else x).double().requires_grad_(), values.double().requires_grad_()]
        weight = dense_weight(pattern, leaves[1]).view(conv.rows, conv.channels, *conv.kernel_size)
        right = F.conv2d(leaves[0], weight, bias.double(), conv.stride, conv.padding, conv.dilation)
        out, moments = native.conv2d(image, values, pattern, bias, window)
        assert torch.equal(moments, native.line_moments(out))
        for cut_g in (False, True):
            gradient = (g.relu() if cut_g else g).double()
            expected = torch.autograd.grad(right, leaves, gradient, retain_graph=True)
            dx, dvalues = native.conv2d_backward(
                blocked_g.replace(relu=cut_g), image, values, pattern, window, conv.size, plain=False
            )
            assert_close([native.to_nchw(out), native.to_nchw(dx), dvalues, None], [right.detach(), *expected, None])
            _, alone = native.conv2d_backward(
                blocked_g.replace(relu=cut_g), image, None, pattern, window, conv.size, plain=False
            )
            assert_close([None, None, alone, None], [None, None, expected[1], None])


@pytest.mark.parametrize("batch", [16, 23, 32])
@pytest.mark.parametrize("height", [8, 11, 16, 32])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_against_dense(geometry, height, batch):
    conv = Conv(40, 5, batch, *GEOMETRIES[geometry])
    compare(conv, random_pattern(conv.rows, conv.columns, height, 0.4, drop_rows=True))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("height", [8, 40])
def test_no_weights_or_all(height, density):
    conv = Conv(40, 3, 16, (5, 22), (3, 3), (1, 1), (1, 1), (1, 1))
    compare(conv, random_pattern(conv.rows, conv.columns, height, density))


def test_many_groups():
    """More groups than are computed between two fetches of what is read next."""
    conv = Conv(150, 2, 16, (4, 20), (3, 3), (1, 1), (1, 1), (1, 1))
    compare(conv, random_pattern(conv.rows, conv.columns, 8, 0.5))


def test_no_groups():
    conv = Conv(8, 2, 16, (4, 20), (3, 3), (1, 1), (1, 1), (1, 1))
    empty = torch.empty(0, dtype=torch.int32)
    compare(conv, Pattern((8, conv.columns), empty.view(0, 8), torch.zeros(1, dtype=torch.int32), empty))


@settings(max_examples=60, deadline=None)
@given(
    convs(),
    st.sampled_from([8, 11, 16, 17]),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(1, 4),
    st.sampled_from([16, 19, 48]),
)
def test_any_geometry(conv, height, density, threads, batch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(replace(conv, batch=batch), random_pattern(conv.rows, conv.columns, height, density, drop_rows=True))
    finally:
        torch.set_num_threads(before)


def test_results_do_not_depend_on_threads():
    conv = Conv(32, 8, 48, (10, 18), (3, 3), (1, 1), (1, 1), (1, 1))
    pattern, window, draw = random_pattern(32, conv.columns, 16, 0.4), Window(**conv.window), torch.Generator().manual_seed(4)
    x = native.numbers(torch.randn(conv.batch, 8, 10, 18, generator=draw))[0]
    g = native.numbers(torch.randn(conv.batch, 32, 10, 18, generator=draw))[0]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            y, moments = native.conv2d(x, random_values(pattern), pattern, None, window)
            dx, _ = native.conv2d_backward(g, x, random_values(pattern), pattern, window, conv.size, plain=False)
            found.append((native.to_nchw(y), moments, native.to_nchw(dx)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


def test_large_tensors_are_written_past_the_caches():
    conv = Conv(32, 32, 32, (64, 72), (3, 3), (1, 1), (1, 1), (1, 1))
    compare(conv, random_pattern(conv.rows, conv.columns, 16, 0.1))
