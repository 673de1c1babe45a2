"""Resident activations by the native module; all that crosses is checked here and in ``Formula.parts``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import openwork._native as native
from openwork.kernels.cpu import address, conv2d_gradients, geometry, nchw, sortings, stored, threads, versions
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


def parts(x: Activation | None) -> tuple[int, ...]:
    """A formula or a contiguous NCHW tensor as addresses."""
    return x.parts() if isinstance(x, Formula) else nchw(x)


def numbers(x: Activation, *, moments: bool = False) -> tuple[Formula, Tensor | None]:
    """The blocked numbers of a formula or of an NCHW tensor, and the moments of their lines if asked for."""
    size = size_of(x)
    out = torch.empty(blocked_shape(size))
    lines = torch.empty(line_shape(size)) if moments else None
    native.convert(parts(x), (0, out.data_ptr(), address(lines)), size, threads())
    return Formula(size, out), lines


def to_nchw(x: Formula) -> Tensor:
    """The numbers as PyTorch has them."""
    out = torch.empty(x.size)
    native.convert(x.parts(), (out.data_ptr(), 0, 0), x.size, threads())
    return out


def line_moments(x: Formula) -> Tensor:
    """Mean and sum of squared distances from it, of every channel of every line of numbers."""
    out = torch.empty(line_shape(x.size))
    x.parts()
    native.line_moments(x.x.data_ptr(), out.data_ptr(), x.size, threads())
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
    sums = torch.empty(line_shape(x.size))
    x.parts()
    native.gradient_sums(g.parts(), x.x.data_ptr(), mean.data_ptr(), sums.data_ptr(), x.size, threads())
    out = NormGradient(*torch.empty(5, x.size[1]).unbind())
    native.norm_backward(
        x.size, sums.data_ptr(), address(weight), mean.data_ptr(), inverse.data_ptr(), batch_statistics,
        tuple(part.data_ptr() for part in out),
    )  # fmt: skip
    return out


def conv2d(x: Activation, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> tuple[Formula, Tensor]:
    """The convolution's blocked numbers and the moments of their lines."""
    batch, _, *image = size_of(x)
    size = (batch, pattern.shape[0], *window.output_size(image[0], image[1]))
    out, lines = torch.empty(blocked_shape(size)), torch.empty(line_shape(size))
    native.conv_forward(
        parts(x), (0, out.data_ptr(), lines.data_ptr()), address(bias), batch,
        *geometry((image[0], image[1]), window), *stored(pattern, values),
        sortings(pattern.cols, versions(pattern)), threads(),
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
    batch = size_of(g)[0]
    size = (batch, pattern.shape[1] // window.taps, *input_size)
    dx = None if values is None else torch.empty(size if plain else blocked_shape(size))
    to = (address(dx), 0, 0) if plain else (0, address(dx), 0)
    dvalues = None if x is None else torch.empty(pattern.value_shape)
    conv2d_gradients(parts(g), parts(x), batch, values, pattern, window, input_size, to, dvalues)
    return dx if plain or dx is None else Formula(size, dx), dvalues


def line_shape(size: Size) -> tuple[int, int, int, int]:
    """Shape of the moments of the lines of ``[N, C, H, W]``."""
    panels, height, channels, _, _ = blocked_shape(size)
    return panels, height, channels, 2


def channel_sums(x: Activation) -> Tensor:
    """``[C]``: sums over batch and positions."""
    if not isinstance(x, Formula):
        return x.sum((0, 2, 3))
    size = x.size
    values = (x if x.is_numbers else numbers(x)[0]).x
    ragged = size[0] % values.shape[-1]
    if not ragged:
        return values.sum((0, 1, 3, 4))
    return values[:-1].sum((0, 1, 3, 4)) + values[-1, ..., :ragged].sum((0, 2, 3))


def max_pool(x: Formula, window: Window) -> tuple[Formula, Tensor]:
    """The largest of every window, and the number of its tap as a blocked float32 tensor."""
    size = (*x.size[:2], *window.output_size(*x.size[2:]))
    out, taps = torch.empty(blocked_shape(size)), torch.empty(blocked_shape(size))
    native.max_pool(
        x.parts(), out.data_ptr(), taps.data_ptr(), size[1], size[0], *geometry((x.size[2], x.size[3]), window), threads()
    )
    return Formula(size, out), taps


def max_pool_backward(g: Formula, taps: Tensor, window: Window, size: Size) -> Formula:
    """The gradient of :func:`max_pool`'s input, which is of ``size``."""
    if (*size[:2], *window.output_size(*size[2:])) != g.size or tuple(taps.shape) != blocked_shape(g.size):
        raise ValueError(f"a pooling of {size} by {window} has no gradient of {g.size} with taps of {tuple(taps.shape)}")
    dx = torch.empty(blocked_shape(size))
    native.max_pool_backward(
        g.parts(), taps.data_ptr(), dx.data_ptr(), size[1], size[0], *geometry((size[2], size[3]), window), threads()
    )
    return Formula(size, dx)
