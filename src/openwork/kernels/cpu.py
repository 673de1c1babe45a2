"""The products on the CPU, in float32, by the native module.

Tensors cross as addresses, so everything that the native code may touch is checked here: dtype, device, contiguity, sizes.
The indices of a pattern are checked by the native code itself while it turns them into offsets, on every call, so that not even
an index that was overwritten in place can make it read outside its buffers.

The number of threads is torch's.  Nothing depends on it, bit for bit, but the weight gradient of a convolution, which is a sum
over threads: that is the same, bit for bit, in every run with the same number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

import openwork._native as native
from openwork.kernels import register
from openwork.kernels.operator import versions
from openwork.kernels.window import Pair, Window
from openwork.pattern import Pattern

_Index = tuple[Tensor, Tensor, Tensor]
_Windows = tuple[int, _Index]
_NONE = (*(0,) * 7, 1)
_transposed = WeakTensorKeyDictionary()
_transposed_lock = threading.Lock()
_cut = WeakTensorKeyDictionary()
_sorted = WeakTensorKeyDictionary()
_ORDERS = 4  # a layer needs two, one more for batches of another kind


@register("linear", "cpu")
def linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor:
    """``x W^T + bias``, panel by panel of the batch."""
    x, values, bias = _plain(x), _plain(values), _plain_or_none(bias)
    y = x.new_empty(x.shape[0], pattern.shape[0])
    if pattern.height == 1:
        _segments_forward(x, values, pattern, bias, y, turned=False)
    else:
        native.linear_forward(x.data_ptr(), y.data_ptr(), address(bias), x.shape[0], *stored(pattern, values), threads())
    return y


@register("linear_backward", "cpu")
def linear_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern
) -> tuple[Tensor | None, Tensor | None]:
    """``g W`` and ``g^T x`` at the stored positions.

    Row groups of height 1 take the input gradient as a forward product of the transposed structure, which is built once for
    each pattern: gathering is more than twice as fast as scattering single rows.
    """
    g, x, values = _plain(g), _plain_or_none(x), _plain_or_none(values)
    dx = None if values is None else g.new_empty(g.shape[0], pattern.shape[1])
    dvalues = None if x is None else g.new_empty(pattern.value_shape)
    if pattern.height == 1:
        batch = g.shape[0]
        weight = None if x is None else _windows(pattern, batch, turned=False)
        transposed = None if values is None else _windows(pattern, batch, turned=True)
        native.segments_backward(
            g.data_ptr(), address(x), address(dx), address(dvalues), batch, _cutting(weight, pattern, None, turned=False),
            _cutting(transposed, pattern, values, turned=True), threads(),
        )  # fmt: skip
    else:
        native.linear_backward(
            g.data_ptr(), address(x), address(dx), address(dvalues), g.shape[0], *stored(pattern, values), threads()
        )
    return dx, dvalues


def _segments_forward(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, y: Tensor, *, turned: bool) -> None:
    """``linear`` with a pattern of height 1, or with its transposition, cut into windows of columns whose inputs fit L1."""
    windows = _windows(pattern, x.shape[0], turned=turned)
    cutting = _cutting(windows, pattern, values, turned=turned)
    native.segments_forward(x.data_ptr(), y.data_ptr(), address(bias), x.shape[0], cutting, threads())


def _cutting(windows: _Windows | None, pattern: Pattern, values: Tensor | None, *, turned: bool) -> tuple[int, ...]:
    """A pattern of height 1 in windows of columns, or its transposition, as the native module takes it."""
    if windows is None:
        return _NONE
    width, (offsets, cols, order) = windows
    rows, inputs = (pattern.shape[1], pattern.shape[0]) if turned else pattern.shape
    return address(values), order.data_ptr(), offsets.data_ptr(), cols.data_ptr(), rows, inputs, order.shape[0], width


def _windows(pattern: Pattern, batch: int, *, turned: bool) -> _Windows:
    # Kept like the transposition, for the batch used last and for one of another size, such as the last of an epoch.
    # Whoever uses them holds them meanwhile: another thread may need a third.
    width = native.segment_width(batch)
    key = versions(pattern)
    with _transposed_lock:
        known: dict[tuple[bool, int], tuple[tuple[int, ...], _Index]] = _cut.setdefault(pattern.cols, {})
        found = known.get((turned, width))
    if found is not None and found[0] == key:
        return width, found[1]
    rows, inputs = (pattern.shape[1], pattern.shape[0]) if turned else pattern.shape
    whole: tuple[int, ...] = stored(pattern, None)
    if turned:
        offsets, cols, order = _transpose(pattern, 1)
        whole = (0, order.data_ptr(), 0, offsets.data_ptr(), cols.data_ptr(), rows, inputs, rows, 1, len(cols))
    cut_offsets = torch.empty(-(-inputs // width) * rows + 1, dtype=torch.int32)
    index = cut_offsets, torch.empty(len(pattern.cols), dtype=torch.int16), torch.empty_like(pattern.cols)
    native.cut(width, *(part.data_ptr() for part in index), *whole, threads())
    with _transposed_lock:
        others = [other for other in known if other[0] == turned and other[1] != width]
        for other in others[:-1]:
            known.pop(other, None)
        known[turned, width] = (key, index)
    return width, index


@register("conv2d", "cpu")
def conv2d(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution, line by line of 16 images at a time."""
    x, values, bias = _plain(x), _plain(values), _plain_or_none(bias)
    size = (x.shape[2], x.shape[3])
    y = x.new_empty(x.shape[0], pattern.shape[0], *window.output_size(*size))
    native.conv_forward(
        nchw(x), (y.data_ptr(), 0, 0), address(bias), len(x), *geometry(size, window), *stored(pattern, values),
        sortings(pattern), threads(),
    )  # fmt: skip
    return y


@register("conv2d_backward", "cpu")
def conv2d_backward(
    g: Tensor, x: Tensor | None, values: Tensor | None, pattern: Pattern, window: Window, input_size: Pair
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the input and to the stored values, in one pass over the output gradient where they share it.

    As for linear layers, height 1 takes the input gradient as a forward convolution of the transposed structure; with a stride,
    where that would be one convolution for each phase, it scatters.
    """
    g, x, values = _plain(g), _plain_or_none(x), _plain_or_none(values)
    dx = None if values is None else g.new_empty(len(g), pattern.shape[1] // window.taps, *input_size)
    dvalues = None if x is None else g.new_empty(pattern.value_shape)
    conv2d_gradients(nchw(g), nchw(x), len(g), values, pattern, window, input_size, (address(dx), 0, 0), dvalues)
    return dx, dvalues


def conv2d_gradients(
    g: tuple[int, ...], x: tuple[int, ...], batch: int, values: Tensor | None, pattern: Pattern, window: Window,
    input_size: Pair, dx: tuple[int, int, int], dvalues: Tensor | None, *, narrow: bool = False,
) -> None:  # fmt: skip
    """Both gradients of a convolution, of activations and to places as the native module takes them.

    Args:
        g: the output gradient.
        x: the input; not read without ``dvalues``.
        batch: images.
        values: ``[K, h]``; without them ``dx`` is not written.
        pattern: where they stand.
        window: of the convolution.
        input_size: height and width of the input.
        dx: where the input gradient goes.
        dvalues: ``[K, h]`` or None.
        narrow: whether activations are bfloat16.
    """
    forward: Callable[..., None] = native.conv_forward_bf16 if narrow else native.conv_forward
    backward: Callable[..., None] = native.conv_backward_bf16 if narrow else native.conv_backward
    if values is not None and gathers(pattern, window):
        flipped = geometry(window.output_size(*input_size), mirrored(window))
        weight, kept = turned(pattern, values, window.taps)
        order = () if narrow else (kept,)
        forward(g, dx, 0, batch, *flipped, *weight, *order, threads())
        dx = (0, 0, 0)
    if any(dx) or dvalues is not None:
        size = geometry(input_size, window)
        order = () if narrow else (sortings(pattern),)
        backward(g, x, dx, address(dvalues), batch, *size, *stored(pattern, values), *order, threads())


def kept_bytes(cols: Tensor) -> int:
    """Bytes of index that are kept beside the pattern with these columns: transposed, cut into windows, and sorted."""
    with _transposed_lock:
        turned = _transposed.get(cols)
        found = [turned, *_cut.get(cols, {}).values()]
        orders = _sorted.get(cols)
    index = sum(part.numel() * part.element_size() for kept in found if kept is not None for part in kept[1])
    return index + (0 if orders is None else orders[1].bytes) + (0 if turned is None else turned[2].bytes)


def scratch_bytes() -> int:
    """Bytes of scratch memory that the kernels keep between calls; at most ``native.SCRATCH_LIMIT``."""
    return native.scratch_bytes()


def release_scratch() -> None:
    """Give the kernels' idle scratch memory back to the system."""
    native.release_scratch()


def threads() -> int:
    """How many compute."""
    return torch.get_num_threads()


def _plain(tensor: Tensor) -> Tensor:
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        raise ValueError(f"kernel='cpu' computes in torch.float32 on the cpu; got {tensor.dtype} on {tensor.device}")
    return tensor.contiguous()


def _plain_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _plain(tensor)


def nchw(tensor: Tensor | None) -> tuple[int, ...]:
    """A plain image batch as the native convolutions take activations."""
    return (address(tensor), *(0,) * 10)


def address(tensor: Tensor | None) -> int:
    """Where it lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _check_index(pattern: Pattern) -> None:
    rows, offsets, cols = pattern.rows, pattern.offsets, pattern.cols
    for tensor in (rows, offsets, cols):
        if tensor.dtype is not torch.int32 or not tensor.is_cpu or not tensor.is_contiguous():
            name = "rows" if tensor is rows else "offsets" if tensor is offsets else "cols"
            raise ValueError(f"the pattern's {name} must be contiguous int32 on the cpu, got {tensor.dtype} on {tensor.device}")
    if offsets.shape[0] != rows.shape[0] + 1:
        raise ValueError(f"the pattern has {offsets.shape[0]} offsets; its {rows.shape[0]} groups need {rows.shape[0] + 1}")


def stored(pattern: Pattern, values: Tensor | None) -> tuple[int, ...]:
    """A sparse matrix as the native module takes it."""
    _check_index(pattern)
    rows, cols = pattern.rows, pattern.cols
    return (
        address(values), 0, rows.data_ptr(), pattern.offsets.data_ptr(), cols.data_ptr(),
        *pattern.shape, *rows.shape, cols.shape[0],
    )  # fmt: skip


def sortings(pattern: Pattern) -> native.Sortings:
    """How convolutions sorted a pattern's columns, as the native module keeps it for them."""
    key = versions(pattern)
    with _transposed_lock:
        found: tuple[tuple[int, ...], native.Sortings] | None = _sorted.get(pattern.cols)
        if found is None or found[0] != key:
            found = _sorted[pattern.cols] = (key, native.Sortings(_ORDERS))
    return found[1]


def turned(pattern: Pattern, values: Tensor, taps: int) -> tuple[tuple[int, ...], native.Sortings]:
    """The transposed weight of a pattern of height 1, its values taken through ``order``, and how convolutions sorted it."""
    (offsets, cols, order), orders = _transposition(pattern, taps)
    inputs = pattern.shape[1] // taps
    shape = (inputs, pattern.shape[0] * taps)
    weight = (values.data_ptr(), order.data_ptr(), 0, offsets.data_ptr(), cols.data_ptr(), *shape, inputs, 1, len(cols))
    return weight, orders


def _transposition(pattern: Pattern, taps: int) -> tuple[_Index, native.Sortings]:
    # The index tensors of a layer live until its topology changes, so the transposition and its orders are kept with them.
    key = (taps, *versions(pattern))
    with _transposed_lock:
        found = _transposed.get(pattern.cols)
    if found is None or found[0] != key:
        found = (key, _transpose(pattern, taps), native.Sortings(_ORDERS))
        with _transposed_lock:
            _transposed[pattern.cols] = found
    index: _Index = found[1]
    orders: native.Sortings = found[2]
    return index, orders


def _transpose(pattern: Pattern, taps: int) -> _Index:
    _check_index(pattern)
    offsets = torch.empty(pattern.shape[1] // taps + 1, dtype=torch.int32)
    cols, order = torch.empty_like(pattern.cols), torch.empty_like(pattern.cols)
    native.transpose(offsets.data_ptr(), cols.data_ptr(), order.data_ptr(), taps, *stored(pattern, None), threads())
    return offsets, cols, order


def geometry(size: Pair, window: Window) -> tuple[int, ...]:
    """A convolution over images of ``size`` as the native module takes it."""
    return (*size, *window.kernel_size, *window.stride, *window.padding, *window.dilation)


def gathers(pattern: Pattern, window: Window) -> bool:
    """Whether the input gradient is a forward convolution of the transposed structure."""
    return pattern.height == 1 and window.stride == (1, 1)


def mirrored(window: Window) -> Window:
    """The window that carries an output's gradient back to the input, for stride 1; its padding can be negative."""
    pads = tuple(d * (k - 1) - p for d, k, p in zip(window.dilation, window.kernel_size, window.padding, strict=True))
    return Window(window.kernel_size, (1, 1), (pads[0], pads[1]), window.dilation)
