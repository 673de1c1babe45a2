"""A blocked activation that need not exist as numbers yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from openwork.kernels.window import LANES

Size = tuple[int, int, int, int]
_TENSORS = ("x", "y", "gate", "keep")
_CHANNELS = ("a", "b", "shift", "open_scale", "open_shift")
DTYPES = (torch.float32, torch.bfloat16)
"""That activations can have."""


@dataclass(frozen=True, eq=False)
class Formula:
    """``r = a * x' + b * y + shift``, of which the positive part (``relu``) or what lies where ``keep`` is positive.

    ``x'`` is ``x`` where its gate is open, else 0: the gate is the tensor ``gate``, open where positive, or
    ``open_scale * y + open_shift``.  That is what batch norm, ReLU, a residual addition and their gradients are made of.
    Whoever reads it computes in float32, and rounds to the dtype of ``x`` what it writes.

    Args:
        size: ``(N, C, H, W)``.
        x: float32 or bfloat16 ``[ceil(N / 16), H, C, W, 16]``, contiguous, as are ``y``, ``gate`` and ``keep``, where there.
            Entries of images beyond ``N`` mean nothing.
        y: the second term.
        gate: see above.
        keep: see above.
        a: float32 ``[C]`` or None for 1.
        b: float32 ``[C]``, or None for 1, and for 0 where ``y`` is there for the gate.
        shift: float32 ``[C]`` or None for 0.
        open_scale: float32 ``[C]`` or None: no such gate.
        open_shift: float32 ``[C]``.
        relu: see above.
    """

    size: Size
    x: Tensor
    y: Tensor | None = None
    gate: Tensor | None = None
    keep: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    shift: Tensor | None = None
    open_scale: Tensor | None = None
    open_shift: Tensor | None = None
    relu: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the activation."""
        return self.x.dtype

    @property
    def is_numbers(self) -> bool:
        """Whether ``x`` is all there is."""
        return self.is_line and self.a is None and self.shift is None and not self.relu

    @property
    def is_line(self) -> bool:
        """Whether it is ``a * x + shift``, perhaps the positive part."""
        return self.y is None and self.gate is None and self.keep is None

    @property
    def is_gated(self) -> bool:
        """Whether it is ``x'`` alone."""
        scaled = any(part is not None for part in (self.a, self.b, self.shift, self.keep))
        return not scaled and not self.relu and (self.y is None or self.open_scale is not None)

    def replace(self, **changes: Any) -> Formula:
        """With other parts."""
        return replace(self, **changes)

    def parts(self) -> tuple[int, ...]:
        """Addresses as the native module takes them, 0 for what is not there; checked, since it cannot."""
        if self.dtype not in DTYPES:
            raise TypeError(f"x must be of one of {DTYPES}, got {self.dtype}")
        tensors = [getattr(self, name) for name in _TENSORS]
        channels = [getattr(self, name) for name in _CHANNELS]
        for name, tensor in zip((*_TENSORS, *_CHANNELS), (*tensors, *channels), strict=True):
            if name in _TENSORS:
                _check(name, tensor, blocked_shape(self.size), self.dtype)
            else:
                _check(name, tensor, self.size[1:2], torch.float32)
        return (0, *map(_address, tensors), *map(_address, channels), int(self.relu))


def size_of(x: Formula | Tensor) -> Size:
    """``(N, C, H, W)``."""
    return x.size if isinstance(x, Formula) else (x.shape[0], x.shape[1], x.shape[2], x.shape[3])


def blocked_shape(size: Size) -> tuple[int, int, int, int, int]:
    """Shape of the blocked numbers of ``[N, C, H, W]``."""
    return -(-size[0] // LANES), size[2], size[1], size[3], LANES


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor is None:
        return
    if type(tensor) not in (Tensor, Parameter) or tensor.dtype != dtype:
        raise TypeError(f"{name} must be a plain tensor of {dtype}, got {type(tensor).__name__} of {tensor.dtype}")
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name} must be contiguous {tuple(shape)} on the cpu, got {tuple(tensor.shape)} on {tensor.device}")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
