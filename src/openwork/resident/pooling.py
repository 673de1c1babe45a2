"""Pooling of resident tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from openwork.kernels.window import Window
from openwork.resident import native
from openwork.resident.formula import Formula, Size
from openwork.resident.tensor import CPU, ResidentTensor, content_of, handles, is_resident, wrap

aten = torch.ops.aten


class _Pool(NamedTuple):
    window: Window
    size: Size

    @property
    def out(self) -> Size:
        return (*self.size[:2], *self.window.output_size(*self.size[2:]))

    def padded(self, blocked: Tensor) -> Tensor:
        (high, wide) = self.window.padding
        return F.pad(blocked, (0, 0, wide, wide, 0, 0, high, high)) if high or wide else blocked

    def taps(self, padded: Tensor) -> Iterator[Tensor]:
        """What each tap sees, as a view, in the order of the kernel."""
        (step_h, step_w), (gap_h, gap_w), out = self.window.stride, self.window.dilation, self.out
        for i in range(self.window.kernel_size[0]):
            for j in range(self.window.kernel_size[1]):
                top, left = i * gap_h, j * gap_w
                yield padded[
                    :, top : top + (out[2] - 1) * step_h + 1 : step_h, :, left : left + (out[3] - 1) * step_w + 1 : step_w
                ]

    def inner(self, padded: Tensor) -> Tensor:
        """Without the padding."""
        (high, wide), (height, width) = self.window.padding, self.size[2:]
        return padded[:, high : high + height, :, wide : wide + width].contiguous()


def _pool(size: Size, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> _Pool | None:
    pairs = [tuple(v) * 2 if len(v) == 1 else tuple(v) for v in (kernel, stride or kernel, padding, dilation)]
    pool = _Pool(Window(*pairs), size)
    # With ceil_mode a window may begin beyond the image.
    return None if ceil_mode or min(pool.out[2:]) < 1 or pool.window.taps > 255 else pool


class ResidentTaps(Tensor):
    """Which tap was the largest, as the indices that PyTorch's max pooling returns; those are worked out if anyone looks."""

    taps: Tensor
    pool: _Pool
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, taps: Tensor, pool: _Pool) -> ResidentTaps:  # noqa: D102  # a magic method, though ruff takes it for another
        tensor: ResidentTaps = Tensor._make_wrapper_subclass(cls, pool.out, dtype=torch.int64, device=CPU)
        tensor.taps, tensor.pool = taps, pool
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # its own stub leaves the defaults out
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (aten.detach.default, aten.alias.default):
            return ResidentTaps(args[0].taps, args[0].pool)
        if func is aten.max_pool2d_with_indices_backward.default:
            result = _max_backward(func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        args, kwargs = tree_map_only(ResidentTaps, ResidentTaps.indices, (args, kwargs or {}))
        return func(*args, **kwargs)

    def indices(self) -> Tensor:
        """int64 ``[N, C, Ho, Wo]``: ``row * W + column`` of the largest."""
        window, out = self.pool.window, self.pool.out
        tap = self.taps.permute(0, 4, 2, 1, 3).reshape(-1, *out[1:])[: out[0]].long()
        row = tap // window.kernel_size[1] * window.dilation[0] - window.padding[0] + _steps(out[2], window.stride[0])[:, None]
        column = tap % window.kernel_size[1] * window.dilation[1] - window.padding[1] + _steps(out[3], window.stride[1])
        return row * self.pool.size[3] + column

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]  # a stub without its types
        return repr(self.indices())


def _steps(count: int, stride: int) -> Tensor:
    return torch.arange(count) * stride


@handles(aten.max_pool2d_with_indices.default)
def _max(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, kernel, stride, padding, dilation, ceil_mode = args + (None, 0, 1, False)[len(args) - 2 :]
    if not is_resident(x) or kwargs:
        return NotImplemented
    pool = _pool(x.content.size, kernel, stride, _listed(padding), _listed(dilation), ceil_mode)
    if pool is None:
        return NotImplemented
    best, taps = native.max_pool(x.content.formula(), pool.window)
    return wrap(best, x.content), ResidentTaps(taps, pool)


@handles(aten.max_pool2d_with_indices_backward.default)
def _max_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    g, x, *_, found = args
    if not isinstance(found, ResidentTaps) or not isinstance(x, ResidentTensor) or g.dtype != x.dtype:
        return NotImplemented
    gradient = content_of(g, x.content).formula()
    return wrap(native.max_pool_backward(gradient, found.taps, found.pool.window, found.pool.size), x.content)


@handles(aten.avg_pool2d.default)
def _average(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, pool, share = _average_pool(args[0], args[1:], kwargs)
    if pool is None:
        return NotImplemented
    views = pool.taps(pool.padded(x.content.numbers().x))
    total = next(views).to(torch.float32, copy=True)
    for view in views:
        total += view
    return wrap(Formula(pool.out, total.mul_(share).to(x.dtype)), x.content)


@handles(aten.avg_pool2d_backward.default)
def _average_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    g = args[0]
    x, pool, share = _average_pool(args[1], args[2:], kwargs)
    if pool is None:
        return NotImplemented
    gradient = content_of(g, x.content).numbers().x
    shared = gradient.float() * share
    dx = shared.new_zeros(_padded_shape(gradient, pool))
    for view in pool.taps(dx):
        view += shared
    return wrap(Formula(pool.size, pool.inner(dx).to(g.dtype)), x.content)


def _average_pool(x: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, _Pool | None, float]:
    kernel, stride, padding, ceil_mode, count_padding, divisor = rest + (None, 0, False, True, None)[len(rest) - 1 :]
    if not is_resident(x) or kwargs or divisor is not None or (any(_listed(padding)) and not count_padding):
        return x, None, 0.0
    pool = _pool(x.content.size, kernel, stride, _listed(padding), [1, 1], ceil_mode)
    return x, pool, 0.0 if pool is None else 1 / pool.window.taps


def _padded_shape(gradient: Tensor, pool: _Pool) -> tuple[int, ...]:
    (high, wide), (_, channels, height, width) = pool.window.padding, pool.size
    return gradient.shape[0], height + 2 * high, channels, width + 2 * wide, gradient.shape[-1]


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value, value]
