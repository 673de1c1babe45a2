"""A dense weight that is trained although only a part of it computes: the straight-through estimator."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class DenseGradient(Protocol):
    """How a module's inputs and output gradients make up the dense gradient of its weight."""

    shape: tuple[int, int]

    def dense_rows(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        """The rows ``rows`` of the dense gradient, ``[len(rows), C]``."""


class _StraightThrough(torch.autograd.Function):
    """The identity on a sparse product, which hands the master the gradient that a dense product would have given."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, master: Tensor, module: DenseGradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module, ctx.dims, ctx.dtype = module, master.shape, master.dtype
        # A view could not be modified in place afterwards, as activations do.
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        if not ctx.needs_input_grad[2]:
            return g, None, None, None
        (x,) = ctx.saved_tensors
        rows = torch.arange(ctx.module.shape[0], device=g.device)
        dense = ctx.module.dense_rows(x.to(ctx.dtype), g.to(ctx.dtype), rows)
        return g, None, dense.view(ctx.dims), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def straight_through(out: Tensor, x: Tensor, master: Tensor, module: DenseGradient) -> Tensor:
    """``out``, with a gradient for all of ``master``.

    Args:
        out: the sparse product of ``x``.
        x: its input, as the module's ``dense_rows`` takes it.
        master: the dense weight.
        module: what made the product.
    """
    result: Tensor = _StraightThrough.apply(out, x.detach(), master, module)
    return result


def resize(parameter: torch.nn.Parameter, data: Tensor) -> None:
    """Give a parameter data of another shape.

    A graph that is still alive, as that of a kept loss, holds a gradient node of the old shape, which the next forward pass
    would take up.  PyTorch lets go of it when the type changes, not when the shape does.
    """
    data = data.to(parameter)
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
