"""Resident activations by the native module; all that crosses is checked here and in ``Formula.parts``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import openwork._native as native
from openwork.kernels.cpu import address, conv2d_gradients, geometry, nchw, sortings, stored, threads
from openwork.kernels.window import Pair, Window
from openwork.pattern import Pattern
from openwork.resident.formula import Formula, Size, blocked_shape, size_of

Activation = Formula | Tensor


class Line(NamedTuple):
    """What batch norm is for each channel, float32 ``[C]`` each: ``scale * x + shift``."""

    mean: Tensor
    inverse: Tensor
    scale: Tensor
    shift: Tensor


class NormGradient(NamedTuple):
    """Gradients of batch norm, float32 ``[C]`` each: the input's is ``a * g + b * x + shift``."""

    a: Tensor
    b: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor


def has_bf16() -> bool:
    """Whether convolutions take bfloat16."""
    return native.has_bf16()


def _of(name: str, dtype: torch.dtype) -> Any:
    """The native function for activations of this dtype."""
    return getattr(native, f"{name}_bf16" if dtype == torch.bfloat16 else name)


def _convert(x: Activation, to: tuple[int, int, int], dtype: torch.dtype) -> None:
    name = "to_bf16" if dtype == torch.bfloat16 else "to_floats"
    _of(name, x.dtype)(parts(x), to, size_of(x), threads())


def parts(x: Activation | None) -> tuple[int, ...]:
    """A formula or a contiguous NCHW tensor as addresses."""
    return x.parts() if isinstance(x, Formula) else nchw(x)


def numbers(x: Activation, *, moments: bool = False, dtype: torch.dtype | None = None) -> tuple[Formula, Tensor | None]:
    """The blocked numbers of a formula or of an NCHW tensor, and the moments of their lines if asked for.

    They are of ``dtype``, or of that of ``x``.
    """
    size = size_of(x)
    out = torch.empty(blocked_shape(size), dtype=dtype or x.dtype)
    lines = torch.empty(line_shape(size)) if moments else None
    _convert(x, (0, out.data_ptr(), address(lines)), out.dtype)
    return Formula(size, out), lines


def to_nchw(x: Formula) -> Tensor:
    """The numbers as PyTorch has them."""
    out = torch.empty(x.size, dtype=x.dtype)
    _convert(x, (out.data_ptr(), 0, 0), x.dtype)
    return out


def line_moments(x: Formula) -> Tensor:
    """Mean and sum of squared distances from it, of every channel of every line of numbers."""
    out = torch.empty(line_shape(x.size))
    x.parts()
    _of("line_moments", x.dtype)(x.x.data_ptr(), out.data_ptr(), x.size, threads())
    return out


def norm_forward(
    size: Size,
    moments: Tensor | None,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    momentum: float,
    eps: float,
) -> Line:
    """Batch norm of these moments, which updates ``running``, or of ``running`` where there are none."""
    for tensor in (*affine, *running):
        if tensor is not None and (
            tensor.dtype != torch.float32 or tuple(tensor.shape) != size[1:2] or not tensor.is_contiguous()
        ):
            raise ValueError(
                f"batch norm takes contiguous float32 of {size[1]} channels, got {tensor.dtype} {tuple(tensor.shape)}"
            )
    line = Line(*torch.empty(4, size[1]).unbind())
    native.norm_forward(
        size, address(moments), tuple(map(address, (*affine, *running))), momentum, eps, *(part.data_ptr() for part in line)
    )
    return line


def norm_backward(
    g: Formula, x: Formula, weight: Tensor | None, mean: Tensor, inverse: Tensor, *, batch_statistics: bool
) -> NormGradient:
    """Gradients of batch norm over the numbers ``x``; one pass over both, summed line by line in one order."""
    _check_same(g=g, x=x)
    x.parts()
    sums = _gradient_sums(g, x.x, mean)
    out = NormGradient(*torch.empty(5, x.size[1]).unbind())
    native.norm_backward(
        x.size, sums.data_ptr(), address(weight), mean.data_ptr(), inverse.data_ptr(), batch_statistics,
        tuple(part.data_ptr() for part in out),
    )  # fmt: skip
    return out


def _gradient_sums(g: Formula, x: Tensor, mean: Tensor) -> Tensor:
    """Of ``g`` and of ``g * (x - mean)``, for every channel of every line."""
    sums = torch.empty(line_shape(g.size))
    of = _of("gradient_sums", g.dtype)
    of(g.parts(), x.data_ptr(), mean.data_ptr(), sums.data_ptr(), g.size, threads())
    return sums


def conv2d(x: Activation, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> tuple[Formula, Tensor]:
    """The convolution's blocked numbers and the moments of their lines."""
    batch, _, *image = size_of(x)
    size = (batch, pattern.shape[0], *window.output_size(image[0], image[1]))
    out, lines = torch.empty(blocked_shape(size), dtype=x.dtype), torch.empty(line_shape(size))
    order = () if x.dtype == torch.bfloat16 else (sortings(pattern),)
    _of("conv_forward", x.dtype)(
        parts(x), (0, out.data_ptr(), lines.data_ptr()), address(bias), batch,
        *geometry((image[0], image[1]), window), *stored(pattern, values), *order, threads(),
    )  # fmt: skip
    return Formula(size, out), lines


def conv2d_backward(
    g: Activation,
    x: Activation | None,
    values: Tensor | None,
    pattern: Pattern,
    window: Window,
    input_size: Pair,
    *,
    plain: bool,
) -> tuple[Activation | None, Tensor | None]:
    """Gradients of the input, NCHW if ``plain``, and of the stored values; either where its other factor is given."""
    _check_same(g=g, x=x)
    batch = size_of(g)[0]
    size = (batch, pattern.shape[1] // window.taps, *input_size)
    dx = None if values is None else torch.empty(size if plain else blocked_shape(size), dtype=g.dtype)
    to = (address(dx), 0, 0) if plain else (0, address(dx), 0)
    dvalues = None if x is None else torch.empty(pattern.value_shape)
    narrow = g.dtype == torch.bfloat16
    conv2d_gradients(parts(g), parts(x), batch, values, pattern, window, input_size, to, dvalues, narrow=narrow)
    return dx if plain or dx is None else Formula(size, dx), dvalues


def _check_same(**activations: Activation | None) -> None:
    """Raise ``TypeError`` unless all that are given have one dtype."""
    dtypes = {name: x.dtype for name, x in activations.items() if x is not None}
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"activations must have one dtype, got {dtypes}")


def line_shape(size: Size) -> tuple[int, int, int, int]:
    """Shape of the moments of the lines of ``[N, C, H, W]``."""
    panels, height, channels, _, _ = blocked_shape(size)
    return panels, height, channels, 2


def channel_sums(x: Activation) -> Tensor:
    """float32 ``[C]``: sums over batch and positions."""
    if not isinstance(x, Formula):
        return x.sum((0, 2, 3), dtype=torch.float32)
    # What batch norm's gradient needs beside it costs nothing: it reads the same numbers.
    return _gradient_sums(x, x.x, torch.zeros(x.size[1]))[..., 0].sum((0, 1))


def max_pool(x: Formula, window: Window) -> tuple[Formula, Tensor]:
    """The largest of every window, and the number of its tap as a blocked float32 tensor."""
    size = (*x.size[:2], *window.output_size(*x.size[2:]))
    out, taps = torch.empty(blocked_shape(size), dtype=x.dtype), torch.empty(blocked_shape(size))
    _of("max_pool", x.dtype)(
        x.parts(), out.data_ptr(), taps.data_ptr(), size[1], size[0], *geometry((x.size[2], x.size[3]), window), threads()
    )
    return Formula(size, out), taps


def max_pool_backward(g: Formula, taps: Tensor, window: Window, size: Size) -> Formula:
    """The gradient of :func:`max_pool`'s input, which is of ``size``."""
    if (*size[:2], *window.output_size(*size[2:])) != g.size or tuple(taps.shape) != blocked_shape(g.size):
        raise ValueError(f"a pooling of {size} by {window} has no gradient of {g.size} with taps of {tuple(taps.shape)}")
    dx = torch.empty(blocked_shape(size), dtype=g.dtype)
    _of("max_pool_backward", g.dtype)(
        g.parts(), taps.data_ptr(), dx.data_ptr(), size[1], size[0], *geometry((size[2], size[3]), window), threads()
    )
    return Formula(size, dx)
