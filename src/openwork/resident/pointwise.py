"""Functions of single numbers, whatever they are, and reductions of whole images, on resident tensors.

An operator that PyTorch tags as pointwise does the same to blocked numbers as to NCHW ones.  What stands beside a resident
tensor may be one of the same shape, a number, or a gate of one number for each channel or for each channel and image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from openwork.kernels.window import LANES
from openwork.resident import native
from openwork.resident.formula import DTYPES, Formula, Size
from openwork.resident.tensor import GENERAL, ResidentTensor, content_of, handles, is_resident, wrap

aten = torch.ops.aten


def _pointwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Random numbers would come in another order than of a plain tensor.
    if torch.Tag.pointwise not in func.tags or torch.Tag.nondeterministic_seeded in func.tags or kwargs:
        return NotImplemented
    first = next(leaf for leaf in tree_leaves(args) if is_resident(leaf))
    size = first.content.size
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if not all((is_resident(t) and t.content.size == size) or _stands_beside(t, size) for t in tensors):
        return NotImplemented
    writes = func._schema.is_mutable
    if writes and args[0] is not first:
        return NotImplemented

    def blocked(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) != size:
            return _beside(tensor, size)
        found = content_of(tensor, first.content).numbers().x
        return found.clone() if writes and tensor is first else found

    result = func(*tree_map_only(Tensor, blocked, args))
    if not isinstance(result, Tensor) or result.dtype not in DTYPES:
        return NotImplemented
    formula = Formula(size, result.contiguous())
    if not writes:
        return wrap(formula, first.content)
    first.content.held, first.content.moments = formula, None
    return first


GENERAL.append(_pointwise)


def _stands_beside(tensor: Tensor, size: Size) -> bool:
    if isinstance(tensor, ResidentTensor) or tensor.dtype not in DTYPES or tensor.device.type != "cpu":
        return False
    shape = tuple(tensor.shape)
    gate = len(shape) == 4 and shape[2:] == (1, 1) and shape[0] in (1, size[0]) and shape[1] in (1, size[1])
    return not shape or shape == size or gate


def _beside(gate: Tensor, size: Size) -> Tensor:
    """``[N or 1, C or 1, 1, 1]`` so that it meets blocked numbers."""
    if not gate.dim():
        return gate
    batch, channels = gate.shape[:2]
    if batch == 1:
        return gate.reshape(1, 1, channels, 1, 1)
    panels = -(-size[0] // LANES)
    full = F.pad(gate.reshape(batch, channels), (0, 0, 0, panels * LANES - batch))
    return full.view(panels, LANES, channels).transpose(1, 2).reshape(panels, 1, channels, 1, LANES)


@handles(aten.mean.dim, aten.sum.dim_IntList)
def _over_pixels(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, dims, keep = args[0], args[1], len(args) > 2 and args[2]
    if not is_resident(tensor) or not dims or {d % 4 for d in dims} != {2, 3} or any(v is not None for v in kwargs.values()):
        return NotImplemented
    size = tensor.content.size
    numbers = tensor.content.numbers()
    if numbers.dtype != torch.float32:
        # Which PyTorch sums four times as fast.
        numbers = native.numbers(numbers, dtype=torch.float32)[0]
    sums = func(numbers.x, (1, 3)).transpose(1, 2).reshape(-1, size[1])[: size[0]].to(tensor.dtype).contiguous()
    return sums[:, :, None, None] if keep else sums
