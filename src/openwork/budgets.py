"""How a global sparsity is shared among layers: shapes in, densities out, no state.

``N_l`` is the number of weights of layer ``l``.  Every budget returns one density per layer such that the densities, weighted
by ``N_l``, add up to the asked density of all layers together, those that a user has fixed included: to leave a layer out of
the sum, exclude it.  ``uniform_dense_first`` alone leaves its first layer out, as the papers do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import Literal

Shapes = Mapping[str, tuple[int, ...]]
Densities = dict[str, float]
Budget = Callable[..., Densities]


class BudgetError(ValueError):
    """The asked sparsity cannot be met by the asked distribution."""


def active_weights(total: int, density: float) -> int:
    """``N - floor((1 - density) * N)``, the canonical exact count (RigL's rounding)."""
    # The guard keeps 0.9 * 1000 = 900.0000000000001 and 899.9999999 at the 900 that was meant.
    return total - math.floor((1.0 - density) * total + 1e-6)


def uniform(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> Densities:
    """The same density everywhere, except where ``fixed`` says otherwise.

    Args:
        shapes: layer name -> shape of its dense weight.
        sparsity: share of zeros over all layers in ``shapes``, in (0, 1).
        fixed: layer name -> density in [0, 1] that is not to be touched; the others make up for it.

    Raises:
        BudgetError: the fixed layers leave too much or too little for the others.
    """
    if not fixed:
        # Shared out, the rounding of every layer's count would be spread over all of them.
        _check(shapes, sparsity, fixed)
        return dict.fromkeys(shapes, 1.0 - sparsity)
    return _shared(shapes, sparsity, fixed, lambda name, shape: 1.0)


def uniform_dense_first(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> Densities:
    """The first layer dense and the others alike: "uniform" as RigL (sec. 3) and MEST (sec. 5) mean it.

    ``sparsity`` is that of all layers but the first, whose few weights the papers do not count, so that over all of them
    there are a little fewer zeros.  The first is the one that comes first in ``shapes``, which is the model's own order; it
    becomes a sparse module that holds every weight.  To keep the dense module, and name the layer yourself, exclude it and ask
    for ``uniform``: the densities of the others are the same.

    Raises:
        BudgetError: there is no other layer, the first is fixed at another density, by hand or because its layout has only one,
            or the fixed layers leave too much or too little for the others.
    """
    _check(shapes, sparsity, fixed)
    first, *others = shapes
    held = dict(fixed or {})
    if held.pop(first, 1.0) != 1.0:
        raise BudgetError(f"the first layer, {first!r}, would be dense but is fixed at {(fixed or {})[first]:g}; exclude it")
    if not others:
        raise BudgetError(f"there is no layer besides the first, {first!r}, to share a sparsity among")
    return {first: 1.0, **uniform({name: shapes[name] for name in others}, sparsity, fixed=held)}


def erdos_renyi(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> Densities:
    """Density proportional to ``(n_in + n_out) / (n_in * n_out)``, capped at 1 (SET; ER of RigL)."""
    return _shared(shapes, sparsity, fixed, lambda name, shape: (shape[0] + shape[1]) / (shape[0] * shape[1]))


def erk(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None, power: float = 1.0) -> Densities:
    """Erdos-Renyi-Kernel: density proportional to (sum of dims) / (product of dims), capped at 1 (RigL, sec. 3).

    ``power`` is the exponent on that ratio: 1 is ERK, 0 is uniform.
    """
    return _shared(shapes, sparsity, fixed, lambda name, shape: (sum(shape) / math.prod(shape)) ** power)


def proportional(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None, least: float = 0.5) -> Densities:
    """*Sparsity* proportional to the size of a layer (MEST, App. K: larger layers have more to spare).

    The largest layers would soon have no weight left, and the paper does not say where it stops: no layer is made sparser
    than ``least`` of the asked density, and the others share the zeros that remain, in proportion again.  Small layers come
    out nearly dense.

    Args:
        shapes: layer name -> shape of its dense weight.
        sparsity: share of zeros over all layers in ``shapes``, in (0, 1).
        fixed: layer name -> density in [0, 1] that is not to be touched; the others make up for it.
        least: the lowest density of a layer, as a share of the asked one, in (0, 1]; 1 is uniform.

    Raises:
        BudgetError: ``least`` is out of range, or the fixed layers leave too much or too little for the others.
    """
    return _shared(shapes, sparsity, fixed, lambda name, shape: math.prod(shape), least=_checked_least(least))


class FixedRatio:
    """Sparsities, or densities, in a fixed ratio between kinds of layers (MEST, App. K).

    ``FixedRatio({"3x3": 1.12, "1x1": 1.0})`` makes the sparsity of 3 x 3 convolutions 1.12 times that of 1 x 1 ones, as are the
    paper's 95 % and 85 %, and scales both until their sum is the asked one.  Where the ratio cannot be held, it gives: a
    sparsity stops short of leaving a layer next to nothing (``least``), a density stops at 1, and the others make up for it.

    Args:
        ratios: key -> number above 0.  A key is a kernel size such as ``"3x3"``, ``"conv"`` or ``"linear"`` for all of a kind,
            or a layer's name or a glob of names; the first that fits a layer decides.  Layers that none fits count as 1.
        of: what stands in that ratio, ``"sparsity"`` or ``"density"``.
        least: with ``of="sparsity"``, the lowest density of a layer, as a share of the asked one, in (0, 1].

    Raises:
        TypeError: ``ratios`` is no mapping of strings to numbers.
        ValueError: it is empty or has a number that is not above 0, ``of`` is unknown or ``least`` out of range.
    """

    def __init__(
        self, ratios: Mapping[str, float], of: Literal["sparsity", "density"] = "sparsity", least: float = 0.1
    ) -> None:
        if not isinstance(ratios, Mapping) or not all(isinstance(key, str) and is_number(r) for key, r in ratios.items()):
            raise TypeError(f"ratios={ratios!r} must map kernel sizes, kinds or names of layers to numbers")
        if not ratios or not all(0.0 < ratio < math.inf for ratio in ratios.values()):
            raise ValueError(f"ratios={ratios!r} must have numbers above 0 in it")
        if of not in ("sparsity", "density"):
            raise ValueError(f"of={of!r} is unknown; known: sparsity, density")
        self.ratios, self.of, self.least = dict(ratios), of, _checked_least(least)

    def __call__(self, shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> Densities:
        """Densities by layer name; the arguments are those of ``uniform``.

        Raises:
            BudgetError: a key fits no layer, or the fixed layers leave too much or too little for the others.
        """
        _check(shapes, sparsity, fixed)
        for key in self.ratios:
            if not any(names_layer(key, name, shape) for name, shape in shapes.items()):
                raise BudgetError(f"ratios names {key!r}, which fits no layer; layers: {', '.join(shapes)}")
        return _shared(shapes, sparsity, fixed, self._ratio, least=self.least if self.of == "sparsity" else None)

    def _ratio(self, name: str, shape: tuple[int, ...]) -> float:
        return next((float(ratio) for key, ratio in self.ratios.items() if names_layer(key, name, shape)), 1.0)

    def __repr__(self) -> str:
        return f"FixedRatio({self.ratios!r}, of={self.of!r}, least={self.least:g})"


BUDGETS: dict[str, Budget] = {
    "uniform": uniform,
    "erdos_renyi": erdos_renyi,
    "erk": erk,
    "proportional": proportional,
    "uniform_dense_first": uniform_dense_first,
}
"""Those that a name is enough for."""


def densities_of(
    shapes: Shapes,
    sparsity: float,
    budget: str | Budget | Mapping[str, float],
    densities: Mapping[str, float] | None,
    only: Mapping[str, float] | None = None,
) -> Densities:
    """What a user's ``budget`` and ``densities`` come to, layer by layer.

    Args:
        shapes: layer name -> shape of its dense weight.
        sparsity: share of zeros over all layers.
        budget: a name, a function ``(shapes, sparsity, fixed=...) -> densities``, or densities by layer name or glob.
        densities: those fixed by the user, by name or glob; the budget sees to the others.
        only: layer name -> density, where the layout has just one.

    Raises:
        ValueError: an unknown name, a glob that matches nothing, or a sparsity that cannot be met.
        TypeError: ``budget`` is none of the three, or a density is no number.
    """
    fixed = {**(only or {}), **_by_glob("densities", densities or {}, list(shapes))}
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise ValueError(f"budget={budget!r} is unknown; known: {', '.join(BUDGETS)}")
        return BUDGETS[budget](shapes, sparsity, fixed=fixed)
    if isinstance(budget, Mapping):
        shares = {**_by_glob("budget", budget, list(shapes)), **fixed}
        return BUDGETS["uniform"](shapes, sparsity, fixed=shares)
    if not callable(budget):
        raise TypeError(f"budget={budget!r} must be one of {', '.join(BUDGETS)}, a function, or densities by name or glob")
    shares = dict(budget(shapes, sparsity, fixed=fixed))
    wrong = [name for name in shapes if not 0.0 <= shares.get(name, -1.0) <= 1.0]
    if wrong:
        raise ValueError(f"budget={budget!r} gave no density in [0, 1] for {', '.join(wrong)}")
    return shares


def is_number(value: object) -> bool:
    """A real number that is no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def names_layer(key: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a key, a kernel size such as ``"3x3"``, ``"conv"``, ``"linear"``, a name or a glob, means this layer."""
    if re.fullmatch(r"\d+x\d+", key):
        return "x".join(map(str, shape[2:])) == key
    if key in ("conv", "linear"):
        return (key == "conv") == (len(shape) > 2)
    return fnmatchcase(name, key)


def _checked_least(least: float) -> float:
    if not is_number(least) or not 0.0 < least <= 1.0:
        raise BudgetError(f"least={least!r} must be a number in (0, 1]")
    return float(least)


def _shared(
    shapes: Shapes,
    sparsity: float,
    fixed: Mapping[str, float] | None,
    ratio: Callable[[str, tuple[int, ...]], float],
    *,
    least: float | None = None,
) -> Densities:
    """The capped iteration: layers that would exceed density 1 become dense and the rest share what is left.

    With ``least`` the zeros are shared in this ratio, not the weights, and what is capped is a layer's sparsity, where its
    density would fall below ``least`` of the asked one.
    """
    _check(shapes, sparsity, fixed)
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    asked = sum(active_weights(n, 1.0 - sparsity) for n in size.values())
    densities = dict(fixed or {})
    free = {name: n for name, n in size.items() if name not in densities}
    left = asked - sum(density * size[name] for name, density in densities.items())
    cap = 1.0
    if least is not None:
        cap, left = 1.0 - least * (1.0 - sparsity), sum(free.values()) - left
    raw = {name: ratio(name, shapes[name]) for name in free}
    shares: Densities = {}
    while free:
        if left <= 0 if least is None else left < -0.5:
            why = "leave nothing for the other layers" if least is None else "leave more weights than the other layers have"
            raise BudgetError(_unmet(sparsity, densities, why))
        scale = max(0.0, left) / sum(raw[name] * n for name, n in free.items())
        top = max(raw[name] for name in free)
        if scale * top <= cap + 1e-12:
            shares.update({name: min(cap, scale * raw[name]) for name in free})
            break
        for name in [name for name in free if raw[name] == top]:
            shares[name] = cap
            left -= cap * free.pop(name)
    else:
        # Densities that meet the sparsity exactly need not meet its count, which every layer rounds up.
        rounded = asked - (1.0 - sparsity) * sum(size.values())
        if min(abs(left), abs(left - rounded if least is None else left + rounded)) > 0.5:
            raise BudgetError(_unmet(sparsity, {**densities, **shares}, "do not add up to it and no free layer is left"))
    densities.update(shares if least is None else {name: 1.0 - share for name, share in shares.items()})
    return {name: densities[name] for name in shapes}


def _unmet(sparsity: float, densities: Mapping[str, float], why: str) -> str:
    held = ", ".join(f"{name}={density:g}" for name, density in densities.items())
    return f"sparsity={sparsity} cannot be met: the fixed or dense layers ({held}) {why}"


def _check(shapes: Shapes, sparsity: float, fixed: Mapping[str, float] | None) -> None:
    if not shapes:
        raise BudgetError("there is no layer to share a sparsity among")
    if not 0.0 < sparsity < 1.0:
        raise BudgetError(f"sparsity={sparsity!r} must lie strictly between 0 and 1")
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise BudgetError(f"layer {name!r} has shape {tuple(shape)}; a weight has at least two positive dimensions")
    for name, density in (fixed or {}).items():
        if name not in shapes:
            raise BudgetError(f"fixed names {name!r}, which is no layer; layers: {', '.join(shapes)}")
        if not 0.0 <= density <= 1.0:
            raise BudgetError(f"fixed density {density!r} of {name!r} must lie in [0, 1]")


def _by_glob(argument: str, given: Mapping[str, float], names: list[str]) -> Densities:
    """Densities by layer name, from names or globs; later entries win."""
    found: Densities = {}
    for glob, density in given.items():
        if not is_number(density):
            raise TypeError(f"{argument} gives {density!r} to {glob!r}; a density is a number in [0, 1]")
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            raise ValueError(f"{argument} names {glob!r}, which matches no sparse layer; layers: {', '.join(names)}")
        found.update(dict.fromkeys(matched, float(density)))
    return found
