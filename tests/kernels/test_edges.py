"""Cases without work, without shape, or with gradients that nobody asked for."""

import pytest
import torch
from problems import HEIGHTS, Conv, check_conv, check_linear, random_pattern, random_values

from openwork.kernels import ops
from openwork.pattern import Pattern

BACKENDS = ("reference", "cpu")
CONV = Conv(10, 3, 4, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1))
kernels = pytest.mark.parametrize("kernel", BACKENDS)


@kernels
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_and_everything(kernel, height, density):
    check_linear(random_pattern(10, 27, height, density), 4, kernel=kernel)
    check_conv(random_pattern(10, 27, height, density), CONV, kernel=kernel)


@kernels
@pytest.mark.parametrize("batch", [0, 1])
def test_smallest_batches(kernel, batch):
    pattern = random_pattern(10, 27, 4, 0.5)
    check_linear(pattern, batch, kernel=kernel)
    check_conv(pattern, Conv(10, 3, batch, (6, 5), (3, 3), (2, 1), (1, 0), (1, 2)), kernel=kernel)


@kernels
def test_no_group_at_all(kernel):
    empty = torch.zeros(0, dtype=torch.int32)
    pattern = Pattern((5, 3), empty.view(0, 2), torch.zeros(1, dtype=torch.int32), empty)
    bias = torch.arange(5.0)
    out = ops.linear(torch.randn(4, 3), torch.zeros(0, 2), pattern, bias, kernel)
    assert torch.equal(out, bias.expand(4, 5))


@kernels
def test_any_strides(kernel):
    pattern, wide = random_pattern(10, 27, 4, 0.5), torch.randn(27, 9, 2)
    values = random_values(pattern)
    x = wide[:, ::2, 1].t()
    assert torch.equal(ops.linear(x, values, pattern, None, kernel), ops.linear(x.contiguous(), values, pattern, None, kernel))
    images = torch.randn(6, 5, 3, 8)[..., ::2].permute(3, 2, 0, 1)
    found = ops.conv2d(images, values, pattern, None, kernel_size=(3, 3), kernel=kernel)
    assert torch.equal(found, ops.conv2d(images.contiguous(), values, pattern, None, kernel_size=(3, 3), kernel=kernel))


@kernels
def test_strided_output_gradient(kernel):
    pattern = random_pattern(10, 27, 1, 0.5)
    values = random_values(pattern).requires_grad_()
    for gradient in (torch.ones(4, 10), torch.ones(1, 1).expand(4, 10)):
        ops.linear(torch.ones(4, 27), values, pattern, None, kernel).backward(gradient)
    assert torch.equal(values.grad, torch.full_like(values, 8.0))


def test_padded_rows_never_count():
    """Whatever stands in the padding is neither used nor given a gradient."""
    pattern = random_pattern(10, 27, 4, 0.5)
    values = random_values(pattern)
    padding = pattern.positions < 0
    assert padding.any()
    spoilt = values.masked_fill(padding, float("nan")).requires_grad_()
    x = torch.randn(20, 27, requires_grad=True)
    out = ops.linear(x, spoilt, pattern, None, "cpu")
    assert torch.equal(out, ops.linear(x, values, pattern, None, "cpu"))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (spoilt.grad[padding] == 0).all()
    assert spoilt.grad[~padding].abs().min() > 0


@kernels
def test_only_wanted_gradients(kernel):
    pattern = random_pattern(10, 27, 4, 0.5)
    parts = (pattern.rows, pattern.offsets, pattern.cols, pattern.shape)
    x, g, values = torch.randn(4, 27), torch.randn(4, 10), random_values(pattern)
    dx, none = torch.ops.openwork.linear_backward(g, None, values, *parts, kernel)
    assert (dx.shape, none.numel()) == (x.shape, 0)
    none, dvalues = torch.ops.openwork.linear_backward(g, x, None, *parts, kernel)
    assert (none.numel(), dvalues.shape) == (0, values.shape)


@kernels
@pytest.mark.parametrize("wanted", ["x", "values", "bias"])
def test_one_input_requires_a_gradient(kernel, wanted):
    pattern = random_pattern(10, 27, 4, 0.5)
    inputs = {"x": torch.randn(4, 27), "values": random_values(pattern), "bias": torch.randn(10)}
    inputs[wanted].requires_grad_()
    out = ops.linear(inputs["x"], inputs["values"], pattern, inputs["bias"], kernel)
    saved = [t for t in out.grad_fn.saved_tensors if t is not None and t.is_floating_point()]
    assert len(saved) == (0 if wanted == "bias" else 1)
    out.sum().backward()
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [wanted]


@kernels
def test_sampled_products(kernel):
    pattern, x, g = random_pattern(10, 27, 4, 0.5), torch.randn(4, 27), torch.randn(4, 10)
    torch.testing.assert_close(ops.sddmm(x, g, pattern, kernel), pattern.pack(g.t() @ x))
    images, out = torch.randn(4, 3, 6, 5), torch.randn(4, 10, 6, 5)
    expected = torch.nn.grad.conv2d_weight(images, (10, 3, 3, 3), out, padding=1)
    found = ops.conv2d_sddmm(images, out, pattern, kernel_size=(3, 3), padding=(1, 1), kernel=kernel)
    torch.testing.assert_close(found, pattern.pack(expected))


@kernels
def test_autocast_to_float16_computes_in_float32(kernel):
    pattern = random_pattern(10, 27, 4, 0.5)
    values, x = random_values(pattern).requires_grad_(), torch.randn(4, 27).half().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        out = ops.linear(x, values, pattern, None, kernel)
    assert out.dtype == torch.float32
    assert torch.equal(out, ops.linear(x.float(), values, pattern, None, kernel))
    out.sum().backward()
    assert (x.grad.dtype, values.grad.dtype) == (torch.float16, torch.float32)
