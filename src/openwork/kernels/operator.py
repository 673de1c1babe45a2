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

_PLAIN = (Tensor, torch.nn.Parameter)
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
    return type(tensor) in _PLAIN and tensor.is_cpu and not torch.compiler.is_compiling() and not is_in_torch_dispatch_mode()


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast does: float64 stays."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def eager(tensor: Tensor) -> bool:
    """Whether nothing but autograd watches the call.

    Then the kernels are called by an ``autograd.Function`` with the same formulas; the dispatcher's way through Python twice
    costs a small layer as much time as its arithmetic.
    """
    return type(tensor) in _PLAIN and _unwatched("cpu" if tensor.is_cpu else tensor.device.type)


def unwatched(device: torch.device) -> bool:
    """Whether no compiler, autocast or dispatch mode watches what is computed there."""
    return _unwatched(device.type)


def _unwatched(device_type: str) -> bool:
    return (
        device_type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(device_type)
        and not is_in_torch_dispatch_mode()
    )


def parts(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """A pattern as an operator takes it."""
    return pattern.rows, pattern.offsets, pattern.cols, pattern.shape


def versions(pattern: Pattern) -> tuple[int, ...]:
    """What changes with every change in place of the index."""
    return pattern.cols._version, pattern.offsets._version, pattern.rows._version


def fits(
    pattern: Pattern,
    values: Tensor | None,
    bias: Tensor | None,
    *activations: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether :func:`check` would find nothing, where all is on the CPU, activations ``dtype`` and the others float32.

    A small layer is called often.
    """
    cols = pattern.cols
    for tensor in activations:
        if tensor is not None and (tensor.dtype is not dtype or not tensor.is_cpu):
            return False
    for tensor in (values, bias):
        if tensor is not None and (tensor.dtype is not torch.float32 or not tensor.is_cpu):
            return False
    return (
        cols.is_cpu
        and (values is None or values.shape == (cols.shape[0], pattern.rows.shape[1]))
        and (bias is None or bias.shape == pattern.shape[:1])
    )


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
    shape = matrix.shape
    if len(shape) != 2 or shape[1] != columns:
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
    keep(ctx, x, values, rows, offsets, cols)
    ctx.shape, ctx.rest, ctx.input_size = shape, rest, tuple(x.shape[2:])


def keep(ctx: Any, x: Tensor, values: Tensor, *index: Tensor) -> None:
    """Save for backward what it reads: gradients that will not be wanted need neither the input nor the values."""
    wanted = ctx.needs_input_grad
    ctx.save_for_backward(x if wanted[1] else None, values if wanted[0] else None, *index)


def asked(both: tuple[Tensor, Tensor], values: Tensor | None, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of both gradients, those that were asked for."""
    return None if values is None else both[0], None if x is None else both[1]
