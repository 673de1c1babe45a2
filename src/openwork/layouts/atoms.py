"""Layouts with fixed atoms: a partition matroid, on which taking the best first is exact."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import Dims, Layout, LayoutError, Swap, draw_distinct, matrix
from openwork.layouts.classes import best_of_classes, first_of_classes
from openwork.layouts.settle import Weights, settle
from openwork.pattern import Pattern
from openwork.scores import Proposal, Scores, absent, ascending, descending, highest, lowest, member, without

_Order = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


class AtomLayout(Layout):
    """A layout with fixed atoms whose units are its atoms.

    Atoms fall in classes with a capacity each (a partition matroid), so that taking the best first is exact.
    """

    @abstractmethod
    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """The capacity class of each atom, counted from 0."""

    @abstractmethod
    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """How many atoms of each class a pattern of ``count`` atoms holds."""

    @abstractmethod
    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """The most atoms of each class that any pattern holds."""

    def offer(self, shape: tuple[int, int], active: int, n: int) -> np.ndarray:
        """How many candidates of each class suffice where ``active`` atoms are active and ``n`` may go or come."""
        return np.minimum(self.room(shape), n)

    @abstractmethod
    def supplement(
        self, shape: tuple[int, int], active: np.ndarray, drawn: np.ndarray, n: int, generator: torch.Generator
    ) -> np.ndarray:
        """More inactive atoms in random order, so that every class has ``n`` to offer (all, where it has fewer).

        Otherwise what is dropped in one class and drawn in another would move nothing.

        Args:
            shape: of the matrix.
            active: ascending ids, not to be offered.
            drawn: ids that are offered already.
            n: how many atoms may be dropped.
            generator: the run's random state.
        """

    def rivals(self, ids: np.ndarray) -> np.ndarray | None:
        """A key for each atom such that of those with the same key only one can be active; None where all get along."""
        return None

    @abstractmethod
    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Weights in a pattern of ``count`` atoms."""

    @abstractmethod
    def total_atoms(self, shape: tuple[int, int]) -> int:
        """All atoms of a matrix."""

    @abstractmethod
    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """The pattern of these atoms (any order) over row groups ``rows``."""

    @abstractmethod
    def rows(self, shape: tuple[int, int]) -> Tensor:
        """The row groups that a layer starts with, unless ``start`` finds others."""

    def start(self, shape: tuple[int, int], count: int, weight: Tensor) -> tuple[Tensor, np.ndarray] | None:
        """``(rows, ids)``, where the weights decide which row groups and atoms a layer starts with; None: atoms are drawn."""
        return None

    def own_rows(self, pattern: Pattern) -> Tensor:
        """The row groups that a pattern at hand should have."""
        return self.rows(pattern.shape)

    @abstractmethod
    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """``(ids, sums)``: the atoms that hold these weights, ascending, and what each holds of their score."""

    @abstractmethod
    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``(ids, mean score)`` of all atoms, some at a time, from chunks of element scores as ``best_inactive`` gets them."""

    @final
    def n_atoms(self, now: Pattern) -> int:
        """All atoms of the layer's matrix."""
        return self.total_atoms(now.shape)

    def inactive_at(self, now: Pattern, flat: np.ndarray) -> np.ndarray:
        """Atoms by position."""
        distinct, times = np.unique(flat, return_counts=True)
        ids = self.gather(now, Weights(distinct, times.astype(np.float64)))[0]
        return absent(ids, ascending(self.atoms(now).numpy()))

    @final
    def only(self, now: Pattern, ids: np.ndarray) -> Pattern:
        """The pattern of these atoms."""
        return self.build(now.shape, ids, now.rows)

    @final
    def initial(self, dims: Dims, count: int, weight: Tensor, generator: torch.Generator) -> Pattern:
        """Atoms drawn uniformly, unless ``start`` finds some."""
        shape = matrix(dims)
        found = self.start(shape, count, weight)
        if found is not None:
            return self.build(shape, found[1], found[0])
        empty = self.build(shape, np.empty(0, dtype=np.int64), self.rows(shape))
        drawn = _ids(self.sample_inactive(empty, count, generator))
        return self.build(shape, self._fill(shape, count, drawn), empty.rows)

    @final
    def sample_inactive(self, now: Pattern, n: int, generator: torch.Generator) -> Scores:
        """Ranks among the inactive are drawn and turned into ids: O(n log n), nothing of the size of the matrix."""
        active = np.sort(self.atoms(now).numpy())
        free = self.total_atoms(now.shape) - len(active)
        ranks = draw_distinct(free, min(n, free), generator)
        # The r-th inactive id is r plus the number of active ids before it.
        ids = ranks + np.searchsorted(active - np.arange(len(active)), ranks, side="right")
        ids = np.concatenate([ids, self.supplement(now.shape, active, ids, n, generator)])
        value = torch.arange(len(ids), 0, -1, dtype=torch.float64)
        return Scores(value, torch.from_numpy(ids))

    @final
    def best_inactive(self, now: Pattern, kept: Tensor, chunks: Iterable[tuple[int, Tensor]], n: int) -> Scores:
        """A running top-``n`` for every class."""
        fixed = np.sort(self._key(kept.numpy()))
        room = self.offer(now.shape, self.atoms(now).numel(), n)
        best, ids = np.empty(0), np.empty(0, dtype=np.int64)
        for at, value in self.pool_chunks(now, chunks):
            if len(room) == 1 and 0 < room[0] == len(best):
                # With one class only what exceeds the worst so far can come in: a tie goes to the lower id.
                near = np.flatnonzero(value > best.min())
                at, value = at[near], value[near]
            fresh = ~member(self._key(at), fixed)
            ids = np.concatenate([ids, at[fresh]])
            best = np.concatenate([best, value[fresh]])
            # A class may need up to n of its own, whatever the others offer.
            top = best_of_classes(ids, best, self.classes(now.shape, ids), room)
            ids, best = ids[top], best[top]
        return Scores(torch.from_numpy(best), torch.from_numpy(ids))

    @final
    def best(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]], count: int) -> Pattern:
        """Every class takes its best."""
        return self.build(now.shape, self._fill(now.shape, count, self.ranking(now, chunks, count)), now.rows)

    @final
    def ranking(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]], n: int) -> np.ndarray:
        """Ids of the ``n`` best of every class, active or not, best first and the lower where two are equal."""
        found = self.best_inactive(now, torch.empty(0, dtype=torch.int64), chunks, n)
        ids = _ids(found)
        ranked: np.ndarray = ids[np.lexsort((ids, -found.value.numpy()))]
        return ranked

    @final
    def revise(self, now: Pattern, proposal: Proposal) -> Pattern:
        """Priority: kept, fresh, dropped, anything; each class takes the first it has room for."""
        gone = np.empty(0, dtype=np.int64) if proposal.refit is not None else self._lowest(proposal)
        swap = self._swap_of(now, proposal, gone)
        if swap is not None:
            return swap.new
        return self.build(now.shape, self._fill(now.shape, proposal.count, self._ranked(now, proposal, gone)), now.rows)

    @final
    def swapped(self, now: Pattern, proposal: Proposal) -> Swap | None:
        """Where as many come as the count asks for."""
        known = self.swaps and proposal.refit is None
        return self._swap_of(now, proposal, self._lowest(proposal)) if known else None

    @property
    def swaps(self) -> bool:
        """Whether ``swap`` is worth asking."""
        return False

    def swap(self, now: Pattern, n_active: int, gone: np.ndarray, fresh: np.ndarray) -> Swap | None:
        """``build`` of all but the active atoms at the indices ``gone``, and of ``fresh``; both ascend.

        Returns:
            None where a layout knows nothing faster, ``n_active`` is not the number of active atoms, or an atom is not one or
            comes twice: then the atoms have to be sorted out one by one.
        """
        return None

    def _lowest(self, proposal: Proposal) -> np.ndarray:
        return lowest(_numpy(proposal.keep), proposal.n_drop)

    def _swap_of(self, now: Pattern, proposal: Proposal, gone: np.ndarray) -> Swap | None:
        grow, n_active = proposal.grow, len(proposal.keep)
        wanted = proposal.count - (n_active - len(gone))
        if proposal.refit is not None or grow.ids is None or not 0 <= wanted <= len(grow.ids) or not self._alike(now.shape):
            return None
        ids = _ids(grow)
        fresh = ids if len(ids) == wanted else ids[highest(_numpy(grow.value), wanted)]
        return self.swap(now, n_active, gone, ascending(fresh)) if len(fresh) == wanted else None

    def _alike(self, shape: tuple[int, int]) -> bool:
        """Whether any atom can take any other's place."""
        return len(self.room(shape)) == 1 and self.rivals(np.empty(0, dtype=np.int64)) is None

    def _ranked(self, now: Pattern, proposal: Proposal, gone: np.ndarray) -> np.ndarray:
        """Kept atoms, fresh ones and dropped ones (the active ones at the indices ``gone``), each best first."""
        best = self._order(now.shape, proposal.count)
        active = self.atoms(now).numpy()
        if proposal.refit is not None:
            keep, gone, fresh = self._in_atoms(now, active, settle(now, proposal, self.block))
        else:
            keep = _numpy(proposal.keep)
            if len(keep) != len(active):
                raise LayoutError(f"keep has {len(keep)} scores, the layer has {len(active)} active atoms")
        kept = best(without(active, gone), without(keep, gone), 0)
        if proposal.refit is None:
            fresh = self._fresh(now, proposal.grow, active, kept, best)
        gone = gone[~member(active[gone], ascending(fresh))]
        return np.concatenate([kept, fresh, best(active[gone], keep[gone], len(kept) + len(fresh))])

    def _order(self, shape: tuple[int, int], count: int) -> _Order:
        """What puts atoms in order: ``(ids, scores, how many come before them) -> ids``, best first.

        Where any atom may take any other's place, only which are the best matters: those alone, as they stood.
        """
        if not self._alike(shape):
            return lambda ids, score, before: ids[descending(score)]
        return lambda ids, score, before: ids if len(ids) <= count - before else ids[highest(score, count - before)]

    def _fresh(self, now: Pattern, grow: Scores, active: np.ndarray, kept: np.ndarray, best: _Order) -> np.ndarray:
        """Ids that may grow, best first."""
        value = _numpy(grow.value)
        if grow.ids is None:
            ids = np.setdiff1d(np.arange(self.total_atoms(now.shape)), active, assume_unique=True)
            if len(value) != len(ids):
                raise LayoutError(f"grow has {len(value)} scores, the layer has {len(ids)} inactive atoms")
        else:
            ids = _ids(grow)
        ranked = ascending(kept)
        first = best(ids, value, len(kept))
        if (first >= 0).all() and not member(first, ranked).any():
            return first
        may = (ids >= 0) & ~member(ids, ranked)
        return best(ids[may], value[may], len(kept))

    def _in_atoms(self, now: Pattern, active: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Settled weights as whole atoms: a score for each active one, which of them go, which others come, best first.

        As many atoms go as hold the number of lost weights.  If fresh and active atoms were ranked together by their sums, a
        fixed tile with its few new weights would hardly ever win and the topology would freeze.
        """
        ids, score = self.gather(now, weights)
        ranked = ascending(active)
        new = ~member(ids, ranked)
        fresh = ids[new][descending(score[new])]
        keep = np.zeros(len(active))
        held = member(active, ids)
        keep[held] = score[np.searchsorted(ids, active[held])]
        at = now.positions.numpy()
        lost = int((~member(at[at >= 0], np.sort(weights.flat))).sum())
        n_drop = max(min(lost, 1), round(lost * len(active) / max(1, now.nnz)))
        # An atom goes only where one of its class may come.
        movable = np.flatnonzero(np.isin(self.classes(now.shape, active), self.classes(now.shape, fresh)))
        return keep, movable[lowest(keep[movable], n_drop)], fresh

    def _fill(self, shape: tuple[int, int], count: int, ranked: np.ndarray) -> np.ndarray:
        """The first of ``ranked`` that the classes have room for; where they do not suffice, the lowest ids of all."""
        limits = self.limits(shape, count)
        ranked = self._without_rivals(ranked)
        if len(limits) == 1:
            chosen = ranked[: int(limits[0])]
            missing = limits - len(chosen)
        else:
            chosen = ranked[first_of_classes(self.classes(shape, ranked), limits)]
            missing = limits - np.bincount(self.classes(shape, chosen), minlength=len(limits))
        if missing.any():
            # With one class the lowest free ids lie among the first few; with more, all have to be looked at.
            span = self.total_atoms(shape) if len(limits) > 1 else len(chosen) + int(missing[0])
            rest = np.setdiff1d(np.arange(span), chosen, assume_unique=True)
            rest = self._without_rivals(np.concatenate([chosen, rest]))[len(chosen) :]
            extra = rest[first_of_classes(self.classes(shape, rest), missing)]
            chosen = np.concatenate([chosen, extra])
        return chosen

    def _key(self, ids: np.ndarray) -> np.ndarray:
        keys = self.rivals(ids)
        return ids if keys is None else keys

    def _without_rivals(self, ranked: np.ndarray) -> np.ndarray:
        """Of atoms that exclude each other, the first."""
        keys = self.rivals(ranked)
        return ranked if keys is None else ranked[np.sort(np.unique(keys, return_index=True)[1])]

    @final
    def check(self, pattern: Pattern, count: int) -> None:
        """Whole atoms, as many of each class as the count says."""
        pattern.validate()
        ids = self.atoms(pattern).numpy()
        rebuilt = self.build(pattern.shape, ids, self.own_rows(pattern))
        if not torch.equal(pattern.rows, rebuilt.rows):
            raise LayoutError(f"the pattern is not one of {self!r}: its row groups differ")
        if not np.array_equal(np.sort(pattern.positions.numpy().ravel()), np.sort(rebuilt.positions.numpy().ravel())):
            raise LayoutError(f"the pattern is not one of {self!r}: an atom is only partly active")
        held = np.bincount(self.classes(pattern.shape, ids), minlength=len(self.limits(pattern.shape, count)))
        if not np.array_equal(held, self.limits(pattern.shape, count)):
            raise LayoutError(f"the pattern holds {len(ids)} atoms of {self!r}, not {count}")


def _ids(scores: Scores) -> np.ndarray:
    if scores.ids is None:
        raise LayoutError("these scores carry no ids")
    return scores.ids.numpy()


def _numpy(score: Tensor) -> np.ndarray:
    return score.detach().cpu().numpy()
