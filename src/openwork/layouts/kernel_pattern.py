"""Kernel patterns with connectivity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openwork.budgets import active_weights
from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Dims, LayoutError, LayoutRule, matrix
from openwork.layouts.settle import Weights
from openwork.pattern import Pattern, consecutive_rows

TAPS, ENTRIES = 9, 4

_CORNERS = ((4, 5, 7, 8), (3, 4, 6, 7), (1, 2, 4, 5), (0, 1, 3, 4))
_SHAPES = {
    # Tap i, j of a kernel is 3 i + j.  Four 2 x 2 corners, then four T shapes; all contain the centre.
    "symmetric": (*_CORNERS, (1, 3, 4, 5), (3, 4, 5, 7), (1, 4, 5, 7), (1, 3, 4, 7)),
    # MEST's public code has another fifth pattern, which leaves the centre out.
    "mest-release": (*_CORNERS, (5, 6, 7, 8), (3, 4, 5, 7), (1, 4, 5, 7), (1, 3, 4, 7)),
}


class KernelPattern(LayoutRule):
    """3 x 3 kernels that are either empty or hold one of eight patterns of four weights (MEST, App. A and D).

    Every filter keeps the same number of kernels, so the density goes up to 4/9 in steps of ``4 / (9 Cin)``.  A kernel takes
    one pattern at a time; which one, a method decides together with the kernel.  Layers of other kernel sizes stay dense.

    Args:
        patterns: ``"symmetric"``, four corners and four T shapes, or ``"mest-release"``, those of the public code.

    Raises:
        ValueError: ``patterns`` is unknown.
    """

    def __init__(self, patterns: Literal["symmetric", "mest-release"] = "symmetric") -> None:
        if patterns not in _SHAPES:
            raise ValueError(f"patterns={patterns!r} is unknown; known: {', '.join(_SHAPES)}")
        self.patterns = patterns

    def for_layer(self, name: str, dims: Dims) -> KernelPatterns:
        """The kernels of this layer.

        Raises:
            LayoutError: they are not 3 x 3.
        """
        if dims[2:] != (3, 3):
            size = " x ".join(map(str, dims[2:])) or "those of a linear layer"
            raise LayoutError(f"{self!r} is for kernels of 3 x 3, not {size}")
        return KernelPatterns(self, dims[1])


class KernelPatterns(AtomLayout):
    """The kernels of one layer; atom ``(row * Cin + cin) * 8 + p`` is kernel ``(row, cin)`` with pattern ``p``.

    A filter is a capacity class, and atoms of the same kernel are rivals.

    Args:
        rule: what made this layout.
        channels: input channels of the layer.
    """

    def __init__(self, rule: KernelPattern, channels: int) -> None:
        self._rule, self._channels = rule, channels
        self._taps = np.array(_SHAPES[rule.patterns])
        self._kinds = len(self._taps)
        self._mask = np.zeros((TAPS, self._kinds))
        self._mask[self._taps, np.arange(self._kinds)[:, None]] = 1.0

    @property
    def height(self) -> int:
        """1."""
        return 1

    @property
    def block(self) -> tuple[int, int]:
        """The four weights of a kernel."""
        return 1, ENTRIES

    def fit(self, dims: Dims, density: float) -> int:
        """Kernels: the fewest whose weights reach the canonical count, as many in every filter.

        Raises:
            LayoutError: the density exceeds 4/9.
        """
        rows, cols = matrix(dims)
        wanted = active_weights(rows * cols, density)
        if wanted > ENTRIES * rows * self._channels:
            raise LayoutError(f"{self!r} holds a density of at most 4/9; {density:g} was asked for in a layer of shape {dims}")
        return rows * -(-wanted // (ENTRIES * rows))

    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """All kernels of a filter."""
        return np.full(shape[0], self._channels)

    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """The same number in every filter."""
        if count % shape[0]:
            raise LayoutError(f"{self!r} keeps as many kernels in each of {shape[0]} filters; count={count} does not divide")
        return np.full(shape[0], count // shape[0])

    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """The filter of each atom."""
        return ids // (self._channels * self._kinds)

    def rivals(self, ids: np.ndarray) -> np.ndarray:
        """The kernel of each atom."""
        return ids // self._kinds

    def supplement(
        self, shape: tuple[int, int], active: np.ndarray, drawn: np.ndarray, n: int, generator: torch.Generator
    ) -> np.ndarray:
        """Every empty kernel, with a random pattern."""
        empty = np.ones(shape[0] * self._channels, dtype=bool)
        empty[self.rivals(np.concatenate([active, drawn]))] = False
        kernels = np.flatnonzero(empty)
        kernels = kernels[torch.randperm(len(kernels), generator=generator).numpy()]
        return kernels * self._kinds + torch.randint(self._kinds, (len(kernels),), generator=generator).numpy()

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Four in a kernel."""
        return ENTRIES * count

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """Kernels times patterns."""
        return shape[0] * self._channels * self._kinds

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """Every row for itself."""
        return consecutive_rows(shape[0], 1)

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Kernels of a row in ascending order."""
        kernel, kind = np.divmod(np.sort(ids), self._kinds)
        row, channel = np.divmod(kernel, self._channels)
        cols = (channel[:, None] * TAPS + self._taps[kind]).ravel()
        offsets = np.concatenate([[0], np.cumsum(ENTRIES * np.bincount(row, minlength=shape[0]))])
        return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(cols.astype(np.int32)))

    def atoms(self, now: Pattern) -> Tensor:
        """Kernels in storage order.

        Raises:
            LayoutError: what is stored are not patterns of this layout.
        """
        if len(now.cols) % ENTRIES:
            raise LayoutError(f"{len(now.cols)} weights are no patterns of {ENTRIES}")
        cols = now.cols.numpy().reshape(-1, ENTRIES)
        known = {tuple(taps): kind for kind, taps in enumerate(self._taps.tolist())}
        code = np.full(TAPS**ENTRIES, -1)
        digits = TAPS ** np.arange(ENTRIES)
        for taps, kind in known.items():
            code[int((np.array(taps) * digits).sum())] = kind
        kind = code[(cols % TAPS * digits).sum(1)]
        if (kind < 0).any() or (cols // TAPS != cols[:, :1] // TAPS).any():
            raise LayoutError(f"a kernel holds no pattern of {self!r}")
        row = now.group_of_column.numpy()[::ENTRIES]
        return torch.from_numpy((row * self._channels + cols[:, 0] // TAPS) * self._kinds + kind)

    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Active kernels with the pattern they have, others with the one that holds the most."""
        kernels, inverse = np.unique(weights.flat // TAPS, return_inverse=True)
        key = inverse * TAPS + weights.flat % TAPS
        held = np.bincount(key, weights=weights.score, minlength=len(kernels) * TAPS).reshape(-1, TAPS) @ self._mask
        kind = held.argmax(1)
        active = np.sort(self.atoms(now).numpy())
        at = np.searchsorted(kernels, self.rivals(active))
        found = np.flatnonzero(np.append(kernels, -1)[at] == self.rivals(active))
        kind[at[found]] = active[found] % self._kinds
        return kernels * self._kinds + kind, held[np.arange(len(kernels)), kind]

    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean over a kernel's four weights."""
        return scores.double().view(-1, ENTRIES).mean(1)

    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every kernel with the pattern of highest mean, the first where several are."""
        for first, scores in chunks:
            means = scores.double().numpy().reshape(-1, TAPS) @ (self._mask / ENTRIES)
            kind = means.argmax(1)
            kernel = np.arange(len(means)) + first * self._channels
            yield kernel * self._kinds + kind, means[np.arange(len(means)), kind]

    def __repr__(self) -> str:
        return repr(self._rule)
