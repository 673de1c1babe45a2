"""What a method makes of a training step: FLOPs averaged over the steps between topology updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openwork.analysis.flops import Flops
from openwork.budgets import is_number
from openwork.methods import DSB, GSE, Method


@dataclass(frozen=True)
class Costs:
    """What the formulas speak of, in FLOPs of one batch; what a formula does not speak of is NaN.

    Attributes:
        sparse: forward pass of the sparse model, ``f_S``.
        dense: forward pass of the dense model, ``f_D``.
        interval: steps from one topology update to the next, ``dT``.
        update: one topology update, beyond what an ordinary step computes.
        wide: forward pass at the larger density that the method needs.
        dense_share: share of the steps that are dense.
    """

    sparse: float
    dense: float
    interval: float = math.nan
    update: float = math.nan
    wide: float = math.nan
    dense_share: float = math.nan


def _dense_gradient_at_updates(c: Costs) -> float:
    """The update's weight gradient is dense (RigL, App. H)."""
    return (3 * c.sparse * c.interval + 2 * c.sparse + c.dense) / (c.interval + 1)


Formula = tuple[Callable[[Costs], float], tuple[str, ...]]

FORMULAS: dict[str, Formula] = {
    "dense": (lambda c: 3 * c.dense, ()),
    # Random growth costs no arithmetic.
    **dict.fromkeys(("static", "set", "deepr", "dsr", "mest"), (lambda c: 3 * c.sparse, ())),
    "mest_soft": (lambda c: 3 * c.wide, ("wide",)),
    "snfs": (lambda c: 2 * c.sparse + c.dense, ()),
    **dict.fromkeys(("rigl", "itop_rigl", "granet"), (_dense_gradient_at_updates, ("interval",))),
    "topkast": (lambda c: 2 * c.sparse + c.wide, ("wide",)),
    "cstraining": (lambda c: 2 * c.wide + c.dense, ("wide",)),
    **dict.fromkeys(("dsb", "gse"), (lambda c: 3 * c.sparse + c.update / c.interval, ("interval", "update"))),
    "acdc": (lambda c: 3 * (c.dense_share * c.dense + (1 - c.dense_share) * c.sparse), ("dense_share",)),
    "gmp": (lambda c: 3 * c.wide, ("wide",)),
    "srste": (lambda c: c.sparse + 2 * c.dense, ()),
    "srste_transposable": (lambda c: 2 * c.sparse + c.dense, ()),
}
"""Name of a method -> formula and the costs that it needs besides ``f_S`` and ``f_D``."""


def training_flops(
    method: Method | str,
    cost: Flops | tuple[float, float],
    *,
    interval: int | None = None,
    update: float | None = None,
    wide: float | None = None,
    dense_share: float | None = None,
) -> float:
    """FLOPs of the average training step while the topology moves, updates included.

    The same units and conventions as in :func:`flops`: a step is a forward pass and two more for the backward pass.  The
    formulas are those of the papers, for their own algorithms, whatever an implementation does.

    ======================================  =========================================
    dense                                   ``3 f_D``
    static, set, deepr, dsr, mest (EM)      ``3 f_S``
    mest_soft (EM&S), gmp                   ``3 wide``, the mean over the run
    snfs                                    ``2 f_S + f_D``
    rigl, itop_rigl, granet                 ``(3 f_S dT + 2 f_S + f_D) / (dT + 1)``
    topkast                                 ``2 f_S + wide``
    cstraining                              ``2 wide + f_D``
    dsb, gse                                ``3 f_S + update / dT``
    acdc                                    ``3 (share f_D + (1 - share) f_S)``
    srste, srste_transposable               ``f_S + 2 f_D``, ``2 f_S + f_D``
    ======================================  =========================================

    Args:
        method: an object or a name from this table; case and underscores do not matter.
        cost: what :func:`flops` found, or ``(f_S, f_D)``.
        interval: steps between topology updates; that of ``method`` where it is an object.
        update: FLOPs of one topology update, from :func:`dsb_update` or :func:`gse_update`; worked out where ``cost`` is a
            ``Flops`` and ``method`` a ``DSB`` or ``GSE``.
        wide: forward FLOPs at the larger density: EM&S's ``1 - s + p``, Top-KAST's backward set, GMP's and
            CSTraining's mean density.
        dense_share: share of AC/DC's steps that are dense.

    Returns:
        FLOPs; divide by ``3 f_D`` for the ratio to dense training.

    Raises:
        ValueError: the method is unknown, or what its formula needs is not given.
    """
    known = {_plain(name): name for name in FORMULAS}
    name = known.get(_plain(method if isinstance(method, str) else type(method).__name__))
    if name is None:
        raise ValueError(f"method={method!r} is unknown; known: {', '.join(FORMULAS)}")
    if isinstance(method, Method) and interval is None:
        interval = getattr(method, "interval", None)
    if name == "mest" and getattr(method, "mode", None) == "soft":
        name = "mest_soft"
    if isinstance(method, DSB):
        name = "rigl" if method.grow == "gradient" else name
        if update is None and isinstance(cost, Flops):
            update = dsb_update(cost, method.drop_fraction)
    if isinstance(method, GSE) and update is None and isinstance(cost, Flops):
        update = gse_update(cost, method.subset, norms=method.sampling != "uniform")
    sparse, dense = (cost.forward, cost.dense_forward) if isinstance(cost, Flops) else cost
    formula, needed = FORMULAS[name]
    given = {"interval": interval, "update": update, "wide": wide, "dense_share": dense_share}
    for argument in needed:
        _check(argument, given[argument], method)
    return float(formula(Costs(sparse, dense, **{key: value for key, value in given.items() if value is not None})))


def dsb_update(cost: Flops, drop_fraction: float) -> float:
    """DSB's growth (sec. 4): norms of ``x`` rows of the output gradient and ``y`` of the input, gradients of ``k`` candidates.

    The paper counts ``sum_l xn + yn + kn`` operations for ``n`` columns, each a multiply-accumulate's worth, so 2 FLOPs here;
    ``k`` is at most the share ``drop_fraction`` of the active weights, as in the first update.
    """
    operations = 0.0
    for layer in cost.layers:
        if layer.sparse:
            rows, cols = layer.shape[0], math.prod(layer.shape[1:])
            operations += layer.positions * (rows + cols + drop_fraction * layer.active)
    return 2 * operations


def gse_update(cost: Flops, gamma: float, *, norms: bool = False) -> float:
    """GSE's update: gradients at ``gamma |A|`` sampled positions, ``gamma f_S`` of the sparse layers.

    Args:
        cost: of the model.
        gamma: size of the sampled subset over the number of active weights.
        norms: GraBo and GraEst also sum up inputs and output gradients, ``n (x + y)`` operations; uniform sampling does not.
    """
    sampled = gamma * sum(layer.forward for layer in cost.layers if layer.sparse)
    return sampled + (dsb_update(cost, 0.0) if norms else 0.0)


def _check(argument: str, value: Any, method: object) -> None:
    """The costs that a formula needs are given and can be."""
    allowed = {
        "interval": (isinstance(value, int) and value >= 1, "a positive number of steps"),
        "update": (is_number(value) and value >= 0, "FLOPs of one topology update"),
        "wide": (is_number(value) and value > 0, "forward FLOPs at the larger density"),
        "dense_share": (is_number(value) and 0 <= value <= 1, "a number in [0, 1]"),
    }
    fits, what = allowed[argument]
    if not fits:
        raise ValueError(f"{argument}={value!r} must be {what} for method={method!r}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
