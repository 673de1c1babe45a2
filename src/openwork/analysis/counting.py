"""How many masks a layout allows: formulas and exact counts, as integers of any size."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb, factorial, prod

import numpy as np

BRUTE_LIMIT = 200_000
"""How many candidate masks an enumeration looks at before it refuses."""

STATE_LIMIT = 20_000
"""How many states the exact count of a transposable tile goes through before it refuses."""


def n_of_m(total: int, n: int, m: int) -> int:
    """``C(M, N)^(T / M)``: ``n`` kept in each group of ``m``."""
    return int(comb(m, n) ** _whole(total, m, "a group of m"))


def complementary(total: int, k: int) -> int:
    """``K^(T / K)``: one kept of every complementary set, whatever the distance of its members."""
    return int(k ** _whole(total, k, "a set of k"))


def kernel_pattern(filters: int, channels: int, kept: int, patterns: int) -> int:
    """``(C(Cin, kept) P^kept)^filters``: as many kernels in every filter, each with one of ``P`` patterns."""
    return int((comb(channels, kept) * patterns**kept) ** filters)


def transposable_hubara(total: int, n: int, m: int) -> int:
    """``[M! (M - 1)! ... (M - N + 1)!]^(T / M^2)`` (Hubara et al. 2021), more than there are where ``n > 1``."""
    return int(prod(factorial(m - i) for i in range(n)) ** _whole(total, m * m, "a tile of m x m"))


def transposable(total: int, n: int, m: int) -> int:
    """The true count: ``m x m`` tiles with ``n`` ones in every row and column, to the power of the tiles.

    Raises:
        ValueError: the tile is too large to count (8:16 is).
    """
    tiles = _whole(total, m * m, "a tile of m x m")
    if comb(m + n, n) > STATE_LIMIT:
        raise ValueError(f"a transposable {n}:{m} tile is too large for an exact count; formula='paper' has no limit")
    return int(_regular(m, n) ** tiles)


def shuffled_block_printed(shape: tuple[int, int], block: tuple[int, int], blocks: int) -> int:
    """DSB eq. (2) as printed: ``R! / (S1!)^(R / S1) * C(RC, RC (1 - s) / S2)``.

    Row groups are taken as labelled and columns are chosen among ``RC`` places, not among the ``RC / S1`` columns of the row
    groups, so this is more than there are.
    """
    rows, cols = shape
    return _groupings(rows, block[0]) * comb(rows * cols, blocks * block[0])


def shuffled_block_bound(shape: tuple[int, int], block: tuple[int, int], blocks: int) -> int:
    """Unlabelled row groups times column sets whose sizes are multiples of ``n``; some masks are counted twice.

    ``R! / ((S1!)^G G!) * sum over b_1 + .. + b_G = B of prod C(C, S2 b_g)``.
    """
    (rows, cols), (m, n) = shape, block
    groups = rows // m
    chosen = [1] + [0] * blocks
    for _ in range(groups):
        chosen = [sum(chosen[b - own] * comb(cols, n * own) for own in range(min(b, cols // n) + 1)) for b in range(blocks + 1)]
    return _groupings(rows, m) // factorial(groups) * chosen[blocks]


def shuffled_block(shape: tuple[int, int], block: tuple[int, int], blocks: int) -> int:
    """The true count.

    A mask is one iff every distinct row stands in it a multiple of ``m`` times and has a multiple of ``n`` ones.
    Column sets are taken by size: ``held[g][b]`` counts the masks of ``g * m`` rows with ``b`` blocks made of the sizes so far.
    """
    (rows, cols), (m, n) = shape, block
    groups = rows // m
    held = [[1] + [0] * blocks] + [[0] * (blocks + 1) for _ in range(groups)]
    for size in range(cols // n + 1):
        ways = _in_multiples(comb(cols, size * n), m, groups)
        held = [
            [
                sum(comb(g * m, own * m) * ways[own] * held[g - own][b - own * size] for own in range(g + 1) if own * size <= b)
                for b in range(blocks + 1)
            ]
            for g in range(groups + 1)
        ]
    return held[groups][blocks]


def _in_multiples(kinds: int, m: int, groups: int) -> list[int]:
    """For ``g = 0..groups``: ways to give each of ``g * m`` rows one of ``kinds``, each kind a multiple of ``m`` times.

    The coefficients of ``(sum_k x^(km) / (km)!)^kinds``, by the recurrence for a power of a series, so that ``kinds`` may be
    astronomic.
    """
    ways = [1]
    for g in range(1, groups + 1):
        total = sum((k * (kinds + 1) - g) * comb(g * m, k * m) * ways[g - k] for k in range(1, g + 1))
        ways.append(total // g)
    return ways


@cache
def _regular_from(needs: tuple[int, ...], rows: int, n: int) -> int:
    """Ways to fill ``rows`` more rows with ``n`` ones each; ``needs[i]`` columns still want ``i`` ones."""
    if rows == 0:
        return 1
    if any(count and want > rows for want, count in enumerate(needs)):
        return 0
    total = 0
    for taken in _compositions(needs[1:], n):
        left = list(needs)
        for want, count in enumerate(taken, start=1):
            left[want] -= count
            left[want - 1] += count
        total += prod(map(comb, needs[1:], taken)) * _regular_from(tuple(left), rows - 1, n)
    return total


def _regular(m: int, n: int) -> int:
    """Binary ``m x m`` matrices with ``n`` ones in every row and column."""
    return _regular_from((*[0] * n, m), m, n) if n else 1


def _compositions(limits: tuple[int, ...], total: int) -> list[tuple[int, ...]]:
    """All tuples under ``limits`` that add up to ``total``."""
    if not limits:
        return [()] if total == 0 else []
    return [(first, *rest) for first in range(min(limits[0], total) + 1) for rest in _compositions(limits[1:], total - first)]


def _groupings(rows: int, m: int) -> int:
    """Ways to divide rows in labelled groups of ``m``."""
    return factorial(rows) // factorial(m) ** (rows // m)


def _whole(total: int, unit: int, what: str) -> int:
    if total % unit:
        raise ValueError(f"{total} weights are no whole number of times {what} ({unit} weights)")
    return total // unit


def masks(shape: tuple[int, int], active: int) -> np.ndarray:
    """bool ``[C(RC, active), R, C]``: every mask with so many ones.

    Raises:
        ValueError: there are more than ``BRUTE_LIMIT``.
    """
    size = shape[0] * shape[1]
    number = comb(size, active)
    if number > BRUTE_LIMIT:
        raise ValueError(
            f"formula='brute' would look at {number:,} masks of shape={shape} with {active} ones; it stops at {BRUTE_LIMIT:,}"
        )
    every = np.zeros((number, size), dtype=bool)
    chosen = np.fromiter((i for pick in combinations(range(size), active) for i in pick), np.int64, number * active)
    np.put_along_axis(every, chosen.reshape(number, active), True, axis=1)
    return every.reshape(number, *shape)
