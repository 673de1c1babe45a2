"""How the active tiles of a matrix are shared out among its parts: the capacity classes of tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from openwork.layouts.base import LayoutError


class Shares(ABC):
    """The capacity classes of the tiles of one matrix.

    Attributes:
        sizes: int64 ``[classes]``, tiles in each.
        weights: int64 ``[classes]``, weights in a tile of each.
        together: tiles by which a count goes up or down.
    """

    sizes: np.ndarray
    weights: np.ndarray
    together: int = 1

    @abstractmethod
    def classes(self, ids: np.ndarray) -> np.ndarray:
        """The class of each tile, counted from 0."""

    @abstractmethod
    def limits(self, count: int) -> np.ndarray:
        """How many tiles of each class a pattern of ``count`` tiles holds."""

    @abstractmethod
    def members(self, kind: int, ranks: np.ndarray) -> np.ndarray:
        """The tiles of these ranks within a class, row by row."""

    @abstractmethod
    def offer(self, active: int, n: int) -> int:
        """How many candidates of each class suffice where ``active`` tiles are active and ``n`` may go or come."""

    def weights_of(self, count: int) -> int:
        """Weights in ``count`` tiles, the ragged ones at their real size."""
        return int((self.limits(count) * self.weights).sum())


class EdgeShares(Shares):
    """Full tiles, narrow ones, low ones and the corner have each their share of the count; where tiles divide, all are full.

    Args:
        shape: ``(R, C)``.
        m: rows of a tile.
        n: columns of a tile.
    """

    def __init__(self, shape: tuple[int, int], m: int, n: int) -> None:
        low, narrow = shape[0] % m, shape[1] % n
        self._low, self._narrow = bool(low), bool(narrow)
        self._groups, self._tiles = -(-shape[0] // m), -(-shape[1] // n)
        if not (low or narrow):
            self.sizes, self.weights = np.array([self._groups * self._tiles]), np.array([m * n])
            return
        full = self._groups - self._low, self._tiles - self._narrow
        self.sizes = np.outer([full[0], self._low], [full[1], self._narrow]).ravel().astype(np.int64)
        self.weights = np.outer([m, low], [n, narrow]).ravel().astype(np.int64)

    def classes(self, ids: np.ndarray) -> np.ndarray:
        """0 everywhere if the tiles divide the matrix, else 0 full, 1 narrow, 2 low, 3 the corner."""
        if len(self.sizes) == 1:
            return np.zeros(len(ids), dtype=np.int64)
        low = (ids // self._tiles == self._groups - 1) & self._low
        narrow = (ids % self._tiles == self._tiles - 1) & self._narrow
        return 2 * low.astype(np.int64) + narrow

    def limits(self, count: int) -> np.ndarray:
        """The shares of ``count`` in proportion, rounded as Sainte-Lague does: one tile more is one more in one class."""
        sizes = self.sizes
        total = int(sizes.sum())
        if len(sizes) == 1:
            return np.array([count], dtype=np.int64)
        limits = (2 * sizes * count + total) // (2 * total)
        while missing := count - int(limits.sum()):
            step = 1 if missing > 0 else -1
            quotient = np.where(sizes > 0, (2 * limits + step) / np.maximum(sizes, 1), step * np.inf)
            at = int(np.argmin(quotient)) if step > 0 else len(sizes) - 1 - int(np.argmax(quotient[::-1]))
            limits[at] += step
        return limits

    def members(self, kind: int, ranks: np.ndarray) -> np.ndarray:
        """Of the rows and columns that a class has."""
        low, narrow = divmod(kind, 2)
        full_tiles = self._tiles - self._narrow
        width = 1 if narrow else full_tiles
        first = full_tiles if narrow else 0
        group = (self._groups - 1 if low else 0) + ranks // max(1, width)
        return group * self._tiles + first + ranks % max(1, width)

    def offer(self, active: int, n: int) -> int:
        """``n``: all of them may be of one class."""
        return n


class GroupShares(Shares):
    """Every row group keeps as many tiles as any other; the tiles divide the columns.

    Args:
        shape: ``(R, C)``.
        m: rows of a tile; the last group may have fewer.
        n: columns of a tile.
    """

    def __init__(self, shape: tuple[int, int], m: int, n: int) -> None:
        self._tiles = shape[1] // n
        self.together = -(-shape[0] // m)
        self.sizes = np.full(self.together, self._tiles, dtype=np.int64)
        self.weights = np.full(self.together, m * n, dtype=np.int64)
        self.weights[-1] -= (self.together * m - shape[0]) * n

    def classes(self, ids: np.ndarray) -> np.ndarray:
        """The row group."""
        return ids // self._tiles

    def limits(self, count: int) -> np.ndarray:
        """The same everywhere.

        Raises:
            LayoutError: ``count`` is no multiple of the number of groups.
        """
        if count % self.together:
            raise LayoutError(f"each of {self.together} row groups keeps as many tiles; count={count} does not divide")
        return np.full(self.together, count // self.together, dtype=np.int64)

    def members(self, kind: int, ranks: np.ndarray) -> np.ndarray:
        """The tiles of one group."""
        return kind * self._tiles + ranks

    def offer(self, active: int, n: int) -> int:
        """What a group holds, all of which may go, and its part of the growth."""
        return -(-active // self.together) - (-n // self.together) if n else 0
