"""Convolutions under autocast to bfloat16, against float64 on the same rounded operands.

The bounds are those of ``test_bf16.py``.
"""

import pytest
import torch
import torch.nn.functional as F
from builds import assert_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import HEIGHTS, Conv, convs, dense_weight, random_pattern, random_values
from test_bf16 import ROUNDED, SUMMED, assert_near

from openwork import _native
from openwork.kernels import cpu, cpu_bf16, ops
from openwork.kernels.window import Window
from openwork.nn import SparseConv2d
from openwork.pattern import Pattern

BOUNDS = (ROUNDED, ROUNDED, SUMMED, SUMMED)
PLAIN = Conv(20, 6, 33, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1))
CONVS = {
    "3x3": PLAIN,
    "stride 2": Conv(20, 6, 33, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    "stride 3 beyond the window": Conv(9, 3, 20, (10, 11), (2, 1), (3, 2), (0, 0), (1, 1)),
    "dilated": Conv(17, 5, 40, (9, 11), (3, 2), (1, 2), (2, 3), (2, 3)),
    "1x1": Conv(40, 7, 64, (5, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1 padded": Conv(12, 4, 9, (4, 5), (1, 1), (1, 1), (2, 3), (1, 1)),
    "wide": Conv(8, 3, 35, (3, 61), (3, 3), (1, 1), (1, 1), (1, 1)),
    "one pixel": Conv(33, 5, 70, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "one image": Conv(20, 6, 1, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "no image": Conv(20, 6, 0, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
}


def problem(conv, height, density=0.5):
    pattern = random_pattern(conv.rows, conv.columns, height, density, drop_rows=True)
    draw = torch.Generator().manual_seed(conv.batch)
    x = torch.randn(conv.batch, conv.channels, *conv.size, generator=draw).bfloat16()
    size = Window(**conv.window).output_size(*conv.size)
    g = torch.randn(conv.batch, conv.rows, *size, generator=draw).bfloat16()
    return conv, pattern, x, g, random_values(pattern).bfloat16().float(), torch.randn(conv.rows, generator=draw)


def products(conv, pattern, x, g, values, bias, kernel="cpu"):
    x, values, bias = (t.clone().requires_grad_() for t in (x, values, bias))
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.conv2d(x, values, pattern, bias, **conv.window, kernel=kernel)
    return out, *torch.autograd.grad(out, (x, values, bias), g)


def expected(conv, pattern, x, g, values, bias):
    x, values, bias = (t.double().requires_grad_() for t in (x, values, bias))
    weight = dense_weight(pattern, values).view(conv.rows, conv.channels, *conv.kernel_size)
    out = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)
    return out, *torch.autograd.grad(out, (x, values, bias), g.double())


def compare(arguments, kernel="cpu"):
    found, right = products(*arguments, kernel=kernel), expected(*arguments)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other, bound in zip(found, right, BOUNDS, strict=True):
        assert_near(one, other, bound)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 12, 16, 17, 32])
@pytest.mark.parametrize("name", CONVS)
def test_like_float64(name, height):
    compare(problem(CONVS[name], height))


@pytest.mark.parametrize("batch", [2, 3, 15, 16, 17, 31, 32, 47, 48, 64, 100])
@pytest.mark.parametrize("height", [1, 16])
def test_batches(batch, height):
    compare(problem(Conv(20, 6, batch, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1)), height))


@settings(max_examples=60, deadline=None)
@given(convs(), st.sampled_from(HEIGHTS), st.sampled_from([0.0, 0.1, 0.4, 1.0]), st.integers(1, 4))
def test_any_geometry(conv, height, density, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _native.poison_scratch(True)
    try:
        compare(problem(conv, height, density))
    finally:
        _native.poison_scratch(False)
        torch.set_num_threads(before)


def test_negative_padding():
    """Lines and pixels are cut off, as the transposition of a padded convolution needs it."""
    conv, pattern, x, g, values, bias = problem(Conv(9, 4, 20, (4, 7), (2, 2), (1, 1), (0, 0), (1, 1)), 4)
    wide = F.pad(x, (1, 1, 2, 2), value=float("nan"))
    out = cpu_bf16.conv2d(wide, values, pattern, bias, Window((2, 2), padding=(-2, -1)))
    assert_near(out, expected(conv, pattern, x, g, values, bias)[0], ROUNDED)


@pytest.mark.parametrize("height", [1, 4, 16])
@pytest.mark.parametrize("name", ["3x3", "stride 2", "one image"])
def test_the_number_of_threads_changes_only_last_bits_of_the_weight_gradient(name, height):
    before = torch.get_num_threads()
    arguments, results = problem(CONVS[name], height), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(products(*arguments))
    finally:
        torch.set_num_threads(before)
    for out, dx, dvalues, dbias in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(dx, results[0][1])
        assert torch.equal(dbias, results[0][3])
        assert_near(dvalues, results[0][2].double(), SUMMED)


@pytest.mark.parametrize("height", [3, 4, 16])
def test_padding_never_counts(height):
    conv = Conv(31, 3, 20, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1))
    pattern = random_pattern(31, 27, height, 1)
    padding = pattern.positions < 0
    assert padding.any()
    _, _, x, g, _, bias = problem(conv, height)
    values = random_values(pattern)
    found = products(conv, pattern, x, g, values.masked_fill(padding, float("nan")), bias)
    for one, other in zip(found, products(conv, pattern, x, g, values, bias), strict=True):
        assert torch.equal(one, other)
    assert (found[2][padding] == 0).all()


def test_infinite_inputs_stay_with_their_columns():
    """An odd number of columns is filled up to pairs; what fills it multiplies nothing that is there."""
    mask = torch.zeros(4, 27, dtype=torch.bool)
    mask[:, [9, 13, 22]] = True
    pattern = Pattern.from_mask(mask, 4)
    x = torch.ones(2, 3, 6, 6).bfloat16()
    x[:, 0] = float("inf")
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.conv2d(x, torch.ones(pattern.value_shape), pattern, None, kernel_size=(3, 3), kernel="cpu")
    assert torch.equal(out, torch.full((2, 4, 4, 4), 3.0).bfloat16())


@pytest.mark.parametrize("wanted", ["x", "values", "bias", "none"])
def test_only_what_is_wanted(wanted):
    conv, pattern, x, g, values, bias = problem(PLAIN, 4)
    inputs = {"x": x, "values": values, "bias": bias}
    if wanted != "none":
        inputs[wanted].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.conv2d(inputs["x"], inputs["values"], pattern, inputs["bias"], **conv.window, kernel="cpu")
    assert out.requires_grad == (wanted != "none")
    if wanted != "none":
        out.backward(g)
        assert_near(inputs[wanted].grad, expected(conv, pattern, x, g, values, bias)[1 + list(inputs).index(wanted)], ROUNDED)
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [w for w in (wanted,) if w != "none"]


def layer_of(pattern, values, bias, kernel="cpu"):
    return SparseConv2d(pattern, values, bias, kernel_size=(3, 3), padding=(1, 1), kernel=kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_dtypes_are_those_of_a_dense_layer(dtype, inside, kernel):
    pattern = random_pattern(10, 27, 4, 0.5)
    dtypes = []
    for module in (layer_of(pattern, random_values(pattern), torch.randn(10), kernel), torch.nn.Conv2d(3, 10, 3, padding=1)):
        x = torch.randn(16, 3, 5, 5, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
            if inside:
                out.sum().backward()
        if not inside:
            out.sum().backward()
        dtypes.append([out.dtype, x.grad.dtype, *(p.grad.dtype for p in module.parameters())])
        assert out.shape == (16, 10, 5, 5)
    assert dtypes[0] == dtypes[1]


def test_operator_and_direct_call_agree():
    conv, pattern, x, g, values, bias = problem(PLAIN, 4)
    parts = (pattern.rows, pattern.offsets, pattern.cols, pattern.shape)
    x.requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.ops.openwork.conv2d(x.float(), values, bias, *parts, *conv.window.values(), "cpu")
    found = (out, *torch.autograd.grad(out, (x, values, bias), g))
    for one, other in zip(found, products(conv, pattern, x, g, values, bias), strict=True):
        assert torch.equal(one, other)


def test_compiled():
    conv, pattern, x, g, values, bias = problem(PLAIN, 4)
    layer = layer_of(pattern, values, bias)
    results = []
    for module in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(own)
        results.append((out, *torch.autograd.grad(out, (own, layer.values, layer.bias), g)))
    for one, other, right in zip(*results, expected(conv, pattern, x, g, values, bias), strict=True):
        assert one.dtype == other.dtype
        assert_near(other, right, ROUNDED)


def test_second_derivatives_are_refused():
    conv, pattern, x, g, values, bias = problem(PLAIN, 4)
    x, values = x.requires_grad_(), values.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.conv2d(x, values, pattern, bias, **conv.window, kernel="cpu")
    dx, _ = torch.autograd.grad(out, (x, values), g.requires_grad_(), create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.float().sum().backward()


def test_mixed_without_autocast_is_refused():
    conv, pattern, x, _, values, _ = problem(PLAIN, 4)
    with pytest.raises(ValueError, match=r"values is torch.float32 .* x is torch.bfloat16"):
        ops.conv2d(x, values, pattern, None, **conv.window, kernel="cpu")


@pytest.mark.parametrize("bad", [-1, 54])
def test_bad_columns_are_refused(bad):
    conv, pattern, x, g, values, _ = problem(PLAIN, 4)
    pattern.cols[3] = bad
    with pytest.raises(ValueError, match="columns are out of range"):
        cpu_bf16.conv2d(x, values, pattern, None, Window(**conv.window))
    with pytest.raises(ValueError, match="columns are out of range"):
        cpu_bf16.conv2d_backward(g, x, values, pattern, Window(**conv.window), conv.size)


def test_wrong_dtypes_are_refused():
    conv, pattern, x, _, values, _ = problem(PLAIN, 4)
    with pytest.raises(ValueError, match="bfloat16"):
        cpu_bf16._narrow(x.float())
    with pytest.raises(ValueError, match="float32"):
        cpu.conv2d(x, values, pattern, None, Window(**conv.window))


SCRIPT = """
import torch
from test_conv_bf16 import CONVS, compare, problem
from openwork import _native
assert _native.isa() == {isa!r}, _native.isa()
_native.poison_scratch(True)
for height in (1, 4, 5, 16):
    for name in ("3x3", "stride 2", "one image", "no image"):
        compare(problem(CONVS[name], height))
"""


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_every_build(isa):
    assert_runs(SCRIPT, isa)
