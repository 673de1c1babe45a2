"""What PyTorch asks of an operator: exact gradients, fake kernels, tracing."""

from contextlib import nullcontext

import pytest
import torch
from problems import random_pattern, random_values
from torch.utils._python_dispatch import TorchDispatchMode

from openwork.kernels import ops
from openwork.nn import SparseConv2d, SparseLinear

WINDOWS = [
    {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    {"kernel_size": (3, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
]
heights = pytest.mark.parametrize("height", [1, 4])
windows = pytest.mark.parametrize("window", WINDOWS, ids=["plain", "strided"])


def parts(pattern):
    return pattern.rows, pattern.offsets, pattern.cols, list(pattern.shape)


def double(tensor):
    return tensor.double().requires_grad_()


@heights
def test_linear_gradcheck(height):
    pattern = random_pattern(6, 9, height, 0.5)
    inputs = double(torch.randn(3, 9)), double(random_values(pattern)), double(torch.randn(6))
    free = pattern.positions >= 0
    # A padded entry has no influence, so the numerical gradient is 0 there as well.
    assert torch.autograd.gradcheck(lambda x, v, b: ops.linear(x, v * free, pattern, b), inputs)


@heights
@windows
def test_conv_gradcheck(height, window):
    pattern = random_pattern(6, 18, height, 0.5)
    inputs = double(torch.randn(2, 2, 5, 6)), double(random_values(pattern)), double(torch.randn(6))
    free = pattern.positions >= 0
    assert torch.autograd.gradcheck(lambda x, v, b: ops.conv2d(x, v * free, pattern, b, **window), inputs)


@heights
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
@pytest.mark.parametrize("batch", [0, 4])
def test_opcheck(height, kernel, batch):
    pattern = random_pattern(6, 18, height, 0.5)
    values, bias = random_values(pattern).requires_grad_(), torch.randn(6, requires_grad=True)
    x, g = torch.randn(batch, 18, requires_grad=True), torch.randn(batch, 6)
    torch.library.opcheck(torch.ops.openwork.linear.default, (x, values, bias, *parts(pattern), kernel))
    torch.library.opcheck(torch.ops.openwork.linear_backward.default, (g, x.detach(), values.detach(), *parts(pattern), kernel))


@heights
@windows
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_conv_opcheck(height, window, kernel):
    pattern = random_pattern(6, 18, height, 0.5)
    values, x = random_values(pattern).requires_grad_(), torch.randn(2, 2, 5, 6, requires_grad=True)
    size = [list(pair) for pair in window.values()]
    out = ops.conv2d(x, values, pattern, **window)
    torch.library.opcheck(torch.ops.openwork.conv2d.default, (x, values, None, *parts(pattern), *size, kernel))
    torch.library.opcheck(
        torch.ops.openwork.conv2d_backward.default,
        (torch.randn_like(out), x.detach(), values.detach(), *parts(pattern), *size, [5, 6], kernel),
    )


@heights
def test_compiled_model_is_the_same_model(height):
    torch.manual_seed(0)
    conv, linear = random_pattern(6, 27, height, 0.5), random_pattern(5, 6, height, 0.5)
    model = torch.nn.Sequential(
        SparseConv2d(conv, random_values(conv), torch.randn(6), kernel_size=(3, 3), padding=(1, 1), kernel="cpu"),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        SparseLinear(linear, random_values(linear), torch.randn(5), kernel="cpu"),
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 6, 5, requires_grad=True)
    results = []
    for one in (model, compiled):
        out = one(x)
        gradients = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
        results.append([out, *gradients])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_second_derivatives_are_refused(kernel):
    pattern = random_pattern(6, 18, 4, 0.5)
    x, values = torch.randn(4, 18, requires_grad=True), random_values(pattern).requires_grad_()
    (dx,) = torch.autograd.grad(ops.linear(x, values, pattern, None, kernel).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dx.sum().backward()


@heights
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_the_short_way_is_the_operator(height, kernel):
    """Eager calls go round the dispatcher; a dispatch mode, like a tracer, still sees operators, and gets the same numbers."""
    pattern, window = random_pattern(6, 18, height, 0.5), WINDOWS[1]
    values, bias = random_values(pattern).requires_grad_(), torch.randn(6, requires_grad=True)
    x = torch.randn(2, 2, 5, 6, requires_grad=True)
    seen, results = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    for watch in (nullcontext(), Watch()):
        with watch:
            out = ops.conv2d(x, values, pattern, bias, **window, kernel=kernel)
            flat = ops.linear(x.flatten(1)[:, :18], values, pattern, bias, kernel)
            gradients = torch.autograd.grad(out.square().sum() + flat.square().sum(), (x, values, bias))
        results.append([out, flat, *gradients])
    names = ("linear", "linear_backward", "conv2d", "conv2d_backward")
    assert {f"openwork::{name}" for name in names} <= set(seen)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["rows", "offsets", "cols"])
def test_a_pattern_overwritten_before_backward_is_refused(name):
    pattern, x = random_pattern(10, 27, 4, 0.5), torch.randn(4, 27, requires_grad=True)
    out = ops.linear(x, random_values(pattern).requires_grad_(), pattern, None, "cpu")
    getattr(pattern, name).add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
