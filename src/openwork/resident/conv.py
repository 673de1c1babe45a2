"""The sparse convolution from resident tensor to resident tensor."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from openwork.kernels.conv2d import check_conv2d
from openwork.kernels.operator import asked, parts, unwatched
from openwork.kernels.window import Window, fills_blocks
from openwork.pattern import Pattern
from openwork.resident.formula import DTYPES, Formula
from openwork.resident.switch import enabled
from openwork.resident.tensor import Content, ResidentTensor, to_nchw


def takes(x: Tensor, kernel: str, conversions: Counter[str]) -> bool:
    """Whether a sparse convolution of ``x`` should hand on a resident tensor: on the cpu, in plain eager mode.

    That is in float32, or in bfloat16 under autocast to it where the processor has instructions for that.
    Batches that would leave much of the blocks empty go without.  Where only those instructions are missing, ``conversions``
    counts it.
    """
    if torch.compiler.is_compiling() or kernel != "cpu" or not enabled() or x.dim() != 4 or not x.numel():
        return False
    if type(x) not in (Tensor, torch.nn.Parameter, ResidentTensor) or not _computes(x):
        return False
    # Traced programs and functions transformed by torch.func have no place for it.
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, though not exported
    if tracing or torch._C._are_functorch_transforms_active():
        return False
    if not fills_blocks(x.shape[0]):
        return False
    if torch.is_autocast_enabled("cpu"):
        # Not before it is used: importing openwork loads no native code.
        from openwork.resident.operations import native

        if not native.has_bf16():
            conversions["no bfloat16 instructions"] += 1
            return False
    return True


def _computes(x: Tensor) -> bool:
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32 and unwatched(x.device)
    narrow = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return narrow and x.dtype in DTYPES and x.device.type == "cpu" and not is_in_torch_dispatch_mode()


def conv2d(
    x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window, conversions: Counter[str]
) -> Tensor:
    """Two-dimensional convolution as ``kernels.ops.conv2d`` of an input that ``takes`` accepts; returns a resident tensor.

    Args:
        x: ``[N, Cin, H, W]``, resident or not; its gradient is what it is.  Under autocast it is rounded to bfloat16 first.
        values: ``[K, h]``.
        pattern: of shape ``(R, Cin * kh * kw)``.
        bias: ``[R]`` or None.
        window: of the convolution.
        conversions: where the result's conversions are counted.

    Raises:
        ValueError: as ``kernels.ops.conv2d``.
    """
    if torch.is_autocast_enabled("cpu"):
        x, values, bias = x.to(torch.bfloat16), values.float(), None if bias is None else bias.float()
    out: Tensor = _ResidentConv2d.apply(x, values, bias, *parts(pattern), window, conversions)
    return out


class _ResidentConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None,
        rows: Tensor, offsets: Tensor, cols: Tensor, shape: tuple[int, int], window: Window, conversions: Counter[str],
    ) -> Tensor:  # fmt: skip
        # Not before it is used: importing openwork loads no native code.
        from openwork.resident.operations import native

        pattern = Pattern(shape, rows, offsets, cols)
        check_conv2d(x, values, pattern, bias, window)
        values, bias = values.contiguous(), None if bias is None else bias.contiguous()
        formula, moments = native.conv2d(_readable(x), values, pattern, bias, window)
        want_x, want_values, ctx.want_bias = ctx.needs_input_grad[:3]
        ctx.save_for_backward(x if want_values else None, values if want_x else None, rows, offsets, cols)
        ctx.shape, ctx.window, ctx.size, ctx.plain = shape, window, tuple(x.shape[2:]), not isinstance(x, ResidentTensor)
        ctx.conversions = x.content.conversions if isinstance(x, ResidentTensor) else conversions
        return ResidentTensor(Content(formula, conversions, moments))

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        x, values, *index = ctx.saved_tensors
        pattern = Pattern(ctx.shape, *index)
        dx: Any = None
        dvalues = dbias = None
        if torch.is_grad_enabled():
            # Somebody may want to differentiate the gradients: the operator knows what to say to that.
            g, x = to_nchw(g), None if x is None else to_nchw(x)
            both = torch.ops.openwork.conv2d_backward(g, x, values, *parts(pattern), *ctx.window, ctx.size, "cpu")
            dx, dvalues = asked(both, values, x)
            return dx, dvalues, g.sum((0, 2, 3)) if ctx.want_bias else None, *(None,) * 6
        from openwork.resident.operations import native

        gradient = _readable(g)
        if x is not None or values is not None:
            dx, dvalues = native.conv2d_backward(
                gradient, None if x is None else _readable(x), None if values is None else values.contiguous(), pattern,
                ctx.window, ctx.size, plain=ctx.plain,
            )  # fmt: skip
        if isinstance(dx, Formula):
            dx = ResidentTensor(Content(dx, ctx.conversions))
        if ctx.want_bias:
            dbias = native.channel_sums(gradient)
        return dx, dvalues, dbias, *(None,) * 6


def _readable(x: Tensor) -> Formula | Tensor:
    """What the kernels read: one line or less of a formula, or contiguous NCHW."""
    held = x.content.held if isinstance(x, ResidentTensor) else x
    if isinstance(held, Formula):
        return held
    return held.contiguous()
