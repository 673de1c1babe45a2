"""Which weights of a matrix exist, and where each of them is stored.

A weight is a matrix ``W[R, C]``; a convolution's is seen as ``R`` = out channels, ``C`` = in channels * kh * kw with column
``(cin * kh + i) * kw + j``.  One storage format serves every layout: the rows are partitioned into *row groups* of equal
height ``h``, each group has its own list of columns, and every (row of the group) x (column of the group) is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openwork import compiled


class PatternError(ValueError):
    """The tensors handed over do not describe a pattern."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """The active positions of a matrix, in row groups.

    Args:
        shape: ``(R, C)``.
        rows: int32 ``[G, h]``, the row ids of each group; -1 is padding and only the last group may have it.
        offsets: int32 ``[G + 1]``; the columns of group ``g`` are ``cols[offsets[g]:offsets[g + 1]]``.
        cols: int32 ``[K]``, in block order, so that the blocks of a shuffled layout stay recognisable.

    The values that go with a pattern are ``[K, h]``, contiguous: the ``h`` weights of one column lie together.  Entries that
    belong to a padded row are always 0 and never counted.
    """

    shape: tuple[int, int]
    rows: Tensor
    offsets: Tensor
    cols: Tensor

    @property
    def height(self) -> int:
        """Rows in a group, ``h``."""
        return self.rows.shape[1]

    @property
    def groups(self) -> int:
        """Number of row groups, ``G``."""
        return self.rows.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the index tensors are."""
        return self.cols.device

    @property
    def value_shape(self) -> tuple[int, int]:
        """``(K, h)``, the shape of the values that go with this pattern."""
        return self.cols.shape[0], self.height

    @cached_property
    def nnz(self) -> int:
        """Active weights; padding is not counted."""
        counts = self.offsets.diff().long()
        return int((counts * (self.rows >= 0).sum(1)).sum())

    @property
    def density(self) -> float:
        """Active weights over all."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @cached_property
    def group_of_column(self) -> Tensor:
        """int64 ``[K]``: the row group of each stored column."""
        groups = torch.arange(self.groups, device=self.device)
        return torch.repeat_interleave(groups, self.offsets.diff().long(), output_size=self.cols.shape[0])

    @property
    def positions(self) -> Tensor:
        """int64 ``[K, h]``: the flat position ``row * C + column`` of every stored value, -1 for padding."""
        flat = self.rows.long()[self.group_of_column]
        padding = flat < 0
        return flat.mul_(self.shape[1]).add_(self.cols[:, None]).masked_fill_(padding, -1)

    def pack(self, dense: Tensor) -> Tensor:
        """Take the active weights of ``dense`` (``[R, C]`` or any shape that flattens to it) as values ``[K, h]``."""
        if dense.numel() != self.shape[0] * self.shape[1]:
            raise PatternError(f"dense has shape {tuple(dense.shape)}, which does not flatten to {self.shape}")
        at = self.positions
        return torch.where(at >= 0, dense.reshape(-1)[at.clamp(min=0)], torch.zeros((), dtype=dense.dtype, device=dense.device))

    def unpack(self, values: Tensor) -> Tensor:
        """Put values ``[K, h]`` in a dense ``[R, C]`` tensor; allocates all of it."""
        if tuple(values.shape) != self.value_shape:
            raise PatternError(f"values have shape {tuple(values.shape)}, this pattern stores {self.value_shape}")
        at = self.positions
        size = self.shape[0] * self.shape[1]
        # One place too many takes the padding: picking the others out would give a size that no compiler knows.
        dense = values.new_zeros(size + 1).index_put((at.where(at >= 0, size),), values)
        return dense[:size].view(self.shape)

    def mask(self) -> Tensor:
        """bool ``[R, C]``, True where a weight is active; allocates all of it."""
        at = self.positions
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.device)
        mask[at[at >= 0]] = True
        return mask.view(self.shape)

    @classmethod
    def from_mask(cls, mask: Tensor, height: int = 1) -> Pattern:
        """The pattern of a bool mask ``[R, C]``, with consecutive rows in groups of ``height``.

        Raises:
            PatternError: the rows of a group do not share their columns, or ``height`` is not positive.
        """
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise PatternError(f"mask must be a bool matrix, got {mask.dtype} of shape {tuple(mask.shape)}")
        if height < 1:
            raise PatternError(f"height={height!r} must be at least 1")
        rows = consecutive_rows(mask.shape[0], height).to(mask.device)
        first = mask[rows[:, 0].long()]
        own = torch.arange(mask.shape[0], device=mask.device) // height
        if not torch.equal(first[own], mask):
            raise PatternError(f"mask does not have groups of height={height}: rows of one group differ in their columns")
        offsets = torch.zeros(rows.shape[0] + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(first.sum(1), 0, out=offsets[1:])
        return cls((mask.shape[0], mask.shape[1]), rows, offsets, first.nonzero()[:, 1].int())

    def to(self, device: torch.device | str) -> Pattern:
        """This pattern on ``device`` (itself, where it is there already)."""
        if torch.device(device) == self.device:
            return self
        return Pattern(self.shape, self.rows.to(device), self.offsets.to(device), self.cols.to(device))

    def validate(self) -> Pattern:
        """Check every promise of the format and return ``self``.

        Raises:
            PatternError: a wrong dtype, shape or device, a row in two groups, padding outside the last group, offsets that do
                not ascend from 0 to ``K``, a column out of range or twice in one group.
        """
        n_rows, n_cols = self.shape
        named = {"rows": self.rows, "offsets": self.offsets, "cols": self.cols}
        for name, tensor in named.items():
            if tensor.dtype != torch.int32:
                raise PatternError(f"{name} must be int32, got {tensor.dtype}")
            if tensor.device != self.device:
                raise PatternError(f"{name} is on {tensor.device}, cols on {self.device}")
        if self.rows.dim() != 2 or self.offsets.dim() != 1 or self.cols.dim() != 1 or self.height < 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
            raise PatternError(f"rows must be [G, h], offsets [G + 1], cols [K]; got {shapes}")
        real = self.rows[self.rows >= 0].long()
        if (self.rows < -1).any() or (self.rows[:-1] < 0).any() or (real >= n_rows).any():
            raise PatternError(f"rows must lie in 0..{n_rows - 1}, with -1 as padding in the last group only")
        if torch.bincount(real, minlength=n_rows).gt(1).any():
            raise PatternError("a row stands in two groups")
        ends = self.offsets
        if ends.shape[0] != self.groups + 1 or int(ends[0]) != 0 or (ends.diff() < 0).any() or int(ends[-1]) != len(self.cols):
            raise PatternError(f"offsets must ascend from 0 to {len(self.cols)} in {self.groups + 1} steps")
        if len(self.cols) and (int(self.cols.min()) < 0 or int(self.cols.max()) >= n_cols):
            raise PatternError(f"cols must lie in 0..{n_cols - 1}")
        keys = self.group_of_column * n_cols + self.cols
        if len(torch.unique(keys)) != len(keys):
            raise PatternError("a column stands twice in one group")
        return self


def same_pattern(a: Pattern, b: Pattern) -> bool:
    """Whether two patterns store the same positions in the same order."""
    pairs = ((a.rows, b.rows), (a.offsets, b.offsets), (a.cols, b.cols))
    return a.shape == b.shape and all(torch.equal(x, y) for x, y in pairs)


def consecutive_rows(n_rows: int, height: int) -> Tensor:
    """int32 ``[G, height]``: rows in their own order, the last group padded with -1."""
    groups = max(1, -(-n_rows // height))
    ids = torch.arange(groups * height, dtype=torch.int32)
    return ids.masked_fill_(ids >= n_rows, -1).view(groups, height)


def row_chunks(rows: Tensor, row_bytes: int, budget: int) -> Iterator[tuple[int, Tensor]]:
    """Row groups some at a time, so that their dense rows take at most ``budget`` bytes (one group at the least).

    Args:
        rows: int32 ``[G, h]``, -1 for padding.
        row_bytes: of a dense row.
        budget: bytes.

    Yields:
        (first row group, int64 row ids of these groups one after the other); a padded row stands as row 0.
    """
    step = max(1, budget // (rows.shape[1] * row_bytes))
    for first in range(0, rows.shape[0], step):
        yield first, rows[first : first + step].reshape(-1).long().clamp(min=0)


def carry(old: Pattern, new: Pattern) -> tuple[Tensor, Tensor]:
    """Index pairs by which values and optimizer state move when a pattern changes.

    Returns:
        ``(source, target)``, int64, flat positions in the old and in the new ``[K, h]`` values of every weight that both
        patterns hold.  All other entries of the new values start at 0.
    """
    if old.shape != new.shape:
        raise PatternError(f"carry needs patterns of one shape, got {old.shape} and {new.shape}")
    if _single_rows(old) and _single_rows(new) and torch.equal(old.rows, new.rows):
        found = compiled.carry(_index(old), _index(new), old.shape[1])
        if found is not None:
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    before, source = _ranked(old)
    after, target = _ranked(new)
    # Merged, a position of both patterns stands next to itself: even as an old one, odd as a new one.
    merged = np.concatenate([before << 1, (after << 1) + 1])
    del before, after  # a topology update has a budget, and these arrays are its largest
    merged.sort(kind="stable")
    is_old = (merged & 1) == 0
    at = np.flatnonzero((merged[1:] - merged[:-1] == 1) & is_old[:-1])
    del merged
    from_old = np.cumsum(is_old, dtype=np.int32)[at] - 1
    del is_old
    from_new = at - from_old
    source = from_old.astype(np.int64) if source is None else source[from_old]
    target = from_new if target is None else target[from_new]
    return torch.from_numpy(source).to(new.device), torch.from_numpy(target).to(new.device)


class Moves(NamedTuple):
    """How the values of a pattern of single rows become those of the next.

    Attributes:
        new: the pattern after.
        origin: int64 ``[K]``, where each of its values was stored before; anything for new ones.
        new_at: int64, where the new ones are stored.
    """

    new: Pattern
    origin: Tensor
    new_at: Tensor

    def to(self, device: torch.device | str) -> Moves:
        """These moves on ``device``."""
        return Moves(self.new.to(device), self.origin.to(device), self.new_at.to(device))

    def carried(self, values: Tensor) -> Tensor:
        """As ``carried`` from the pattern before: survivors bit for bit, new entries 0."""
        return values.reshape(-1).index_select(0, self.origin).index_fill_(0, self.new_at, 0).view(self.new.value_shape)


def _single_rows(pattern: Pattern) -> bool:
    """Whether positions ascend as they are stored, wherever columns do, and the native module can follow them."""
    if pattern.height > 1 or pattern.device.type != "cpu" or not compiled.takes_index(*_index(pattern)):
        return False
    rows = pattern.rows.numpy().ravel()
    return len(rows) > 0 and rows[0] >= 0 and bool((rows[1:] > rows[:-1]).all())


def _index(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    return pattern.offsets.numpy(), pattern.cols.numpy()


def _ranked(pattern: Pattern) -> tuple[np.ndarray, np.ndarray | None]:
    """The positions of a pattern's weights, ascending, and where each is stored (None: in that order)."""
    # Twice a position is a short integer in all but the largest layers, which halves time and memory.
    small = pattern.shape[0] * pattern.shape[1] < 2**30
    rows = pattern.rows.cpu().numpy().astype(np.int32 if small else np.int64)
    counts = pattern.offsets.diff().cpu().numpy()
    at = np.repeat(rows * pattern.shape[1], counts, axis=0)
    at += pattern.cols.cpu().numpy()[:, None]
    if len(rows) and (rows[-1] < 0).any():
        at[len(at) - counts[-1] :, rows[-1] < 0] = -1
    at = at.ravel()
    if (at[1:] > at[:-1]).all() and (not len(at) or at[0] >= 0):
        return at, None
    padding = np.count_nonzero(at < 0)  # it comes first
    if not small:
        order = np.argsort(at)[padding:]
        return at[order], order
    # A sort takes less than half the time of an argsort: the place of a position rides along in the lower half.
    key = at.astype(np.int64)
    key <<= 32
    key += np.arange(len(at), dtype=np.int32)
    key.sort()
    np.right_shift(key, 32, out=at, casting="unsafe")
    key &= 2**32 - 1
    return at[padding:], key[padding:]


def carried(values: Tensor, old: Pattern, new: Pattern, moves: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """``values`` of ``old`` as values of ``new``: survivors bit for bit, new entries 0."""
    source, target = moves if moves is not None else carry(old, new)
    result = values.new_zeros(new.value_shape)
    result.view(-1).index_copy_(0, target, values.reshape(-1).index_select(0, source))
    return result
