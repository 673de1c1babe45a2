"""The sparse products as PyTorch operators: differentiable, traceable, and one call for every backend.

What is saved for backward is the layer's plain input, as dense layers do: the blocked layouts that the kernels work on are made
panel by panel in scratch memory and never stored, so a sparse layer holds no more activations than a dense one.  (Packing again
in backward costs about as much as reading a stored packed copy would.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from openwork.kernels import lookup
from openwork.kernels.window import Pair, Window
from openwork.pattern import Pattern

_PATTERN = "Tensor rows, Tensor offsets, Tensor cols, int[2] shape"
_WINDOW = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"

_library = torch.library.Library("openwork", "DEF")
_library.define(f"linear(Tensor x, Tensor values, Tensor? bias, {_PATTERN}, str kernel) -> Tensor")
_library.define(f"linear_backward(Tensor g, Tensor? x, Tensor? values, {_PATTERN}, str kernel) -> (Tensor, Tensor)")
_library.define(f"conv2d(Tensor x, Tensor values, Tensor? bias, {_PATTERN}, {_WINDOW}, str kernel) -> Tensor")
_library.define(
    f"conv2d_backward(Tensor g, Tensor? x, Tensor? values, {_PATTERN}, {_WINDOW}, int[2] input_size, str kernel)"
    " -> (Tensor, Tensor)"
)


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
    arguments = (x, values, bias, *_parts(pattern), kernel)
    out: Tensor = _Linear.apply(*arguments) if _eager(x) else torch.ops.openwork.linear(*arguments)
    return out


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    kernel: str = "reference",
) -> Tensor:
    """Two-dimensional convolution with a sparse weight; column ``(cin * kh + i) * kw + j`` of ``W[R, C]`` is tap ``(i, j)``.

    Args:
        x: ``[N, Cin, H, W]``, any strides.
        values: ``[K, h]``.
        pattern: of shape ``(R, Cin * kh * kw)``.
        bias: ``[R]`` or None.
        kernel_size: ``(kh, kw)``.
        stride: pixels the window moves by.
        padding: zero pixels around the image.
        dilation: pixels between neighbouring taps.
        kernel: a backend of the table.

    Returns:
        ``[N, R, Ho, Wo]``, contiguous.

    Raises:
        ValueError: a shape, dtype or device does not fit, the window is larger than the padded image, or the backend does not
            know them.
    """
    arguments = (x, values, bias, *_parts(pattern), kernel_size, stride, padding, dilation, kernel)
    out: Tensor = _Conv2d.apply(*arguments) if _eager(x) else torch.ops.openwork.conv2d(*arguments)
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
    out: Tensor = torch.ops.openwork.linear_backward(g, x, None, *_parts(pattern), kernel)[1]
    return out


def conv2d_sddmm(
    x: Tensor,
    g: Tensor,
    pattern: Pattern,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    kernel: str = "reference",
) -> Tensor:
    """The weight gradient of :func:`conv2d` at the positions of ``pattern``; ``[K, h]``, 0 at padded rows."""
    size = (x.shape[2], x.shape[3])
    out: Tensor = torch.ops.openwork.conv2d_backward(
        g, x, None, *_parts(pattern), kernel_size, stride, padding, dilation, size, kernel
    )[1]
    return out


def _eager(tensor: Tensor) -> bool:
    """Whether nothing but autograd watches the call.

    Then the kernels are called by an ``autograd.Function`` with the same formulas; the dispatcher's way through Python twice
    costs a small layer as much time as its arithmetic.
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(tensor.device.type)
        and not is_in_torch_dispatch_mode()
    )


def _parts(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    return pattern.rows, pattern.offsets, pattern.cols, pattern.shape


def _check(pattern: Pattern, **tensors: Tensor | None) -> None:
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


def _check_matrix(name: str, matrix: Tensor, columns: int) -> None:
    if matrix.dim() != 2 or matrix.shape[1] != columns:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; this layer takes [batch, {columns}]")


def _check_image(name: str, image: Tensor, channels: int, size: Pair | None = None) -> None:
    if image.dim() != 4 or image.shape[1] != channels or (size is not None and tuple(image.shape[2:]) != tuple(size)):
        expected = f"[batch, {channels}, height, width]" if size is None else f"[batch, {channels}, {size[0]}, {size[1]}]"
        raise ValueError(f"{name} has shape {tuple(image.shape)}; this layer takes {expected}")


def _check_batch(x: Tensor | None, g: Tensor) -> None:
    if x is not None and x.shape[0] != g.shape[0]:
        raise ValueError(f"x has a batch of {x.shape[0]}, the gradient one of {g.shape[0]}")


def _check_window(pattern: Pattern, window: Window) -> int:
    window.check()
    if pattern.shape[1] % window.taps:
        raise ValueError(f"the pattern has {pattern.shape[1]} columns, no multiple of kernel_size={tuple(window.kernel_size)}")
    return pattern.shape[1] // window.taps


def _output_size(window: Window, size: Pair) -> Pair:
    out = window.output_size(*size)
    if min(out) < 1:
        raise ValueError(f"a window of {window} does not fit an image of {tuple(size)} pixels")
    return out


def _window(*parts: list[int]) -> Window:
    kernel_size, stride, padding, dilation = ((int(part[0]), int(part[1])) for part in parts)
    return Window(kernel_size, stride, padding, dilation)


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int], kernel: str,
) -> Tensor:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    _check(pattern, x=x, values=values, bias=bias)
    _check_matrix("x", x, shape[1])
    out: Tensor = lookup("linear", kernel)(x, values, pattern, bias)
    return out


def _linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int], kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    _check(pattern, g=g, x=x, values=values)
    _check_matrix("g", g, shape[0])
    if x is not None:
        _check_matrix("x", x, shape[1])
    _check_batch(x, g)
    return _filled(g, *lookup("linear_backward", kernel)(g, x, values, pattern))


def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int],
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], kernel: str,
) -> Tensor:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    window = _window(kernel_size, stride, padding, dilation)
    _check(pattern, x=x, values=values, bias=bias)
    _check_image("x", x, _check_window(pattern, window))
    _output_size(window, (x.shape[2], x.shape[3]))
    out: Tensor = lookup("conv2d", kernel)(x, values, pattern, bias, window)
    return out


def _conv2d_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None,
    rows: Tensor, offsets: Tensor, cols: Tensor, shape: list[int],
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], input_size: list[int], kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pattern = Pattern((shape[0], shape[1]), rows, offsets, cols)
    window = _window(kernel_size, stride, padding, dilation)
    size = (input_size[0], input_size[1])
    _check(pattern, g=g, x=x, values=values)
    channels = _check_window(pattern, window)
    _check_image("g", g, shape[0], _output_size(window, size))
    if x is not None:
        _check_image("x", x, channels, size)
    _check_batch(x, g)
    return _filled(g, *lookup("conv2d_backward", kernel)(g, x, values, pattern, window, size))


def _filled(g: Tensor, dx: Tensor | None, dvalues: Tensor | None) -> tuple[Tensor, Tensor]:
    # An operator returns tensors, never None: an empty one stands for a gradient that nobody asked for.
    return g.new_empty(0) if dx is None else dx, g.new_empty(0) if dvalues is None else dvalues


def _linear_fake(x: Tensor, values: Tensor, bias: Any, rows: Any, offsets: Any, cols: Any, shape: Any, kernel: str) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


def _linear_backward_fake(
    g: Tensor, x: Tensor | None, values: Tensor | None, rows: Tensor, offsets: Any, cols: Tensor, shape: Any, kernel: str
) -> tuple[Tensor, Tensor]:
    dx = None if values is None else g.new_empty(g.shape[0], shape[1])
    dvalues = None if x is None else g.new_empty(cols.shape[0], rows.shape[1])
    return _filled(g, dx, dvalues)


def _conv2d_fake(
    x: Tensor, values: Tensor, bias: Any, rows: Any, offsets: Any, cols: Any, shape: Any,
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, kernel: str,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation)
    return x.new_empty(x.shape[0], shape[0], *window.output_size(x.shape[2], x.shape[3]))


def _conv2d_backward_fake(
    g: Tensor, x: Tensor | None, values: Tensor | None, rows: Tensor, offsets: Any, cols: Tensor, shape: Any,
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, input_size: Any, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    channels = shape[1] // (kernel_size[0] * kernel_size[1])
    dx = None if values is None else g.new_empty(g.shape[0], channels, input_size[0], input_size[1])
    dvalues = None if x is None else g.new_empty(cols.shape[0], rows.shape[1])
    return _filled(g, dx, dvalues)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, rows, offsets, cols, shape, *rest = inputs
    # Gradients that will not be wanted need neither the input nor the values: keep only what backward reads.
    want_x, want_values = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if want_values else None, values if want_x else None, rows, offsets, cols)
    ctx.shape, ctx.rest, ctx.input_size = shape, rest, tuple(x.shape[2:])


def _linear_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    dx = dvalues = dbias = None
    if x is not None or values is not None:
        backward: Any = torch.ops.openwork.linear_backward if torch.is_grad_enabled() or not _eager(g) else _linear_backward
        both = backward(g, x, values, *index, ctx.shape, *ctx.rest)
        dx, dvalues = _asked(both, values, x)
    if ctx.needs_input_grad[2]:
        dbias = g.sum(0)
    return dx, dvalues, dbias, None, None, None, None, None


def _conv2d_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    dx = dvalues = dbias = None
    if x is not None or values is not None:
        *window, kernel = ctx.rest
        backward: Any = torch.ops.openwork.conv2d_backward if torch.is_grad_enabled() or not _eager(g) else _conv2d_backward
        both = backward(g, x, values, *index, ctx.shape, *window, ctx.input_size, kernel)
        dx, dvalues = _asked(both, values, x)
    if ctx.needs_input_grad[2]:
        dbias = g.sum((0, 2, 3))
    return (dx, dvalues, dbias, *(None,) * 9)


def _asked(both: tuple[Tensor, Tensor], values: Tensor | None, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return None if values is None else both[0], None if x is None else both[1]


# With a ``setup_context`` of their own, torch would bind every call's arguments to the signature of ``forward`` by inspection:
# for a small layer that alone takes longer than its products.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _linear(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_linear_gradient)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _conv2d(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_conv2d_gradient)


def _refuse_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("sparse layers have no second derivative; densify the model first")


for _name, _function, _fake in (
    ("linear", _linear, _linear_fake),
    ("linear_backward", _linear_backward, _linear_backward_fake),
    ("conv2d", _conv2d, _conv2d_fake),
    ("conv2d_backward", _conv2d_backward, _conv2d_backward_fake),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"openwork::{_name}", _fake, lib=_library)
    for _device in ("cpu", "cuda"):
        # The stored values are float32; under autocast the neighbours may hand over half precision.
        torch.library.register_autocast(f"openwork::{_name}", _device, torch.float32, lib=_library)

torch.library.register_autograd("openwork::linear", _linear_gradient, setup_context=_save, lib=_library)
torch.library.register_autograd("openwork::conv2d", _conv2d_gradient, setup_context=_save, lib=_library)
for _name in ("linear_backward", "conv2d_backward"):
    torch.library.register_autograd(f"openwork::{_name}", _refuse_second_derivative, lib=_library)
