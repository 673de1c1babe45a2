"""Linear layers on the CPU with bfloat16 activations and float32 values, bias and weight gradient.

Where the processor has instructions for it, operands are rounded to bfloat16 (8 significant bits) and products summed in
float32, so each entry is within 2^-8 of the sum of the magnitudes of its products of what float32 gives.  Where it has none, or
``OPENWORK_ISA`` forbids them, activations are widened and only the result is rounded.  Denormal operands count as 0.  As in
float32, nothing depends on the number of threads, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

import openwork._native as native
from openwork.kernels import cpu, register
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
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern
) -> tuple[Tensor | None, Tensor | None]:
    """``g W``, bfloat16, and ``g^T x`` at the stored positions, float32."""
    if not native.has_bf16():
        dx, dvalues = cpu.linear_backward(g.float(), None if x is None else x.float(), values, pattern)
        return None if dx is None else dx.to(g.dtype), dvalues
    g, x, values = _narrow(g), None if x is None else _narrow(x), None if values is None else _wide(values)
    dx = None if values is None else g.new_empty(g.shape[0], pattern.shape[1])
    dvalues = None if x is None else g.new_empty(pattern.value_shape, dtype=torch.float32)
    scattered = dx
    if values is not None and dx is not None and pattern.height == 1:
        # As in float32, single rows are gathered.
        turned = cpu.turned(pattern, values, 1)
        native.linear_forward_bf16(g.data_ptr(), dx.data_ptr(), 0, g.shape[0], *turned, cpu.threads())
        scattered = None
    if scattered is not None or dvalues is not None:
        native.linear_backward_bf16(
            g.data_ptr(), cpu.address(x), cpu.address(scattered), cpu.address(dvalues), g.shape[0],
            *cpu.stored(pattern, values), cpu.threads(),
        )  # fmt: skip
    return dx, dvalues


def _narrow(tensor: Tensor) -> Tensor:
    return _plain(tensor, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    return _plain(tensor, torch.float32)


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(f"kernel='cpu' wants {dtype} on the cpu here; got {tensor.dtype} on {tensor.device}")
    return tensor.contiguous()
