"""What the sparse operators share: how they are defined, what they refuse and what they keep for backward.

What is saved for backward is the layer's plain input, as dense layers do: the blocked layouts that the kernels work on are made
panel by panel in scratch memory and never stored, so a sparse layer holds no more activations than a dense one.  (Packing again
in backward costs about as much as reading a stored packed copy would.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from openwork.pattern import Pattern

PATTERN = "Tensor rows, Tensor offsets, Tensor cols, int[2] shape"

_library = torch.library.Library("openwork", "DEF")


def define(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Callable[..., Any] | None,
    autocast: Callable[..., Any] | None = None,
) -> None:
    """Make ``openwork::schema`` known to PyTorch.

    Args:
        schema: name and signature.
        function: what computes it on any device.
        fake: shapes alone, for tracing.
        gradient: from what ``save`` kept; None where there is none, as of gradients themselves.
        autocast: computes under autocast on the CPU, with the same arguments; None for everything in float32.
    """
    name = f"openwork::{schema[: schema.index('(')]}"
    _library.define(schema)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_library)
    for device in ("cpu", "cuda"):
        # The stored values are float32; under autocast the neighbours may hand over half precision.
        if device != "cpu" or autocast is None:
            torch.library.register_autocast(name, device, torch.float32, lib=_library)
        else:
            _library.impl(name, autocast, "AutocastCPU")
    if gradient is None:
        torch.library.register_autograd(name, _refuse_second_derivative, lib=_library)
    else:
        torch.library.register_autograd(name, gradient, setup_context=save, lib=_library)


def _refuse_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("sparse layers have no second derivative; densify the model first")


def direct(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one on the CPU that no compiler or dispatch mode watches."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
    )


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast does: float64 stays."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def eager(tensor: Tensor) -> bool:
    """Whether nothing but autograd watches the call.

    Then the kernels are called by an ``autograd.Function`` with the same formulas; the dispatcher's way through Python twice
    costs a small layer as much time as its arithmetic.
    """
    return type(tensor) in (Tensor, torch.nn.Parameter) and unwatched(tensor.device)


def unwatched(device: torch.device) -> bool:
    """Whether no compiler, autocast or dispatch mode watches what is computed there."""
    return (
        device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(device.type)
        and not is_in_torch_dispatch_mode()
    )


def parts(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """A pattern as an operator takes it."""
    return pattern.rows, pattern.offsets, pattern.cols, pattern.shape


def check(pattern: Pattern, **tensors: Tensor | None) -> None:
    """Raise ``ValueError`` unless values and bias fit the pattern and all have one dtype and device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    values, bias = given.get("values"), given.get("bias")
    if values is not None and tuple(values.shape) != pattern.value_shape:
        raise ValueError(f"values have shape {tuple(values.shape)}; the pattern stores {pattern.value_shape}")
    if bias is not None and tuple(bias.shape) != pattern.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; the layer has {pattern.shape[0]} outputs")
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; {first_name} is {first.dtype} on {first.device}")
    if pattern.cols.device != first.device:
        raise ValueError(f"the pattern is on {pattern.cols.device}; {first_name} is on {first.device}")


def check_matrix(name: str, matrix: Tensor, columns: int) -> None:
    """Raise ``ValueError`` unless it is ``[batch, columns]``."""
    if matrix.dim() != 2 or matrix.shape[1] != columns:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; this layer takes [batch, {columns}]")


def check_batch(x: Tensor | None, g: Tensor) -> None:
    """Raise ``ValueError`` unless both are of one batch."""
    if x is not None and x.shape[0] != g.shape[0]:
        raise ValueError(f"x has a batch of {x.shape[0]}, the gradient one of {g.shape[0]}")


def filled(g: Tensor, dx: Tensor | None, dvalues: Tensor | None) -> tuple[Tensor, Tensor]:
    """An operator returns tensors, never None: an empty one stands for a gradient that nobody asked for."""
    return g.new_empty(0) if dx is None else dx, g.new_empty(0) if dvalues is None else dvalues


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradient will read."""
    x, values, _, rows, offsets, cols, shape, *rest = inputs
    # Gradients that will not be wanted need neither the input nor the values: keep only what backward reads.
    want_x, want_values = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if want_values else None, values if want_x else None, rows, offsets, cols)
    ctx.shape, ctx.rest, ctx.input_size = shape, rest, tuple(x.shape[2:])


def asked(both: tuple[Tensor, Tensor], values: Tensor | None, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of both gradients, those that were asked for."""
    return None if values is None else both[0], None if x is None else both[1]
