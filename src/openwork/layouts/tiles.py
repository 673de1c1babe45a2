"""Layouts whose atoms are aligned tiles: one or more rows of a row group by one or more consecutive columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from openwork import compiled
from openwork.layouts.base import Swap, check_sizes, draw_distinct
from openwork.layouts.classes import summed
from openwork.layouts.counted import CountedLayout
from openwork.layouts.settle import Weights
from openwork.layouts.shares import EdgeShares, Shares
from openwork.pattern import Moves, Pattern, consecutive_rows
from openwork.scores import absent, ascending, member


class TileLayout(CountedLayout):
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

    def shares(self, shape: tuple[int, int]) -> Shares:
        """How the tiles of a pattern are shared out."""
        return EdgeShares(shape, self._m, self._n)

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """All tiles of the matrix."""
        groups, tiles = self._grid(shape)
        return groups * tiles

    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """Those of the shares."""
        return self.shares(shape).classes(ids)

    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """Those of the shares."""
        return self.shares(shape).limits(count)

    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """All tiles of a class."""
        return self.shares(shape).sizes

    def offer(self, shape: tuple[int, int], active: int, n: int) -> np.ndarray:
        """As many of every class as the shares say, where there are as many."""
        shares = self.shares(shape)
        return np.minimum(shares.sizes, shares.offer(active, n))

    def together(self, shape: tuple[int, int]) -> int:
        """One tile, or one of every class."""
        return self.shares(shape).together

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Weights in ``count`` tiles, the ragged ones at their real size."""
        return self.shares(shape).weights_of(count)

    def supplement(
        self, shape: tuple[int, int], active: np.ndarray, drawn: np.ndarray, n: int, generator: torch.Generator
    ) -> np.ndarray:
        """As many inactive tiles of every class as may be needed, drawn uniformly."""
        shares = self.shares(shape)
        found = [np.empty(0, dtype=np.int64)]
        if len(shares.sizes) == 1:
            return found[0]
        held = np.bincount(shares.classes(active), minlength=len(shares.sizes))
        taken = np.sort(np.concatenate([active, drawn]))
        wanted = shares.offer(len(active), n)
        for kind, size in enumerate(shares.sizes):
            ranks = draw_distinct(int(size), min(int(size), wanted + int(held[kind])), generator)
            ids = shares.members(kind, ranks)
            ids = ids[~member(ids, active)][:wanted]
            found.append(ids[~member(ids, taken)])
        return np.concatenate(found)

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """Consecutive rows."""
        return consecutive_rows(shape[0], self._m)

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Tiles of a group in ascending order."""
        ids = ascending(ids)
        _, tiles = self._grid(shape)
        if self._n == 1 and compiled.takes(ids):
            offsets, cols = compiled.split(ids, rows.shape[0], tiles)
            return Pattern(shape, rows, torch.from_numpy(offsets), torch.from_numpy(cols))
        if self._n == 1:
            starts = np.arange(rows.shape[0] + 1) * tiles
            offsets = np.searchsorted(ids, starts)
            tile = ids - np.repeat(starts[:-1], np.diff(offsets))
            return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(tile.astype(np.int32)))
        group, tile = np.divmod(ids, tiles)
        width = np.minimum(self._n, shape[1] - tile * self._n)
        starts = np.cumsum(width) - width
        cols = np.repeat(tile * self._n - starts, width) + np.arange(int(width.sum()))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(group, weights=width, minlength=rows.shape[0]))])
        return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(cols.astype(np.int32)))

    @property
    def swaps(self) -> bool:
        """Single columns are, by the native module."""
        return self._n == 1 and compiled.built()

    def swap(self, now: Pattern, n_active: int, gone: np.ndarray, fresh: np.ndarray) -> Swap | None:
        """Single columns, by the native module."""
        index = now.offsets.numpy(), now.cols.numpy()
        if self._n > 1 or n_active != len(now.cols) or not (compiled.takes_index(*index) and compiled.takes(gone, fresh)):
            return None
        found = compiled.exchange(index, now.shape[1], gone, fresh)
        if found is None:
            return None
        new = Pattern(now.shape, now.rows, torch.from_numpy(found.after[0]), torch.from_numpy(found.after[1]))
        if self._m > 1 or not found.distinct:
            return Swap(new, None)
        return Swap(new, Moves(new, torch.from_numpy(found.origin), torch.from_numpy(found.new_at)))

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
            offsets, cols = now.offsets.numpy(), now.cols.numpy()
            if compiled.takes_index(offsets, cols):
                return torch.from_numpy(compiled.join(offsets, cols, now.shape[1]))
            ids = np.repeat(np.arange(now.groups) * now.shape[1], np.diff(offsets))
            ids += cols
            return torch.from_numpy(ids)
        return torch.from_numpy(self._heads(now)[1])

    def inactive_at(self, now: Pattern, flat: np.ndarray) -> np.ndarray:
        """Single weights are their positions; of tiles as of all atoms."""
        if self._m > 1 or self._n > 1:
            return super().inactive_at(now, flat)
        index = now.offsets.numpy(), now.cols.numpy()
        if compiled.takes(flat) and compiled.takes_index(*index):
            found = compiled.unlisted(index, now.shape[1], flat)
            if found is not None:
                return found
        return absent(flat, ascending(self.atoms(now).numpy()))

    def candidates(self, now: Pattern, flat: np.ndarray) -> tuple[Pattern, Tensor]:
        """Tiles are stored in ascending order."""
        ids = self.inactive_at(now, flat)
        return self.only(now, ids), torch.from_numpy(ids)

    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Over each tile."""
        if self._m == self._n == 1:
            return summed(weights.flat, weights.score)
        groups, tiles = self._grid(now.shape)
        group_of_row = np.full(now.shape[0], -1, dtype=np.int64)
        ids = now.rows.numpy()
        real = ids >= 0
        group_of_row[ids[real]] = np.broadcast_to(np.arange(groups)[:, None], ids.shape)[real]
        at = group_of_row[weights.flat // now.shape[1]]
        at *= tiles
        at += weights.flat % now.shape[1] // self._n
        return summed(at, weights.score)

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

    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every tile of the row groups of a chunk."""
        _, tiles = self._grid(now.shape)
        n_cols = now.shape[1]
        width = torch.full((tiles,), self._n)
        width[-1] = n_cols - (tiles - 1) * self._n
        for first, scores in chunks:
            count = len(scores)
            if self._m == self._n == 1:
                yield np.arange(first * tiles, (first + count) * tiles), scores.reshape(-1).numpy()
                continue
            rows = now.rows[first : first + count]
            summed = scores.double().masked_fill((rows < 0)[:, :, None], 0.0).sum(1)
            real = (rows >= 0).sum(1)
            if self._n > 1:
                summed = torch.nn.functional.pad(summed, (0, tiles * self._n - n_cols)).view(count, tiles, self._n).sum(2)
            mean = summed / (real[:, None] * width[None, :])
            yield np.arange(first * tiles, (first + count) * tiles), mean.reshape(-1).numpy()
