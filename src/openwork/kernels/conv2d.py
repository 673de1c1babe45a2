"""The sparse convolution as a PyTorch operator: differentiable, traceable, and one call for every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import lookup
from openwork.kernels.autocast import backward_under, check_uniform, checked, direct_backward, forward_under, narrow, narrows
from openwork.kernels.operator import PATTERN, asked, check_batch, define, eager, filled, parts, save
from openwork.kernels.window import Pair, Window
from openwork.pattern import Pattern


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    kernel: str = "reference",
) -> Tensor:
    """Two-dimensional convolution with a sparse weight; column ``(cin * kh + i) * kw + j`` of ``W[R, C]`` is tap ``(i, j)``.

    Args:
        x: ``[N, Cin, H, W]``, any strides.
        values: ``[K, h]``.
        pattern: of shape ``(R, Cin * kh * kw)``.
        bias: ``[R]`` or None.
        kernel_size: ``(kh, kw)``.
        stride: pixels the window moves by.
        padding: zero pixels around the image.
        dilation: pixels between neighbouring taps.
        kernel: a backend of the table.

    Returns:
        ``[N, R, Ho, Wo]``, contiguous; bfloat16 under autocast to it.

    Raises:
        ValueError: a shape, dtype or device does not fit, the window is larger than the padded image, or the backend does not
            know them.
    """
    arguments = (x, values, bias, *parts(pattern), kernel_size, stride, padding, dilation, kernel)
    check_uniform(pattern, x, values=values, bias=bias)
    out: Tensor
    if eager(x):
        out = _Conv2d.apply(*arguments)
    elif narrows("conv2d", kernel, x, values, bias):
        out = _Conv2d.apply(x.to(torch.bfloat16), *arguments[1:])
    else:
        out = torch.ops.openwork.conv2d(*arguments)
    return out


def conv2d_sddmm(
    x: Tensor,
    g: Tensor,
    pattern: Pattern,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    kernel: str = "reference",
) -> Tensor:
    """The weight gradient of :func:`conv2d` at the positions of ``pattern``; ``[K, h]``, 0 at padded rows."""
    size = (x.shape[2], x.shape[3])
    out: Tensor = torch.ops.openwork.conv2d_backward(
        g, x, None, *parts(pattern), kernel_size, stride, padding, dilation, size, kernel
    )[1]
    return out


def _check_image(name: str, image: Tensor, channels: int, size: Pair | None = None) -> None:
    if image.dim() != 4 or image.shape[1] != channels or (size is not None and tuple(image.shape[2:]) != tuple(size)):
        expected = f"[batch, {channels}, height, width]" if size is None else f"[batch, {channels}, {size[0]}, {size[1]}]"
        raise ValueError(f"{name} has shape {tuple(image.shape)}; this layer takes {expected}")


def _check_window(pattern: Pattern, window: Window) -> int:
    window.check()
    if pattern.shape[1] % window.taps:
        raise ValueError(f"the pattern has {pattern.shape[1]} columns, no multiple of kernel_size={tuple(window.kernel_size)}")
    return pattern.shape[1] // window.taps


def _output_size(window: Window, size: Pair) -> Pair:
    out = window.output_size(*size)
    if min(out) < 1:
        raise ValueError(f"a window of {window} does not fit an image of {tuple(size)} pixels")
    return out


def _window(*parts: list[int]) -> Window:
    kernel_size, stride, padding, dilation = ((int(part[0]), int(part[1])) for part in parts)
    return Window(kernel_size, stride, padding, dilation)


def check_conv2d(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> None:
    """Raise ``ValueError`` unless all of it fits together, as :func:`conv2d` takes it on the cpu."""
    checked("conv2d", "cpu", pattern, {"x": x}, {"values": values, "bias": bias})
    _check_input(x, pattern, window)


def _check_input(x: Tensor, pattern: Pattern, window: Window) -> None:
    _check_image("x", x, _check_window(pattern, window))
    _output_size(window, (x.shape[2], x.shape[3]))


def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int],
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], kernel: str,
) -> Tensor:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    window = _window(kernel_size, stride, padding, dilation)
    compute = checked("conv2d", kernel, pattern, {"x": x}, {"values": values, "bias": bias})
    _check_input(x, pattern, window)
    out: Tensor = compute(x, values, pattern, bias, window)
    return out


def _conv2d_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int],
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], input_size: list[int], kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    window = _window(kernel_size, stride, padding, dilation)
    size = (input_size[0], input_size[1])
    compute = checked("conv2d_backward", kernel, pattern, {"g": g, "x": x}, {"values": values})
    channels = _check_window(pattern, window)
    _check_image("g", g, shape[0], _output_size(window, size))
    if x is not None:
        _check_image("x", x, channels, size)
    check_batch(x, g)
    return filled(g, *compute(g, x, values, pattern, window, size))


def _conv2d_fake(
    x: Tensor, values: Tensor, bias: Any, rows: Any, offsets: Any, cols: Any, shape: Any,
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, kernel: str,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation)
    return x.new_empty(x.shape[0], shape[0], *window.output_size(x.shape[2], x.shape[3]))


def _conv2d_backward_fake(
    g: Tensor, x: Tensor | None, values: Tensor | None, rows: Tensor, offsets: Any, cols: Tensor, shape: Any,
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, input_size: Any, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    channels = shape[1] // (kernel_size[0] * kernel_size[1])
    dx = None if values is None else g.new_empty(g.shape[0], channels, input_size[0], input_size[1])
    dtype = torch.float32 if narrow("conv2d", kernel, g, x) else g.dtype
    dvalues = None if x is None else g.new_empty(cols.shape[0], rows.shape[1], dtype=dtype)
    return filled(g, dx, dvalues)


def _conv2d_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    dx = dvalues = dbias = None
    if x is not None or values is not None:
        *window, kernel = ctx.rest
        backward: Any = _conv2d_backward if direct_backward(g) else torch.ops.openwork.conv2d_backward
        both = backward(g, x, values, *index, ctx.shape, *window, ctx.input_size, kernel)
        dx, dvalues = asked(both, values, x)
    if ctx.needs_input_grad[2]:
        dbias = _bias_gradient(g, ctx.rest[-1])
    return (dx, dvalues, dbias, *(None,) * 9)


def _bias_gradient(g: Tensor, kernel: str) -> Tensor:
    if direct_backward(g) and narrow("channel_sums", kernel, g):
        sums: Tensor = lookup("channel_sums_bf16", kernel)(g)
        return sums
    return g.sum((0, 2, 3))


def _conv2d_autocast(*inputs: Any) -> Tensor:
    return forward_under(torch.ops.openwork.conv2d, "conv2d", *inputs)


def _conv2d_backward_autocast(*inputs: Any) -> tuple[Tensor, Tensor]:
    return backward_under(torch.ops.openwork.conv2d_backward, "conv2d", *inputs)


# See ``_Linear`` for why there is no ``setup_context``.
class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _conv2d(*inputs)
        save(ctx, inputs, output)
        return output

    backward = staticmethod(_conv2d_gradient)


_WINDOW = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"

define(
    f"conv2d(Tensor x, Tensor values, Tensor? bias, {PATTERN}, {_WINDOW}, str kernel) -> Tensor",
    _conv2d,
    _conv2d_fake,
    _conv2d_gradient,
    _conv2d_autocast,
)
define(
    f"conv2d_backward(Tensor g, Tensor? x, Tensor? values, {PATTERN}, {_WINDOW}, int[2] input_size, str kernel)"
    " -> (Tensor, Tensor)",
    _conv2d_backward,
    _conv2d_backward_fake,
    None,
    _conv2d_backward_autocast,
)
