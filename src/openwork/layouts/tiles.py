"""Layouts whose atoms are aligned tiles: one or more rows of a row group by one or more consecutive columns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import check_sizes
from openwork.pattern import Pattern, consecutive_rows


class TileLayout(AtomLayout):
    """Tiles of ``m`` rows x ``n`` columns; tile ``g * T + t`` is the ``t``-th of row group ``g``.

    Where ``R`` or ``C`` does not divide, the last row group is padded and the last tile of each group is narrower.  Full tiles,
    low ones, narrow ones and the corner are capacity classes of their own, each with its share of the count, so that the number
    of tiles *and* the number of weights stay the same through every update.
    """

    def __init__(self, m: int, n: int) -> None:
        check_sizes(m=m, n=n)
        self._m, self._n = m, n

    @property
    def height(self) -> int:
        """Rows of a tile."""
        return self._m

    @property
    def block(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self._m, self._n

    def _grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Row groups and tiles in each."""
        return -(-shape[0] // self._m), -(-shape[1] // self._n)

    def _class_sizes(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Tiles in each of the classes (full, narrow, low, corner) and weights in one tile of each."""
        groups, tiles = self._grid(shape)
        low, narrow = shape[0] % self._m, shape[1] % self._n
        full_groups, full_tiles = groups - bool(low), tiles - bool(narrow)
        sizes = np.outer([full_groups, bool(low)], [full_tiles, bool(narrow)]).ravel()
        weights = np.outer([self._m, low], [self._n, narrow]).ravel()
        return sizes.astype(np.int64), weights.astype(np.int64)

    def _ragged(self, shape: tuple[int, int]) -> bool:
        return bool(shape[0] % self._m or shape[1] % self._n)

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """All tiles of the matrix."""
        groups, tiles = self._grid(shape)
        return groups * tiles

    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """0 everywhere if the tiles divide the matrix, else 0 full, 1 narrow, 2 low, 3 the corner."""
        if not self._ragged(shape):
            return np.zeros(len(ids), dtype=np.int64)
        groups, tiles = self._grid(shape)
        low = (ids // tiles == groups - 1) & bool(shape[0] % self._m)
        narrow = (ids % tiles == tiles - 1) & bool(shape[1] % self._n)
        return 2 * low.astype(np.int64) + narrow

    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """The shares of ``count`` in proportion, rounded as Sainte-Lague does: one tile more is one more in one class."""
        if not self._ragged(shape):
            return np.array([count], dtype=np.int64)
        sizes, _ = self._class_sizes(shape)
        total = int(sizes.sum())
        limits = (2 * sizes * count + total) // (2 * total)
        while missing := count - int(limits.sum()):
            step = 1 if missing > 0 else -1
            quotient = np.where(sizes > 0, (2 * limits + step) / np.maximum(sizes, 1), step * np.inf)
            at = int(np.argmin(quotient)) if step > 0 else len(sizes) - 1 - int(np.argmax(quotient[::-1]))
            limits[at] += step
        return limits

    def members(self, shape: tuple[int, int], kind: int, ranks: np.ndarray) -> np.ndarray:
        """Row by row, the tiles of a class."""
        groups, tiles = self._grid(shape)
        low, narrow = divmod(kind, 2)
        full_tiles = shape[1] // self._n
        width = 1 if narrow else full_tiles
        first = full_tiles if narrow else 0
        group = (groups - 1 if low else 0) + ranks // max(1, width)
        return group * tiles + first + ranks % max(1, width)

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Weights in ``count`` tiles, the ragged ones at their real size."""
        if not self._ragged(shape):
            return count * self._m * self._n
        return int((self.limits(shape, count) * self._class_sizes(shape)[1]).sum())

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """Consecutive rows."""
        return consecutive_rows(shape[0], self._m)

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Tiles of a group in ascending order."""
        ids = np.sort(ids)
        _, tiles = self._grid(shape)
        group, tile = np.divmod(ids, tiles)
        if self._n == 1:
            offsets = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=rows.shape[0]))])
            return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(tile.astype(np.int32)))
        width = np.minimum(self._n, shape[1] - tile * self._n)
        starts = np.cumsum(width) - width
        cols = np.repeat(tile * self._n - starts, width) + np.arange(int(width.sum()))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(group, weights=width, minlength=rows.shape[0]))])
        return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(cols.astype(np.int32)))

    def _heads(self, now: Pattern) -> tuple[np.ndarray, np.ndarray]:
        """Where each stored tile begins among the columns, and its id."""
        _, tiles = self._grid(now.shape)
        cols = now.cols.numpy()
        heads = np.flatnonzero(cols % self._n == 0)
        group = now.group_of_column.numpy()[heads]
        return heads, group.astype(np.int64) * tiles + cols[heads] // self._n

    def atoms(self, now: Pattern) -> Tensor:
        """Tile ids in storage order."""
        if self._n == 1:
            return (now.group_of_column * now.shape[1]).add_(now.cols)
        return torch.from_numpy(self._heads(now)[1])

    def atoms_at(self, rows: Tensor, shape: tuple[int, int], flat: np.ndarray) -> np.ndarray:
        """The tile of each flat position."""
        groups, tiles = self._grid(shape)
        group_of_row = np.full(shape[0], -1, dtype=np.int64)
        ids = rows.numpy()
        real = ids >= 0
        group_of_row[ids[real]] = np.broadcast_to(np.arange(groups)[:, None], ids.shape)[real]
        return group_of_row[flat // shape[1]] * tiles + (flat % shape[1]) // self._n

    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean over a tile's real weights."""
        if self._m == self._n == 1:
            return scores.reshape(-1)
        heads, _ = self._heads(now)
        real = (now.rows >= 0).sum(1)[now.group_of_column]
        per_column = scores.double().sum(1).numpy()
        if not len(heads):
            return torch.empty(0, dtype=torch.float64)
        total = np.add.reduceat(per_column, heads)
        return torch.from_numpy(total / np.add.reduceat(real.numpy(), heads))

    def pool_chunk(self, now: Pattern, first: int, scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Ids and means of every tile in a chunk of row groups."""
        _, tiles = self._grid(now.shape)
        count, _, n_cols = scores.shape
        rows = now.rows[first : first + count]
        summed = scores.double().masked_fill((rows < 0)[:, :, None], 0.0).sum(1)
        real = (rows >= 0).sum(1)
        if self._n > 1:
            summed = torch.nn.functional.pad(summed, (0, tiles * self._n - n_cols)).view(count, tiles, self._n).sum(2)
        width = torch.full((tiles,), self._n)
        width[-1] = n_cols - (tiles - 1) * self._n
        mean = summed / (real[:, None] * width[None, :])
        ids = np.arange(first * tiles, (first + count) * tiles)
        return ids, mean.reshape(-1).numpy()
