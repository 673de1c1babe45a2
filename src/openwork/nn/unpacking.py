"""A dense weight made of sparse values again and again: where they go is worked out once for each pattern.

That takes several times as long as putting them there.  What is kept is 8 bytes for each value, as long as the pattern lives
and until it is forgotten; a training step would hold as much from forward to backward without it.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from openwork.pattern import Pattern


class _Places(NamedTuple):
    """Flat positions of the values, int64 ``[K * h]``; those of padded rows, if there are any, are one beyond the last."""

    at: Tensor
    padded: bool
    versions: tuple[int, int, int]


_kept = WeakTensorKeyDictionary()
_lock = threading.Lock()


def unpacked(values: Tensor, pattern: Pattern) -> Tensor:
    """The dense ``[R, C]`` weight; differentiable once, with the gradient gathered at the positions of ``pattern``.

    Allocates the weight, and whoever computes its gradient that.

    Args:
        values: ``[K, h]``.
        pattern: where they stand; its tensors are recognised when they come again.
    """
    places = _places(pattern)
    weight: Tensor = _Unpacked.apply(values, places.at, places.padded, pattern.shape)
    return weight


def forget(pattern: Pattern) -> None:
    """Give up what is kept for ``pattern``."""
    with _lock:
        _kept.pop(pattern.cols, None)


def kept_bytes(pattern: Pattern) -> int:
    """Bytes that are kept for ``pattern``."""
    with _lock:
        places = _kept.get(pattern.cols)
    return 0 if places is None else places.at.numel() * places.at.element_size()


def _places(pattern: Pattern) -> _Places:
    index = (pattern.rows, pattern.offsets, pattern.cols)
    # Tensors made in inference mode do not say whether they have been changed since.
    keep = not any(tensor.is_inference() for tensor in index)
    versions = (index[0]._version, index[1]._version, index[2]._version) if keep else (0, 0, 0)
    with _lock:
        found: _Places | None = _kept.get(pattern.cols)
    if found is not None and keep and found.versions == versions:
        return found
    at = pattern.positions.view(-1)
    padding = at < 0
    places = _Places(at.masked_fill_(padding, pattern.shape[0] * pattern.shape[1]), bool(padding.any()), versions)
    if keep:
        with _lock:
            _kept[pattern.cols] = places
    return places


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, at: Tensor, padded: bool, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(at)
        ctx.padded, ctx.dims = padded, values.shape
        size = shape[0] * shape[1]
        dense = values.new_zeros(size + 1 if padded else size).scatter_(0, at, values.reshape(-1))
        return dense[:size].view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (at,) = ctx.saved_tensors
        flat = g.reshape(-1)
        if ctx.padded:
            outside = at == flat.numel()
            gathered = flat.index_select(0, at.masked_fill(outside, 0)).masked_fill_(outside, 0)
        else:
            gathered = flat.index_select(0, at)
        return gathered.view(ctx.dims), None, None, None
