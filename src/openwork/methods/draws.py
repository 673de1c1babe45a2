"""Random indices, uniform or by weight, as many as a layer has active weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork import compiled


def draw(size: int, weight: Tensor | None, n: int, generator: torch.Generator) -> Tensor:
    """``n`` indices below ``size``, drawn with replacement.

    Args:
        size: at most ``2**53``.
        weight: ``[size]``, to whose magnitudes the probabilities are proportional; None, or all 0: uniform.
        n: how many.
        generator: the run's random state, of which one number is taken whatever ``n``.

    Returns:
        int64 ``[n]``.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    if weight is not None:
        sums = weight.detach().double().abs().cpu().cumsum(0).numpy()
        if sums[-1] > 0:
            return torch.from_numpy(_weighted(seed, sums, int(weight.nonzero()[-1]), n))
    if compiled.built():
        return torch.from_numpy(compiled.draw_even(seed, size, n))
    # Rounding may take the largest number below 1 to ``size`` itself.
    return torch.from_numpy(np.minimum((numbers(seed, n) * size).astype(np.int64), size - 1))


def _weighted(seed: int, sums: np.ndarray, last: int, n: int) -> np.ndarray:
    """The first place whose sum exceeds a part of the last, so that one of weight 0 is never it; at most ``last``."""
    if compiled.built():
        return compiled.draw_weighted(seed, sums, last, n)
    return np.minimum(first_above(sums, numbers(seed, n) * sums[-1]), last)


def numbers(seed: int, n: int) -> np.ndarray:
    """float64 ``[n]``, multiples of ``2**-53`` in ``[0, 1)``, of the random sequence (SplitMix64) that begins at ``seed``.

    Each is a function of its place in the sequence, so that any part can be computed by itself.
    """
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: np.ndarray = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return found


def first_above(sums: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``searchsorted(sums, at, side="right")`` for many ``at`` in ``[0, sums[-1]]``, several times as fast.

    The range is cut in even cells.  Where a cell begins among the sums is looked up once, and from there it is at most a
    step to nearly all places; the others are searched.
    """
    cells = 4 * len(sums)
    width = sums[-1] / cells
    # A little early, so that no rounding puts the beginning behind the place.
    begins = np.searchsorted(sums, np.arange(cells + 1) * (width * (1 - 1e-9)), side="right")
    found = begins.take((at * (1 / width)).astype(np.int64), mode="clip")
    found += sums.take(found, mode="clip") <= at
    far = np.flatnonzero(sums.take(found, mode="clip") <= at)
    found[far] = np.searchsorted(sums, at[far], side="right")
    return found
