"""Shuffled blocks: any ``m`` rows by any ``n`` columns."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import TOPOLOGY_BUDGET, Dims, LayoutError, check_sizes, draw_distinct, fit_units, matrix
from openwork.layouts.grouping import group_rows
from openwork.layouts.linkage import Linkage
from openwork.layouts.out_vector import OutVector
from openwork.layouts.refit import RefitLayout
from openwork.layouts.settle import Weights
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import highest


class ShuffledBlock(RefitLayout):
    """Blocks of any ``m`` rows x any ``n`` columns, re-formed at every update (DSB, sec. 3-4).

    Rows are clustered by the Jaccard similarity of their non-zero columns and cut into groups of ``m``; in every group columns
    are ranked by the l1 norm of their weights and cut into blocks of ``n``; the blocks of greatest l1 norm over all groups are
    kept, always the same number.  All positions of a kept block are active; weights outside are lost.

    Where ``R`` does not divide by ``m`` the last group is padded and has its own share of the blocks; where ``C`` does not
    divide by ``n`` the last block of a group is narrower and taken only when every full one is.  Both keep the number of blocks
    and the number of weights constant.

    Methods that speak of atoms (SET, RigL) see vectors of ``m`` rows by one column; the rows then keep their groups and only
    columns move.

    Args:
        m: rows of a block; the height that kernels are fast at is 8 to 32.
        n: columns of a block; ``m`` where it is not given.
        q: a row is clustered iff it shares more than this fraction of its non-zeros with another (paper: 0.2).
        linkage: ``"average"`` keeps the most weight, ``"complete"`` is that of the public code.

    Raises:
        ValueError: ``m`` or ``n`` is not a positive integer, ``q`` lies outside [0, 1], ``linkage`` is unknown.
    """

    def __init__(self, m: int, n: int | None = None, q: float = 0.2, linkage: Linkage = "average") -> None:
        n = m if n is None else n
        check_sizes(m=m, n=n)
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q={q!r} must lie in [0, 1]")
        if linkage not in ("average", "complete"):
            raise ValueError(f"linkage={linkage!r} is unknown; known: average, complete")
        self.m, self.n, self.q, self.linkage = m, n, q, linkage
        self.vectors = OutVector(m)

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.m

    @property
    def block(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.m, self.n

    def fit(self, dims: Dims, density: float) -> int:
        """Blocks: ``ceil(active / (m n))`` where the block size divides the matrix."""
        shape = matrix(dims)
        units = -(-shape[0] // self.m) * -(-shape[1] // self.n)
        return fit_units(shape, density, units, lambda count: self.weights_of(shape, count))

    def _shares(self, shape: tuple[int, int], count: int) -> tuple[int, int]:
        """How many of ``count`` blocks lie in the full row groups and in the padded one."""
        groups = -(-shape[0] // self.m)
        if shape[0] % self.m == 0:
            return count, 0
        low = (2 * count + groups) // (2 * groups)
        return count - low, low

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Weights in ``count`` blocks, full ones first."""
        n_full, n_low = self._shares(shape, count)
        tiles, narrow = divmod(shape[1], self.n)
        columns = sum(
            min(n, groups * tiles) * self.n * height + max(0, n - groups * tiles) * narrow * height
            for n, groups, height in ((n_full, shape[0] // self.m, self.m), (n_low, 1, shape[0] % self.m))
        )
        return int(columns)

    def initial(self, dims: Dims, count: int, weight: Tensor, generator: torch.Generator) -> Pattern:
        """A random unstructured mask, ranked by ``|weight|`` and blocked once."""
        shape = matrix(dims)
        flat = draw_distinct(shape[0] * shape[1], self.weights_of(shape, count), generator)
        score = weight.detach().reshape(-1)[torch.from_numpy(flat).to(weight.device)].abs().double().cpu().numpy()
        none = torch.zeros(0, dtype=torch.int32)
        rows = consecutive_rows(shape[0], self.m)
        empty = Pattern(shape, rows, torch.zeros(len(rows) + 1, dtype=torch.int32), none)
        return self.project(empty, Weights(flat, score), count, regroup=True)

    def project(self, now: Pattern, weights: Weights, count: int, *, regroup: bool) -> Pattern:
        """Group the rows (or keep their groups), then take the ``count`` best blocks."""
        rows = now.rows
        if regroup:
            rows = group_rows(weights.flat, now.shape, self.m, q=self.q, linkage=self.linkage, budget=TOPOLOGY_BUDGET)
        return self._best_blocks(now.shape, rows, weights, count)

    def _best_blocks(self, shape: tuple[int, int], rows: Tensor, weights: Weights, count: int) -> Pattern:
        ranking = _ColumnRanking(shape, rows, weights, self.n)
        n_full, n_low = self._shares(shape, count)
        full = shape[0] // self.m
        taken = np.zeros(rows.shape[0], dtype=np.int64)
        taken[:full] = _prefixes(ranking, range(full), n_full)
        taken[full:] = _prefixes(ranking, range(full, rows.shape[0]), n_low)
        widths = np.minimum(taken * self.n, shape[1])
        cols = [np.empty(0, dtype=np.int32)]
        for first, order, _ in ranking.chunks(range(rows.shape[0])):
            cols += [_blocks(ranked[: widths[first + local]], self.n) for local, ranked in enumerate(order)]
        offsets = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
        return Pattern(shape, rows, torch.from_numpy(offsets), torch.from_numpy(np.concatenate(cols)))

    def check(self, pattern: Pattern, count: int) -> None:
        """Every row in one group, whole blocks, ``count`` of them."""
        pattern.validate()
        real = pattern.rows[pattern.rows >= 0]
        if pattern.height != self.m or len(real) != pattern.shape[0]:
            raise LayoutError(f"the row groups are not all {pattern.shape[0]} rows in groups of {self.m}")
        widths = pattern.offsets.diff().numpy()
        cut = widths[(widths % self.n != 0) & (widths != pattern.shape[1])]
        if len(cut):
            raise LayoutError(f"a row group has {cut[0]} columns, not a multiple of {self.n}")
        held = int((-(-widths // self.n)).sum())
        if held != count:
            raise LayoutError(f"the pattern holds {held} blocks, not {count}")


def _blocks(chosen: np.ndarray, width: int) -> np.ndarray:
    """int32, ``chosen`` with the columns of every block in ascending order."""
    blocks = chosen.astype(np.int32)
    whole = len(blocks) // width * width
    blocks[:whole].reshape(-1, width).sort(axis=1)
    blocks[whole:].sort()
    return blocks


class _ColumnRanking:
    """The columns of every row group by descending l1 norm.

    Groups that fit in the budget together are ranked once; more are made anew chunk by chunk.
    """

    def __init__(self, shape: tuple[int, int], rows: Tensor, weights: Weights, width: int) -> None:
        self.n_cols, self.width = shape[1], width
        ids = rows.numpy()
        real = ids >= 0
        group_of_row = np.empty(shape[0], dtype=np.int32)
        group_of_row[ids[real]] = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[real]
        # Short integers divide several times as fast.
        flat = weights.flat.astype(np.int32) if shape[0] * shape[1] < 2**31 else weights.flat
        row = flat // flat.dtype.type(shape[1])
        self.group, self.col, self.score = group_of_row[row], flat - row * flat.dtype.type(shape[1]), weights.score
        # Scores, their order and a sorted copy, 8 bytes each, within an eighth of the budget.
        self.step = max(1, TOPOLOGY_BUDGET // (8 * 24 * max(1, shape[1])))
        self.whole = self._ranked(0, len(ids), slice(None)) if len(ids) <= self.step else None
        if self.whole is None:
            order = np.argsort(self.group, kind="stable")
            self.group, self.col, self.score = self.group[order], self.col[order], self.score[order]

    def chunks(self, groups: range) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (first group, column order ``[g, C]``, l1 norm of each run of ``width`` columns ``[g, T]``)."""
        if self.whole is not None:
            if len(groups):
                order, norms = self.whole
                yield groups.start, order[groups.start : groups.stop], norms[groups.start : groups.stop]
            return
        for first in range(groups.start, groups.stop, self.step):
            last = min(first + self.step, groups.stop)
            yield first, *self._ranked(first, last, slice(*np.searchsorted(self.group, [first, last])))

    def _ranked(self, first: int, last: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Column order and norms of the runs of the groups ``first`` to ``last``, whose weights are ``part`` of all."""
        key = (self.group[part] - first).astype(np.int64) * self.n_cols + self.col[part]
        score = np.bincount(key, weights=self.score[part], minlength=(last - first) * self.n_cols)
        score = score.reshape(last - first, self.n_cols)
        order = np.stack([_descending(own) for own in score])
        ranked = np.take_along_axis(score, order, axis=1)
        return order, np.add.reduceat(ranked, np.arange(0, self.n_cols, self.width), axis=1)


def _descending(norm: np.ndarray) -> np.ndarray:
    """Indices by falling norm, ties by lowest index; most norms are 0 and need no sorting."""
    some = norm > 0
    at = np.flatnonzero(some)
    return np.concatenate([at[np.argsort(-norm[at], kind="stable")], np.flatnonzero(~some)])


def _prefixes(ranking: _ColumnRanking, groups: range, count: int) -> np.ndarray:
    """How many of its best runs each group gives to the ``count`` best of all: full runs first, narrow ones last.

    Runs of a group come in descending order of norm, so the best of all groups are prefixes and only their lengths matter.
    """
    tiles = -(-ranking.n_cols // ranking.width)
    full = ranking.n_cols // ranking.width
    norm, run = np.empty(0), np.empty(0, dtype=np.int64)
    narrow_norm = np.empty(0)
    n_full = min(count, full * len(groups))
    for first, _, norms in ranking.chunks(groups):
        ids = (np.arange(first, first + len(norms))[:, None] * full + np.arange(full)).ravel()
        norm, run = np.concatenate([norm, norms[:, :full].ravel()]), np.concatenate([run, ids])
        best = highest(norm, n_full)
        norm, run = norm[best], run[best]
        if tiles > full:
            narrow_norm = np.concatenate([narrow_norm, norms[:, full]])
    taken = np.bincount(run // full - groups.start, minlength=len(groups)) if full else np.zeros(len(groups), dtype=np.int64)
    taken[highest(narrow_norm, count - n_full)] += 1
    return taken
