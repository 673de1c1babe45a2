"""The sparse linear layer as a PyTorch operator: differentiable, traceable, and one call for every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import lookup
from openwork.kernels.autocast import backward_under, check_uniform, checked, direct_backward, forward_under, narrow, narrows
from openwork.kernels.operator import (
    PATTERN,
    asked,
    check_batch,
    check_matrix,
    define,
    eager,
    filled,
    fits,
    keep,
    parts,
    versions,
)  # fmt: skip
from openwork.pattern import Pattern


def linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, kernel: str = "reference") -> Tensor:
    """``y = x W^T + bias`` with a sparse ``W[R, C]``.

    Args:
        x: ``[B, C]``, any strides.
        values: ``[K, h]``, the active weights in the order of ``pattern``.
        pattern: where they stand.
        bias: ``[R]`` or None.
        kernel: a backend of the table.

    Returns:
        ``[B, R]``, contiguous; bfloat16 under autocast to it.  Rows of ``W`` that are in no group give 0 + bias.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend does not know them.
    """
    if x.dtype is not torch.float32:
        check_uniform(pattern, x, values=values, bias=bias)
    out: Tensor
    if eager(x) and not torch.jit.is_tracing():  # type: ignore[attr-defined]  # public, though not exported
        out = _Linear.apply(x, values, bias, pattern, kernel)
    elif narrows("linear", kernel, x, values, bias):
        out = _Linear.apply(x.to(torch.bfloat16), values, bias, pattern, kernel)
    else:
        out = torch.ops.openwork.linear(x, values, bias, *parts(pattern), kernel)
    return out


def sddmm(x: Tensor, g: Tensor, pattern: Pattern, kernel: str = "reference") -> Tensor:
    """``g^T x`` at the positions of ``pattern``, nothing else of it: the weight gradient of :func:`linear`.

    Args:
        x: ``[B, C]``.
        g: ``[B, R]``.
        pattern: the positions; it need not be the one that a layer trains.
        kernel: a backend of the table.

    Returns:
        ``[K, h]``; 0 at padded rows.
    """
    out: Tensor = torch.ops.openwork.linear_backward(g, x, None, *parts(pattern), kernel)[1]
    return out


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int], kernel: str,
) -> Tensor:  # fmt: skip
    return _product(x, values, bias, Pattern((shape[0], shape[1]), rows, offsets, cols), kernel)


def _product(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, kernel: str) -> Tensor:
    if fits(pattern, values, bias, x):
        compute = lookup("linear", kernel)
    else:
        compute = checked("linear", kernel, pattern, {"x": x}, {"values": values, "bias": bias})
    check_matrix("x", x, pattern.shape[1])
    out: Tensor = compute(x, values, pattern, bias)
    return out


def _linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int], kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return filled(g, *_gradients(g, x, values, Pattern((shape[0], shape[1]), rows, offsets, cols), kernel))


def _gradients(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, kernel: str, *sums: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if fits(pattern, values, None, g, x):
        compute = lookup("linear_backward", kernel)
    else:
        compute = checked("linear_backward", kernel, pattern, {"g": g, "x": x}, {"values": values})
    check_matrix("g", g, pattern.shape[0])
    if x is not None:
        check_matrix("x", x, pattern.shape[1])
    check_batch(x, g)
    both: tuple[Tensor | None, Tensor | None] = compute(g, x, values, pattern, *sums)
    return both


def _linear_fake(x: Tensor, values: Tensor, bias: Any, rows: Any, offsets: Any, cols: Any, shape: Any, kernel: str) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


def _linear_backward_fake(
    g: Tensor, x: Tensor | None, values: Tensor | None, rows: Tensor, offsets: Any, cols: Tensor, shape: Any, kernel: str
) -> tuple[Tensor, Tensor]:
    dx = None if values is None else g.new_empty(g.shape[0], shape[1])
    dtype = torch.float32 if narrow("linear", kernel, g, x) else g.dtype
    dvalues = None if x is None else g.new_empty(cols.shape[0], rows.shape[1], dtype=dtype)
    return filled(g, dx, dvalues)


def _linear_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    return *_all_gradients(ctx, g, x, values, Pattern(ctx.shape, *index), *ctx.rest), *(None,) * 5


def _all_gradients(
    ctx: Any, g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, kernel: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dx = dvalues = dbias = None
    bias_wanted = ctx.needs_input_grad[2]
    if x is not None or values is not None:
        if direct_backward(g):
            sums: tuple[Tensor, ...] = ()
            if bias_wanted and narrow("linear_backward", kernel, g):
                # In passing: another pass over the gradient would cost more.
                dbias = g.new_empty(pattern.shape[0], dtype=torch.float32)
                sums = (dbias,)
            dx, dvalues = _gradients(g, x, values, pattern, kernel, *sums)
        else:
            both = torch.ops.openwork.linear_backward(g, x, values, *parts(pattern), kernel)
            dx, dvalues = asked(both, values, x)
    if bias_wanted and dbias is None:
        dbias = g.sum(0)
    return dx, dvalues, dbias


def _linear_autocast(*inputs: Any) -> Tensor:
    return forward_under(torch.ops.openwork.linear, "linear", *inputs)


def _linear_backward_autocast(*inputs: Any) -> tuple[Tensor, Tensor]:
    return backward_under(torch.ops.openwork.linear_backward, "linear", *inputs)


def _versions(pattern: Pattern) -> tuple[int, ...] | None:
    # Nothing counts the changes of tensors made in inference mode.
    return None if pattern.cols.is_inference() else versions(pattern)


# With a ``setup_context`` of their own, torch would bind every call's arguments to the signature of ``forward`` by inspection:
# for a small layer that alone takes longer than its products.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, kernel: str) -> Tensor:
        output = _product(x, values, bias, pattern, kernel)
        keep(ctx, x, values)
        # The index has no gradient; three more saved tensors would cost a small layer more than this.
        ctx.pattern, ctx.versions, ctx.kernel = pattern, _versions(pattern), kernel
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        pattern = ctx.pattern
        if _versions(pattern) != ctx.versions:
            raise RuntimeError("the pattern of a sparse layer has been modified by an inplace operation since its forward pass")
        return *_all_gradients(ctx, g, x, values, pattern, ctx.kernel), None, None


define(
    f"linear(Tensor x, Tensor values, Tensor? bias, {PATTERN}, str kernel) -> Tensor",
    _linear,
    _linear_fake,
    _linear_gradient,
    _linear_autocast,
)
define(
    f"linear_backward(Tensor g, Tensor? x, Tensor? values, {PATTERN}, str kernel) -> (Tensor, Tensor)",
    _linear_backward,
    _linear_backward_fake,
    None,
    _linear_backward_autocast,
)
