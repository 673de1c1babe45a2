"""Layouts whose units are formed anew at every update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import final

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Layout, LayoutError
from openwork.layouts.settle import Weights, settle
from openwork.pattern import Pattern
from openwork.scores import Proposal, Scores, lowest, member


class RefitLayout(Layout):
    """A layout without fixed units: ``project`` forms them anew from scored weights, and kept weights may fall.

    Methods that speak of atoms see those of ``vectors``, a layout of single columns over the same row groups.
    """

    vectors: AtomLayout

    @abstractmethod
    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """Weights in a pattern of ``count`` units."""

    @abstractmethod
    def project(self, now: Pattern, weights: Weights, count: int, *, regroup: bool) -> Pattern:
        """The pattern of ``count`` units that keeps the most of ``weights``."""

    @final
    def revise(self, now: Pattern, proposal: Proposal) -> Pattern:
        """Score single weights, then form the units anew."""
        if proposal.refit is None:
            return self.project(now, self._spread(now, proposal), proposal.count, regroup=False)
        weights = settle(now, proposal, self.block)
        if _unmoved(now, weights) and self.weights_of(now.shape, proposal.count) == now.nnz:
            # Re-forming units where nothing was dropped would only let kept weights fall.
            return now
        return self.project(now, weights, proposal.count, regroup=proposal.refit.regroup)

    @final
    def best(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]], count: int) -> Pattern:
        """Units of all weights, formed anew; rows keep their groups."""
        flat, score = [], []
        for first, part in chunks:
            rows = now.rows[first : first + len(part)].numpy()
            at = rows[:, :, None] * np.int64(now.shape[1]) + np.arange(now.shape[1])
            flat.append(at[rows >= 0].ravel())
            score.append(part.double().numpy()[rows >= 0].ravel())
        at, value = np.concatenate(flat), np.concatenate(score)
        order = np.argsort(at)
        return self.project(now, Weights(at[order], value[order]), count, regroup=False)

    def _spread(self, now: Pattern, proposal: Proposal) -> Weights:
        """A proposal in atoms, as scored weights: kept ones at their scores, grown ones at the highest, dropped ones absent."""
        active = self.vectors.atoms(now).numpy()
        keep = proposal.keep.detach().cpu().numpy().astype(np.float64)
        if len(keep) != len(active):
            raise LayoutError(f"keep has {len(keep)} scores, the layer has {len(active)} active vectors")
        if proposal.grow.ids is None:
            raise LayoutError("a layout without fixed units grows from candidates with ids")
        kept = np.delete(np.arange(len(active)), lowest(keep, proposal.n_drop))
        ids = proposal.grow.ids.numpy()
        ids = ids[np.argsort(-proposal.grow.value.numpy(), kind="stable")]
        wanted = len(active) + -(-(self.weights_of(now.shape, proposal.count) - now.nnz) // self.height)
        fresh = ids[(ids >= 0) & ~member(ids, np.sort(active[kept]))][: max(0, wanted - len(kept))]
        lift = max(keep.max(initial=0.0), np.finfo(np.float32).tiny)
        vectors = np.concatenate([active[kept], fresh])
        score = np.concatenate([keep[kept], np.full(len(fresh), lift)])[np.argsort(vectors, kind="stable")]
        at = self.vectors.only(now, vectors).positions.numpy()
        real = at >= 0
        return Weights(at[real], np.broadcast_to(score[:, None], at.shape)[real])

    @final
    def atoms(self, now: Pattern) -> Tensor:
        """Those of ``vectors``."""
        return self.vectors.atoms(now)

    @final
    def n_atoms(self, now: Pattern) -> int:
        """Row groups times columns."""
        return self.vectors.n_atoms(now)

    @final
    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean over a vector's real weights."""
        return self.vectors.pool(now, scores)

    @final
    def sample_inactive(self, now: Pattern, n: int, generator: torch.Generator) -> Scores:
        """Vectors that are not active."""
        return self.vectors.sample_inactive(now, n, generator)

    @final
    def best_inactive(self, now: Pattern, kept: Tensor, chunks: Iterable[tuple[int, Tensor]], n: int) -> Scores:
        """The best vectors outside ``kept``."""
        return self.vectors.best_inactive(now, kept, chunks, n)

    @final
    def inactive_at(self, now: Pattern, flat: np.ndarray) -> np.ndarray:
        """Vectors by position."""
        return self.vectors.inactive_at(now, flat)

    @final
    def only(self, now: Pattern, ids: np.ndarray) -> Pattern:
        """Vectors, whole units or not."""
        return self.vectors.only(now, ids)


def _unmoved(now: Pattern, weights: Weights) -> bool:
    at = now.positions.numpy()
    return np.array_equal(weights.flat, at[at >= 0])
