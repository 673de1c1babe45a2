"""The sparse linear layer as a PyTorch operator: differentiable, traceable, and one call for every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import lookup
from openwork.kernels.operator import PATTERN, asked, check, check_batch, check_matrix, define, eager, filled, parts, save
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
        ``[B, R]``, contiguous.  Rows of ``W`` that are in no group give 0 + bias.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend does not know them.
    """
    arguments = (x, values, bias, *parts(pattern), kernel)
    out: Tensor = _Linear.apply(*arguments) if eager(x) else torch.ops.openwork.linear(*arguments)
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
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    check(pattern, x=x, values=values, bias=bias)
    check_matrix("x", x, shape[1])
    out: Tensor = lookup("linear", kernel)(x, values, pattern, bias)
    return out


def _linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int], kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    check(pattern, g=g, x=x, values=values)
    check_matrix("g", g, shape[0])
    if x is not None:
        check_matrix("x", x, shape[1])
    check_batch(x, g)
    return filled(g, *lookup("linear_backward", kernel)(g, x, values, pattern))


def _linear_fake(x: Tensor, values: Tensor, bias: Any, rows: Any, offsets: Any, cols: Any, shape: Any, kernel: str) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


def _linear_backward_fake(
    g: Tensor, x: Tensor | None, values: Tensor | None, rows: Tensor, offsets: Any, cols: Tensor, shape: Any, kernel: str
) -> tuple[Tensor, Tensor]:
    dx = None if values is None else g.new_empty(g.shape[0], shape[1])
    dvalues = None if x is None else g.new_empty(cols.shape[0], rows.shape[1])
    return filled(g, dx, dvalues)


def _linear_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    dx = dvalues = dbias = None
    if x is not None or values is not None:
        backward: Any = torch.ops.openwork.linear_backward if torch.is_grad_enabled() or not eager(g) else _linear_backward
        both = backward(g, x, values, *index, ctx.shape, *ctx.rest)
        dx, dvalues = asked(both, values, x)
    if ctx.needs_input_grad[2]:
        dbias = g.sum(0)
    return dx, dvalues, dbias, None, None, None, None, None


# With a ``setup_context`` of their own, torch would bind every call's arguments to the signature of ``forward`` by inspection:
# for a small layer that alone takes longer than its products.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _linear(*inputs)
        save(ctx, inputs, output)
        return output

    backward = staticmethod(_linear_gradient)


define(
    f"linear(Tensor x, Tensor values, Tensor? bias, {PATTERN}, str kernel) -> Tensor", _linear, _linear_fake, _linear_gradient
)
define(
    f"linear_backward(Tensor g, Tensor? x, Tensor? values, {PATTERN}, str kernel) -> (Tensor, Tensor)",
    _linear_backward,
    _linear_backward_fake,
    None,
)
