"""Layouts of many small sets of weights, each of which keeps a fixed number: balanced rows, and one density only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Dims, Layout, LayoutRule
from openwork.layouts.classes import first_of_classes, summed
from openwork.layouts.one_density import OneDensity
from openwork.layouts.settle import Weights
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import member

Axis = Literal["in", "out"]

CHUNK = 2**18
"""Weights that are looked at together."""


class SetRule(LayoutRule):
    """What makes layouts of sets."""

    @abstractmethod
    def rungs(self, dims: Dims) -> Sequence[SetLayout]:
        """From a layout that keeps every weight to that of the rule, each within whose patterns the next one's fit."""


class SetLayout(OneDensity, AtomLayout):
    """Single weights, of which every set keeps a fixed number.

    An axis of the weight is partitioned in sets, alike at every place of the other axes; a set is a capacity class, so that the
    best of each are kept exactly.  The number of weights follows from the shape: no other can be asked for.

    Args:
        rule: what made this layout; its name in reports and saved states.
        density: what a full set keeps; narrow sets at the end of an axis may keep a larger share.
        axis: ``"in"``, input channels at a fixed output and tap, or ``"out"``, output channels at a fixed column.
        taps: ``kh * kw`` of a convolution, 1 of a linear layer.
        member_of: int64 ``[length of the axis]``, the set of each position.
        keep: int64 ``[sets]``, how many weights a set keeps.
    """

    _rule: SetRule

    def __init__(self, rule: SetRule, density: float, axis: Axis, taps: int, member_of: np.ndarray, keep: np.ndarray) -> None:
        super().__init__(rule, density)
        self._axis, self._taps = axis, taps
        self._member_of, self._keep = member_of, keep

    def held(self, shape: tuple[int, int]) -> int:
        """As many at every place of the other axes."""
        return int(self._keep.sum()) * shape[0] * shape[1] // len(self._member_of)

    def rungs(self, dims: Dims) -> Sequence[Layout]:
        """Those of the rule."""
        return self._rule.rungs(dims)

    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """What every set keeps."""
        if self._axis == "out":
            return np.repeat(self._keep, shape[1])
        return np.tile(np.repeat(self._keep, self._taps), shape[0])

    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """What every set keeps, if that makes ``count``."""
        self.check_count(shape, count)
        return self.room(shape)

    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """The set of each weight."""
        row, col = np.divmod(ids, shape[1])
        if self._axis == "out":
            return self._member_of[row] * shape[1] + col
        channel, tap = np.divmod(col, self._taps)
        return (row * len(self._keep) + self._member_of[channel]) * self._taps + tap

    def supplement(
        self, shape: tuple[int, int], active: np.ndarray, drawn: np.ndarray, n: int, generator: torch.Generator
    ) -> np.ndarray:
        """Of every set as many inactive weights as it keeps, drawn uniformly: none of them can need more."""
        taken = np.sort(np.concatenate([active, drawn]))
        found = [np.empty(0, dtype=np.int64)]
        # Some rows, or columns, at a time: no set is cut and nothing dense is held.
        across, along = shape if self._axis == "in" else shape[::-1]
        step = max(1, CHUNK // max(1, along))
        for first in range(0, across, step):
            lines = min(step, across - first)
            part, corner = ((lines, along), first * along) if self._axis == "in" else ((along, lines), first)
            own = torch.randperm(part[0] * part[1], generator=generator).numpy()
            ids = own // part[1] * shape[1] + own % part[1] + corner
            free = ~member(ids, taken)
            own, ids = own[free], ids[free]
            found.append(ids[first_of_classes(self.classes(part, own), self.room(part))])
        return np.concatenate(found)

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """All weights."""
        return shape[0] * shape[1]

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """Every row for itself."""
        return consecutive_rows(shape[0], 1)

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Columns of a row in ascending order."""
        row, col = np.divmod(np.sort(ids), shape[1])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows.shape[0]))])
        return Pattern(shape, rows, torch.from_numpy(offsets.astype(np.int32)), torch.from_numpy(col.astype(np.int32)))

    def atoms(self, now: Pattern) -> Tensor:
        """Flat positions in storage order."""
        return (now.group_of_column * now.shape[1]).add_(now.cols)

    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """The weights themselves."""
        return summed(weights.flat, weights.score)

    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The scores themselves."""
        return scores.reshape(-1)

    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every weight, row by row."""
        for first, scores in chunks:
            start = first * now.shape[1]
            yield np.arange(start, start + scores.numel()), scores.double().reshape(-1).numpy()
