"""The products in plain PyTorch: any device, any floating dtype.

Every call unpacks the weight to a dense ``[R, C]`` tensor and computes densely, so this backend is neither small nor fast; it
is what the other backends are tested against, and what runs where they cannot.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.kernels import register
from openwork.kernels.window import Pair, Window
from openwork.pattern import Pattern


@register("linear", "reference")
def linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor:
    """``x W^T + bias``."""
    return F.linear(x, pattern.unpack(values), bias)


@register("linear_backward", "reference")
def linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern
) -> tuple[Tensor | None, Tensor | None]:
    """``g W`` and ``g^T x`` at the stored positions."""
    dx = None if values is None else g @ pattern.unpack(values)
    dvalues = None if x is None else pattern.pack(g.t() @ x)
    return dx, dvalues


@register("conv2d", "reference")
def conv2d(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution of ``x`` with the unpacked weight."""
    weight = pattern.unpack(values).view(pattern.shape[0], x.shape[1], *window.kernel_size)
    return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation).contiguous()


@register("conv2d_backward", "reference")
def conv2d_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, window: Window, input_size: Pair
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the input, of ``input_size`` pixels, and to the stored values."""
    channels = pattern.shape[1] // window.taps
    shape = (pattern.shape[0], channels, *window.kernel_size)
    weight = g.new_zeros(shape) if values is None else pattern.unpack(values).view(shape)
    image = g.new_zeros((g.shape[0], channels, *input_size)) if x is None else x
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        g, image, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), 1,
        (values is not None, x is not None, False),
    )  # fmt: skip
    return None if values is None else dx.contiguous(), None if x is None else pattern.pack(dweight)
