"""How a global sparsity is shared among layers: shapes in, densities out, no state.

``N_l`` is the number of weights of layer ``l``.  Every budget returns one density per layer such that the densities, weighted
by ``N_l``, add up to the asked density of all layers together, those that a user has fixed included: to leave a layer out of
the sum, exclude it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from numbers import Real

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
    return _shared(shapes, sparsity, fixed, lambda shape: 1.0)


def erdos_renyi(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> Densities:
    """Density proportional to ``(n_in + n_out) / (n_in * n_out)``, capped at 1 (SET; ER of RigL)."""
    return _shared(shapes, sparsity, fixed, lambda shape: (shape[0] + shape[1]) / (shape[0] * shape[1]))


def erk(shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None, power: float = 1.0) -> Densities:
    """Erdos-Renyi-Kernel: density proportional to (sum of dims) / (product of dims), capped at 1 (RigL, sec. 3).

    ``power`` is the exponent on that ratio: 1 is ERK, 0 is uniform.
    """
    return _shared(shapes, sparsity, fixed, lambda shape: (sum(shape) / math.prod(shape)) ** power)


BUDGETS: dict[str, Budget] = {"uniform": uniform, "erdos_renyi": erdos_renyi, "erk": erk}


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


def _shared(
    shapes: Shapes, sparsity: float, fixed: Mapping[str, float] | None, ratio: Callable[[tuple[int, ...]], float]
) -> Densities:
    """The capped iteration: layers that would exceed density 1 become dense and the rest share what is left."""
    _check(shapes, sparsity, fixed)
    densities = dict(fixed or {})
    free = {name: math.prod(shape) for name, shape in shapes.items() if name not in densities}
    asked = sum(active_weights(math.prod(shape), 1.0 - sparsity) for shape in shapes.values())
    left = asked - sum(densities[name] * math.prod(shapes[name]) for name in densities)
    raw = {name: ratio(shapes[name]) for name in free}
    while free:
        if left <= 0:
            raise BudgetError(_unmet(sparsity, densities, "leave nothing for the other layers"))
        scale = left / sum(raw[name] * size for name, size in free.items())
        top = max(raw[name] for name in free)
        if scale * top <= 1.0 + 1e-12:
            densities.update({name: min(1.0, scale * raw[name]) for name in free})
            break
        for name in [name for name in free if raw[name] == top]:
            densities[name] = 1.0
            left -= free.pop(name)
    else:
        # Densities that meet the sparsity exactly need not meet its count, which every layer rounds up.
        rounded = asked - (1.0 - sparsity) * sum(math.prod(shape) for shape in shapes.values())
        if min(abs(left), abs(left - rounded)) > 0.5:
            raise BudgetError(_unmet(sparsity, densities, "do not add up to it and no free layer is left"))
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
