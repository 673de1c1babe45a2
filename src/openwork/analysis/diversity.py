"""Mask diversity: how many masks a layout can choose from (Hubara et al. 2021; DSB, sec. 5)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import comb, prod
from typing import Any, Literal, get_args

import numpy as np
import torch

from openwork import layouts as layouts_package
from openwork.analysis import counting
from openwork.budgets import active_weights, is_number
from openwork.layouts import LayoutError, LayoutRule
from openwork.layouts.base import Dims, matrix
from openwork.names import resolve
from openwork.pattern import Pattern

Formula = Literal["paper", "bound", "exact", "brute"]


def mask_diversity(layout: LayoutRule | str, shape: Dims, sparsity: float, formula: Formula = "paper") -> int:
    """The number of distinct masks of a layout at a sparsity; where it is great, the layout constrains little.

    For most layouts all formulas agree.  They differ where the papers count some masks more than once or count what is no
    mask: transposable N:M and the shuffled layouts.  DSB's Table 1 and the claims beside it rest on ``"paper"``; with
    ``"exact"`` a shuffled block of 8 x 8 with ``S = 4`` has fewer masks than 1:2 sparsity, not more.

    Args:
        layout: an object or a string such as ``"shuffled_block(2, 2)"``.
        shape: of the dense weight, ``(R, C)`` or ``(R, Cin, kh, kw)``; whole units must divide it.
        sparsity: share of zeros, in (0, 1); active weights are rounded up to whole units as in ``sparsify``.  N:M and
            complementary layouts have one sparsity only.
        formula: ``"paper"``, as printed (DSB eq. (2), Hubara et al.'s transposable formula); ``"bound"``, an upper bound
            that holds; ``"exact"``, the true number; ``"brute"``, the true number by looking at every mask of a small matrix.

    Returns:
        An exact integer; ``math.log10`` takes it however long it is.

    Raises:
        ValueError: an argument is out of range, ``shape`` does not divide, the layout cannot have this sparsity or is not
            covered, the matrix is too large for ``"brute"``.
        TypeError: ``layout`` is neither a layout nor a string.

    Example:
        >>> mask_diversity("shuffled_block(2, 2)", (4, 4), 0.5), mask_diversity("shuffled_block(2, 2)", (4, 4), 0.5, "brute")
        (10920, 102)
    """
    layout = resolve("layout", layout, LayoutRule, layouts_package)  # type: ignore[type-abstract]
    if formula not in get_args(Formula):
        raise ValueError(f"formula={formula!r} is unknown; known: {', '.join(get_args(Formula))}")
    if len(shape) < 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"shape={shape!r} must have at least two positive dimensions")
    if not is_number(sparsity) or not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r} must be a number strictly between 0 and 1")
    family = FAMILIES.get(type(layout).__name__)
    if family is None:
        raise ValueError(f"layout={layout!r} is not covered; covered: {', '.join(FAMILIES)}")
    return family(layout, shape, sparsity, formula)


def _tiles(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """``C(T / B, (1 - s) T / B)``: aligned tiles, each whole or empty."""
    return _of_tiles(layout.block, shape, sparsity, formula)


def _of_tiles(block: tuple[int, int], shape: Dims, sparsity: float, formula: Formula) -> int:
    (rows, cols), (m, n) = _divided(shape, block), block
    count = _units(rows * cols, sparsity, m * n)
    if formula != "brute":
        return comb(rows * cols // (m * n), count)
    tiles = counting.masks((rows, cols), count * m * n).reshape(-1, rows // m, m, cols // n, n)
    return int((tiles.any((2, 4)) == tiles.all((2, 4))).all((1, 2)).sum())


def _vectors(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """Over the row groups that a layer has; with balanced groups ``C(C, k) ^ (R / v)``, ``k`` columns in each."""
    if layout.balance == "layer":
        return _tiles(layout, shape, sparsity, formula)
    rows, cols = _divided(shape, layout.block)
    groups = rows // layout.v
    kept = layout.fit(shape, 1.0 - sparsity) // groups
    if formula != "brute":
        return comb(cols, kept) ** groups
    every = counting.masks((rows, cols), kept * rows).reshape(-1, groups, layout.v, cols)
    whole = (every.any(2) == every.all(2)).all((1, 2))
    return int((whole & (every.all(2).sum(2) == kept).all(1)).sum())


def _filters(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    return _of_tiles((1, matrix(shape)[1]), shape, sparsity, formula)


def _channels(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    rows, cols = matrix(shape)
    return _of_tiles((rows, cols // shape[1]), shape, sparsity, formula)


def _shuffled(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """Any rows in groups of ``m``; in each group any columns, a multiple of ``n`` of them."""
    m, n = layout.for_layer("", shape).block
    size = _divided(shape, (m, n))
    count = _units(size[0] * size[1], sparsity, m * n)
    if formula != "brute":
        count_of: dict[str, Callable[..., int]] = {
            "paper": counting.shuffled_block_printed,
            "bound": counting.shuffled_block_bound,
            "exact": counting.shuffled_block,
        }
        return count_of[formula](size, (m, n), count)
    every = counting.masks(size, count * m * n)
    # Rows can be grouped iff each row has a multiple of m equals, itself included.
    equals = np.array([(mask[:, None] == mask[None]).all(2).sum(1) for mask in every])
    return int(((equals % m == 0) & (every.sum(2) % n == 0)).all(1).sum())


def _n_of_m(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """``n`` kept of every ``m`` consecutive input channels."""
    _only(layout, sparsity, layout.n / layout.m)
    if formula == "brute":
        return _brute_sets(shape, "in", layout.m, 1, layout.n)
    return counting.n_of_m(_lined(shape, "in", layout.m), layout.n, layout.m)


def _transposable(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """``n`` kept in every row and column of every ``m x m`` tile."""
    n, m = layout.n, layout.m
    rows, cols = _divided(shape, (m, m))
    _only(layout, sparsity, n / m)
    if formula == "paper":
        return counting.transposable_hubara(rows * cols, n, m)
    if formula != "brute":
        return counting.transposable(rows * cols, n, m)
    tiles = counting.masks((rows, cols), rows * cols * n // m).reshape(-1, rows // m, m, cols // m, m)
    return int(((tiles.sum(2) == n).all((1, 2, 3)) & (tiles.sum(4) == n).all((1, 2, 3))).sum())


def _complementary(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """One kept of every ``k`` that lie ``distance`` apart."""
    _only(layout, sparsity, 1 / layout.k)
    if formula == "brute":
        return _brute_sets(shape, layout.axis, layout.k, layout.distance, 1)
    return counting.complementary(_lined(shape, layout.axis, layout.k * layout.distance), layout.k)


def _lined(shape: Dims, axis: str, length: int) -> int:
    """All weights of a shape whose axis holds whole segments."""
    size = shape[1] if axis == "in" else shape[0]
    if size % length:
        raise ValueError(f"shape={shape!r} has {size} {axis}put channels, which do not divide by {length}")
    return prod(shape)


def _brute_sets(shape: Dims, axis: str, size: int, distance: int, kept: int) -> int:
    """Masks of which every set of ``size`` channels, ``distance`` apart, keeps ``kept``."""
    total = _lined(shape, axis, size * distance)
    every = counting.masks(matrix(shape), total * kept // size)
    inner = prod(shape[2:]) if axis == "in" else matrix(shape)[1]
    sets = every.reshape(len(every), -1, size, distance, inner)
    return int((sets.sum(2) == kept).all((1, 2, 3)).sum())


def _kernel_pattern(layout: Any, shape: Dims, sparsity: float, formula: Formula) -> int:
    """As many kernels in every filter, each with one of eight patterns."""
    place = layout.for_layer("", shape)
    count = place.fit(shape, 1.0 - sparsity)
    if formula != "brute":
        return counting.kernel_pattern(shape[0], shape[1], count // shape[0], 8)
    every = counting.masks(matrix(shape), place.weights_of(matrix(shape), count)).reshape(-1, *shape[:2], 9)
    kernels = every @ (1 << np.arange(9))
    filled = np.isin(kernels, _patterns(layout))
    return int((((kernels == 0) | filled).all((1, 2)) & (filled.sum(2) == count // shape[0]).all(1)).sum())


def _patterns(layout: LayoutRule) -> list[int]:
    """The patterns of one kernel, tap ``i`` at bit ``i``: those masks that the layout itself accepts."""
    place, found = layout.for_layer("", (1, 1, 3, 3)), []
    for mask in counting.masks((1, 9), 4):
        with suppress(LayoutError):
            place.check(Pattern.from_mask(torch.from_numpy(mask)), 1)
            found.append(int(mask[0] @ (1 << np.arange(9))))
    return found


Family = Callable[[Any, Dims, float, Formula], int]

FAMILIES: dict[str, Family] = {
    "Unstructured": _tiles,
    "Block": _tiles,
    "OutVector": _vectors,
    "Filter": _filters,
    "Channel": _channels,
    "ShuffledBlock": _shuffled,
    "ShuffledVector": _shuffled,
    "NM": _n_of_m,
    "TransposableNM": _transposable,
    "Complementary": _complementary,
    "KernelPattern": _kernel_pattern,
}
"""Class of a layout -> how its masks are counted.  A new layout is one line here."""


def _divided(shape: Dims, unit: tuple[int, int]) -> tuple[int, int]:
    """``(R, C)`` of a shape that holds whole units."""
    rows, cols = matrix(shape)
    if rows % unit[0] or cols % unit[1]:
        raise ValueError(f"shape={shape!r}, a {rows} x {cols} matrix, does not divide by {unit[0]} x {unit[1]}")
    return rows, cols


def _units(total: int, sparsity: float, size: int) -> int:
    """Units that hold the canonical number of active weights."""
    return -(-active_weights(total, 1.0 - sparsity) // size)


def _only(layout: LayoutRule, sparsity: float, density: float) -> None:
    if abs(1.0 - sparsity - density) > 1e-6:
        raise ValueError(f"sparsity={sparsity!r} is none of {layout!r}, whose only one is {1.0 - density:g}")
