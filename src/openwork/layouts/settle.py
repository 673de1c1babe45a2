"""Drop and grow of single weights, before a layout re-forms its units from what is left (DSB, sec. 4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from openwork.pattern import Pattern
from openwork.scores import Proposal, Refit, lowest, member


class Weights(NamedTuple):
    """Single weights and what each is worth to the re-forming.

    Args:
        flat: int64 ``[n]``, distinct flat positions ``row * C + column``.
        score: float64 ``[n]``, at least 0.
    """

    flat: np.ndarray
    score: np.ndarray


def settle(now: Pattern, proposal: Proposal, block: tuple[int, int]) -> Weights:
    """The weights that a proposal wants, scored: kept ones by magnitude, new ones lifted.

    1. ``D0``: the ``n_drop`` weights of lowest score.  2. With ``block_aware``, a weight of ``D0`` goes only where at least
    half of its row or half of its column in the block lies in ``D0``, all conditions judged on ``D0``.  3. Candidates are
    taken in order until the new weights reach the number dropped.
    """
    refit = proposal.refit if proposal.refit is not None else Refit()
    positions = now.positions.cpu().numpy()
    stored = positions >= 0
    flat = positions.ravel() if stored.all() else positions[stored]
    keep = proposal.keep.detach().cpu().numpy().astype(np.float64)
    if len(keep) != len(flat):
        raise ValueError(f"keep has {len(keep)} scores, the layer has {len(flat)} active weights")
    small = np.zeros(len(flat), dtype=bool)
    small[lowest(keep, proposal.n_drop)] = True
    dropped = small & _crowded(now, stored, small, block[1])[stored] if refit.block_aware else small
    new = _new_weights(flat, dropped, proposal, refit)
    if not len(keep):
        return Weights(new, np.ones(len(new)))
    lift = keep.max() if refit.lift == "max" else keep.mean()
    survivors = flat[~dropped]
    score = np.concatenate([keep[~dropped], np.full(len(new), max(lift, np.finfo(np.float32).tiny))])
    return Weights(np.concatenate([survivors, new]), score)


def _crowded(now: Pattern, stored: np.ndarray, small: np.ndarray, width: int) -> np.ndarray:
    """bool ``[K, h]``: whether at least half of the weight's row or column in its block is small."""
    marked = np.zeros(stored.shape, dtype=np.int32)
    marked[stored] = small
    group = now.group_of_column.cpu().numpy()
    starts = now.offsets.cpu().numpy().astype(np.int64)
    within = np.arange(len(group)) - starts[group]
    first = within % width == 0
    block = np.cumsum(first) - 1
    cuts = np.flatnonzero(first)
    if not len(cuts):
        return marked.astype(bool)
    row_small = np.add.reduceat(marked, cuts, axis=0)[block]
    row_size = np.diff(np.append(cuts, len(group)))[block][:, None]
    col_small = marked.sum(1)[:, None]
    col_size = stored.sum(1)[:, None]
    return (2 * row_small >= row_size) | (2 * col_small >= col_size)


def _new_weights(flat: np.ndarray, dropped: np.ndarray, proposal: Proposal, refit: Refit) -> np.ndarray:
    """Candidates in order, batch by batch, until they hold as many new weights as were dropped."""
    wanted = int(dropped.sum())
    if proposal.grow.ids is None:
        raise ValueError("single weights grow from candidates with ids")
    ids = proposal.grow.ids.cpu().numpy()
    taken = np.sort(flat[~dropped] if refit.regrow else flat)
    new = (ids >= 0) & ~member(ids, taken)
    reached = np.cumsum(new)
    enough = int(np.searchsorted(reached, wanted)) + 1 if wanted else 0
    whole = -(-enough // refit.batch) * refit.batch
    return ids[:whole][new[:whole]]
