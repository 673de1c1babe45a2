"""What a layout is: where non-zeros may lie, and the one projection that does drop and grow together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openwork.budgets import active_weights
from openwork.pattern import Moves, Pattern
from openwork.scores import Proposal, Scores, arguments, descending

Dims = tuple[int, ...]
"""The shape of a dense weight, ``(R, C)`` or ``(R, Cin, kh, kw)``; a layout sees it as ``R x (C or Cin * kh * kw)``."""

TOPOLOGY_BUDGET = 64 * 2**20
"""Bytes of temporaries that a topology update may hold at a time, beyond copies of what the layer itself stores.

N:M and complementary layouts, whose sets are about as many as their weights, take some tens of bytes for each weight as well.
"""


class LayoutError(ValueError):
    """A layout cannot hold what was asked of it."""


def matrix(dims: Dims) -> tuple[int, int]:
    """``(R, C)`` of a weight of shape ``dims``."""
    return dims[0], math.prod(dims[1:])


class LayoutRule(ABC):
    """What gives every layer of a model its layout: a layout, or something that needs to know the layer first."""

    @abstractmethod
    def for_layer(self, name: str, dims: Dims) -> Layout:
        """The layout of the layer ``name`` whose dense weight has shape ``dims``.

        Raises:
            LayoutError: there is none for such a layer.
        """

    def __repr__(self) -> str:
        return arguments(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Swap(NamedTuple):
    """A pattern from which the lowest atoms went and others came.

    Attributes:
        new: the pattern.
        moves: how values get there, where that is known, the atoms are single weights and none that went came back.
    """

    new: Pattern
    moves: Moves | None


class Layout(LayoutRule):
    """Where the non-zeros of a weight may lie.

    A layout owns its *units* (what a budget counts), its *atoms* (the smallest thing that can be switched on or off) and
    ``revise``.  It is immutable: all state lies in the patterns.
    """

    def for_layer(self, name: str, dims: Dims) -> Layout:
        """This layout, for layers of any kind."""
        return self

    @property
    def density(self) -> float | None:
        """The one density that can be asked for, None where any can; a ragged layer may come out a little denser."""
        return None

    @property
    def resizable(self) -> bool:
        """Whether a layer may hold one atom more or less."""
        return False

    @property
    @abstractmethod
    def height(self) -> int:
        """Rows in a row group of this layout's patterns."""

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """Rows and columns of a unit."""

    @abstractmethod
    def fit(self, dims: Dims, density: float) -> int:
        """The number of units that holds ``density`` of the weights: exact, rounded up to a whole unit."""

    @abstractmethod
    def initial(self, dims: Dims, count: int, weight: Tensor, generator: torch.Generator) -> Pattern:
        """A random pattern of ``count`` units for a dense ``weight``."""

    @abstractmethod
    def atoms(self, now: Pattern) -> Tensor:
        """int64, the ids of the active atoms in the order in which ``pool`` returns their scores."""

    @abstractmethod
    def n_atoms(self, now: Pattern) -> int:
        """How many atoms there are, active or not."""

    @abstractmethod
    def inactive_at(self, now: Pattern, flat: np.ndarray) -> np.ndarray:
        """The inactive atoms that hold the flat positions ``flat`` (int64, any order), ascending, each once."""

    @abstractmethod
    def only(self, now: Pattern, ids: np.ndarray) -> Pattern:
        """The pattern of just these atoms, over the row groups of ``now``."""

    def candidates(self, now: Pattern, flat: np.ndarray) -> tuple[Pattern, Tensor]:
        """The pattern of just ``inactive_at``, and its atoms in the order of ``atoms``."""
        pattern = self.only(now, self.inactive_at(now, flat))
        return pattern, self.atoms(pattern)

    @abstractmethod
    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean of ``scores`` ``[K, h]`` over the real weights of every active atom."""

    @abstractmethod
    def sample_inactive(self, now: Pattern, n: int, generator: torch.Generator) -> Scores:
        """Inactive atoms in random order, at least ``n`` (all, where there are fewer).

        The first ``n`` are drawn uniformly without replacement; an atom layout adds more where a capacity class would
        otherwise have fewer than ``n`` of its own to offer.
        """

    @abstractmethod
    def best_inactive(self, now: Pattern, kept: Tensor, chunks: Iterable[tuple[int, Tensor]], n: int) -> Scores:
        """The best atoms outside ``kept`` by a running top-``n`` over ``chunks`` of element scores.

        Args:
            now: the pattern at present.
            kept: int64, ids of atoms that are no candidates.
            chunks: pairs (first row group, element scores ``[g, h, C]``), so that no ``R x C`` tensor is held.
            n: how many to return.
        """

    @abstractmethod
    def revise(self, now: Pattern, proposal: Proposal) -> Pattern:
        """Drop and grow in one projection: the pattern of ``proposal.count`` units that honours the proposal best."""

    def swapped(self, now: Pattern, proposal: Proposal) -> Swap | None:
        """What ``revise`` comes to where atoms go one for one and any may take any other's place; None elsewhere."""
        return None

    @abstractmethod
    def best(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]], count: int) -> Pattern:
        """The pattern of ``count`` units, over the row groups of ``now``, that holds the most of ``chunks``.

        For layers that keep all weights, active or not; it may take arrays as large as the matrix.
        """

    @abstractmethod
    def check(self, pattern: Pattern, count: int) -> None:
        """Raise ``LayoutError`` unless ``pattern`` is one of this layout's with ``count`` units."""

    def rungs(self, dims: Dims) -> Sequence[Layout]:
        """Layouts of falling density that end at this one, each within whose patterns the next one's fit.

        Only layouts of one density need them, to be reached from a dense layer step by step.
        """
        return (self,)

    def ground(self, now: Pattern) -> Tensor:
        """int32 ``[G, h]``, the row groups by which ``best_inactive`` takes its chunks; -1 is padding."""
        return now.rows

    def unfit(self, dims: Dims) -> str | None:
        """Why a weight of this shape is better left dense (it is smaller than one unit), or None."""
        rows, cols = matrix(dims)
        m, n = self.block
        if rows < m or cols < n:
            return f"{rows} x {cols} is smaller than one {m} x {n} unit"
        return None


def check_sizes(**sizes: object) -> None:
    """Raise ``ValueError``, naming the argument, unless every size is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} must be a positive integer")


def fit_units(shape: tuple[int, int], density: float, units: int, weights_of: Callable[[int], int]) -> int:
    """The smallest number of units, of ``units`` in all, whose weights reach the canonical count of ``density``."""
    total = shape[0] * shape[1]
    wanted = active_weights(total, density)
    count = min(units, -(-wanted * units // total))
    while count > 0 and weights_of(count - 1) >= wanted:
        count -= 1
    while count < units and weights_of(count) < wanted:
        count += 1
    return count


def draw_distinct(total: int, n: int, generator: torch.Generator) -> np.ndarray:
    """``n`` distinct integers below ``total``, uniformly, in random order; costs O(n), not O(total)."""
    if 2 * n >= total:
        return torch.randperm(total, generator=generator)[:n].numpy()
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < n:
        more = torch.randint(total, (2 * (n - len(drawn)) + 8,), generator=generator).numpy()
        drawn = np.concatenate([drawn, more])
        order = descending(-drawn)
        again = np.zeros(len(drawn), dtype=bool)
        again[order[1:]] = drawn[order[1:]] == drawn[order[:-1]]
        drawn = drawn[~again]
    return drawn[:n]
