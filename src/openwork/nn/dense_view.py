"""A sparse layer's ``weight`` for code that looks at it: shape and dtype for nothing, numbers only when computed with."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Holder(Protocol):
    """What a view needs of its module."""

    values: torch.nn.Parameter

    @property
    def dense_dims(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    def dense_weight(self) -> Tensor:
        """The dense weight, differentiable in ``values``."""


_ATTRIBUTES = ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_sparse", "is_meta")
_FREE: frozenset[Any] = frozenset(getattr(Tensor, name).__get__ for name in _ATTRIBUTES) | {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
}


class DenseView(Tensor):
    """The dense weight of a sparse layer; it takes no memory until an operation reads it, which makes a copy and warns once.

    Writing to it changes nothing.  As it overrides torch's functions, the fused evaluation of ``nn.TransformerEncoderLayer``,
    which would compute densely, leaves it alone.
    """

    _holder: Holder

    @staticmethod
    def __new__(cls, holder: Holder) -> DenseView:  # noqa: D102  # a magic method, though ruff takes it for another
        values = holder.values
        view: DenseView = Tensor._make_wrapper_subclass(
            cls, holder.dense_dims, dtype=values.dtype, device=values.device, requires_grad=values.requires_grad
        )
        view._holder = holder
        return view

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FREE:
            return super().__torch_function__(func, types, args, kwargs)
        return func(*tree_map_only(DenseView, _unpacked, args), **tree_map_only(DenseView, _unpacked, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # its own stub leaves the defaults out
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map_only(DenseView, _unpacked, args), **tree_map_only(DenseView, _unpacked, kwargs or {}))


def _unpacked(view: DenseView) -> Tensor:
    _warn_dense(type(view._holder).__name__)
    return view._holder.dense_weight()


@functools.cache
def _warn_dense(name: str) -> None:
    warnings.warn(f"{name}.weight unpacks the sparse weight to a dense copy every time it is computed with", stacklevel=5)
