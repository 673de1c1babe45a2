"""The products on the CPU with bfloat16 activations and float32 values, bias and weight gradient.

Where the processor has instructions for it, operands are rounded to bfloat16 (8 significant bits) and products summed in
float32, so each entry is within 2^-8 of the sum of the magnitudes of its products of what float32 gives.  Where it has none, or
``OPENWORK_ISA`` forbids them, activations are widened and only the result is rounded.  Denormal operands count as 0.  What
depends on the number of threads is what does in float32: the weight gradient of a convolution, in the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

import openwork._native as native
from openwork.kernels import cpu, register
from openwork.kernels.window import LANES, Pair, Window, fills_blocks
from openwork.pattern import Pattern


@register("linear_bf16", "cpu")
def linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor:
    """``x W^T + bias``, bfloat16 as ``x`` is."""
    if not native.has_bf16():
        return cpu.linear(x.float(), values, pattern, bias).to(x.dtype)
    x, values, bias = _narrow(x), _wide(values), None if bias is None else _wide(bias)
    y = x.new_empty(x.shape[0], pattern.shape[0])
    native.linear_forward_bf16(
        x.data_ptr(), y.data_ptr(), cpu.address(bias), x.shape[0], *cpu.stored(pattern, values), cpu.threads()
    )
    return y


@register("linear_backward_bf16", "cpu")
def linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, sums: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """``g W``, bfloat16, and ``g^T x`` at the stored positions, float32.

    ``sums``, float32 ``[R]``, becomes the sum of ``g`` over the batch.
    """
    if not native.has_bf16():
        if sums is not None:
            torch.sum(g, 0, dtype=torch.float32, out=sums)
        dx, dvalues = cpu.linear_backward(g.float(), None if x is None else x.float(), values, pattern)
        return None if dx is None else dx.to(g.dtype), dvalues
    g, x, values = _narrow(g), None if x is None else _narrow(x), None if values is None else _wide(values)
    dx = None if values is None else g.new_empty(g.shape[0], pattern.shape[1])
    dvalues = None if x is None else g.new_empty(pattern.value_shape, dtype=torch.float32)
    scattered = dx
    if values is not None and dx is not None and pattern.height == 1:
        # As in float32, single rows are gathered.
        turned = cpu.turned(pattern, values, 1)[0]
        native.linear_forward_bf16(g.data_ptr(), dx.data_ptr(), 0, g.shape[0], *turned, cpu.threads())
        scattered = None
    if scattered is not None or dvalues is not None or sums is not None:
        native.linear_backward_bf16(
            g.data_ptr(), cpu.address(x), cpu.address(scattered), cpu.address(dvalues), cpu.address(sums), g.shape[0],
            *cpu.stored(pattern, values), cpu.threads(),
        )  # fmt: skip
    return dx, dvalues


@register("conv2d_bf16", "cpu")
def conv2d(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution, bfloat16 as ``x`` is."""
    if not native.has_bf16():
        return cpu.conv2d(x.float(), values, pattern, bias, window).to(x.dtype)
    x, values, bias = _narrow(x), _wide(values), None if bias is None else _wide(bias)
    size = (x.shape[2], x.shape[3])
    y = x.new_empty(x.shape[0], pattern.shape[0], *window.output_size(*size))
    for part in _parts(len(x)):
        native.conv_forward_bf16(
            cpu.nchw(x[part]), (y[part].data_ptr(), 0, 0), cpu.address(bias), len(x[part]), *cpu.geometry(size, window),
            *cpu.stored(pattern, values), cpu.threads(),
        )  # fmt: skip
    return y


@register("conv2d_backward_bf16", "cpu")
def conv2d_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, window: Window, input_size: Pair
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the input, bfloat16, and to the stored values, float32."""
    if not native.has_bf16():
        wide = None if x is None else x.float()
        dx, dvalues = cpu.conv2d_backward(g.float(), wide, values, pattern, window, input_size)
        return None if dx is None else dx.to(g.dtype), dvalues
    g, x, values = _narrow(g), None if x is None else _narrow(x), None if values is None else _wide(values)
    dx = None if values is None else g.new_empty(len(g), pattern.shape[1] // window.taps, *input_size)
    dvalues = None if x is None else g.new_empty(pattern.value_shape, dtype=torch.float32)
    total = dvalues
    for part in _parts(len(g)):
        own = dvalues if dvalues is None or not part.start else torch.empty_like(dvalues)
        to = (cpu.address(_part(dx, part)), 0, 0)
        activations = cpu.nchw(g[part]), cpu.nchw(_part(x, part)), len(g[part])
        cpu.conv2d_gradients(*activations, values, pattern, window, input_size, to, own, narrow=True)
        if total is not None and own is not None and own is not total:
            total += own
    return dx, total


@register("channel_sums_bf16", "cpu")
def channel_sums(g: Tensor) -> Tensor:
    """Sums over images and pixels, ``[R]``, float32."""
    if not native.has_bf16():
        return g.sum((0, 2, 3), dtype=torch.float32)
    g = _narrow(g)
    sums = g.new_empty(g.shape[:2], dtype=torch.float32)
    native.plane_sums_bf16(g.data_ptr(), sums.numel(), g.shape[2] * g.shape[3], sums.data_ptr(), cpu.threads())
    return sums.sum(0)


def _part(tensor: Tensor | None, part: slice) -> Tensor | None:
    return None if tensor is None else tensor[part]


def _parts(batch: int) -> list[slice]:
    """The batch, or its whole blocks and its rest where that would leave much of the last block empty.

    The rest is computed with fewer images side by side.
    """
    whole = batch // LANES * LANES
    if 0 < whole < batch and not fills_blocks(batch):
        return [slice(0, whole), slice(whole, batch)]
    return [slice(0, batch)]


def _narrow(tensor: Tensor) -> Tensor:
    return _plain(tensor, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    return _plain(tensor, torch.float32)


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(f"kernel='cpu' wants {dtype} on the cpu here; got {tensor.dtype} on {tensor.device}")
    return tensor.contiguous()
