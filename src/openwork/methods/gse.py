"""Guided stochastic exploration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from openwork.methods.base import Layer
from openwork.methods.draws import draw
from openwork.methods.periodic import Periodic
from openwork.schedules import SCHEDULES, drop_fraction
from openwork.scores import Evidence, Proposal, Scores, highest, lowest

Sampling = Literal["uniform", "grabo", "graest"]
Scope = Literal["layer", "global"]

_NEEDS = {
    "uniform": frozenset({Evidence.GRAD_AT}),
    "grabo": frozenset({Evidence.GRAD_AT, Evidence.L1_NORMS}),
    "graest": frozenset({Evidence.GRAD_AT, Evidence.SIGNED_SUMS}),
}


class GSE(Periodic):
    """Grow where the gradient is largest in a random subset of the inactive weights (Heddes et al. 2023, Alg. 2).

    At an update ``ceil(subset * |A|)`` pairs of an input and an output are drawn with replacement from two independent
    distributions; what is drawn twice or active already is left out, and only for the rest are gradients computed, exactly.
    The ``k`` largest of these grow and the ``k`` smallest active magnitudes go, ``k`` being the drop fraction of the active
    ones or all that was drawn, if that is less.  An update costs as much as the gradient of the active weights: nothing of it
    grows with the size of the dense matrix.  It takes the place of the optimizer's step.

    On layouts of larger atoms a drawn pair stands for the atom that holds it.

    Args:
        sampling: ``"uniform"`` (recommended by the paper); ``"grabo"``: each side by the l1 norm of its row in the batch, whose
            products bound the gradient; ``"graest"``: each side by the magnitude of its sum with random signs, the same for
            both sides, whose product is the gradient in expectation (the magnitudes that are sampled from are not).
        subset: gamma, pairs drawn for each active weight.
        scope: ``"layer"``, or ``"global"``, where the largest gradients and smallest magnitudes of all layers are taken
            together (the public code's choice): layers then change their density.
        interval: optimizer steps between topology updates.
        end: no update from here on: a step count, or a float, the share of ``total_steps``.  Default: 0.6 of ``total_steps``.
        total_steps: optimizer steps of the whole training; needed for a float ``end``.
        drop_fraction: the share of active units dropped at first (alpha).
        schedule: how it falls until ``end``: cosine, constant, linear or cubic.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    replaces_step = True

    def __init__(
        self,
        sampling: Sampling = "uniform",
        subset: float = 1.0,
        scope: Scope = "layer",
        interval: int = 1000,
        end: int | float | None = None,
        total_steps: int | None = None,
        drop_fraction: float = 0.2,
        schedule: str = "cosine",
    ) -> None:
        super().__init__(interval, end, total_steps, usual_end=120 / 200)
        if sampling not in _NEEDS:
            raise ValueError(f"sampling={sampling!r} is unknown; known: {', '.join(_NEEDS)}")
        if isinstance(subset, bool) or not isinstance(subset, int | float) or not 0.0 < subset < math.inf:
            raise ValueError(f"subset={subset!r} must be a positive number")
        if scope not in ("layer", "global"):
            raise ValueError(f"scope={scope!r} is unknown; known: layer, global")
        if not (isinstance(drop_fraction, float) and 0.0 < drop_fraction < 1.0):
            raise ValueError(f"drop_fraction={drop_fraction!r} must be a number strictly between 0 and 1")
        if not (isinstance(schedule, str) and schedule in SCHEDULES):
            raise ValueError(f"schedule={schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        self.sampling, self.subset, self.scope = sampling, subset, scope
        self.drop_fraction, self.schedule = drop_fraction, schedule
        self.needs = _NEEDS[sampling]

    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal]:
        """Sample every layer, then swap within each or among all."""
        share = drop_fraction(step, end=self.last_step, initial=self.drop_fraction, schedule=self.schedule)
        if self.scope == "layer":
            # By itself a full layer has nothing to exchange.
            layers = {name: layer for name, layer in layers.items() if layer.density < 1}
        keep = {name: layer.magnitudes() for name, layer in layers.items()}
        grow = {name: layer.gradients_at(self._pairs(layer, len(keep[name]))) for name, layer in layers.items()}
        if self.scope == "global":
            return _swap_among_all(layers, keep, grow, share)
        proposals = {}
        for name, layer in layers.items():
            k = min(math.ceil(share * len(keep[name])), len(grow[name].value))
            proposals[name] = Proposal(keep[name], k, grow[name], layer.count)
        return proposals

    def _pairs(self, layer: Layer, n_active: int) -> Tensor:
        """Flat positions, drawn with replacement."""
        n = math.ceil(self.subset * n_active)
        if self.sampling == "uniform":
            # A position is a pair of two independent uniform draws.
            return draw(layer.shape[0] * layer.shape[1], None, n, layer.generator)
        sides = layer.norms()
        rows, cols = (draw(size, weight, n, layer.generator) for size, weight in zip(layer.shape, sides, strict=True))
        return rows.mul_(layer.shape[1]).add_(cols)


def _swap_among_all(
    layers: Mapping[str, Layer], keep: Mapping[str, Tensor], grow: Mapping[str, Scores], share: float
) -> dict[str, Proposal]:
    """The largest gradients of all layers for the smallest magnitudes of all, as many.

    Raises:
        ValueError: a layer's layout cannot hold one unit more or less.
    """
    fixed = [name for name, layer in layers.items() if not layer.resizable]
    if fixed:
        raise ValueError(f"scope='global' changes the density of layers, which the layout of {', '.join(fixed)} does not allow")
    names = list(layers)
    magnitude = np.concatenate([keep[name].double().numpy() for name in names])
    gradient = np.concatenate([grow[name].value.double().numpy() for name in names])
    k = min(math.ceil(share * len(magnitude)), len(gradient))
    goes = np.zeros(len(magnitude), dtype=bool)
    goes[lowest(magnitude, k)] = True
    comes = np.zeros(len(gradient), dtype=bool)
    comes[highest(gradient, k)] = True
    proposals, first, start = {}, 0, 0
    for name in names:
        n_drop = int(goes[first : first + len(keep[name])].sum())
        n_grow = int(comes[start : start + len(grow[name].value)].sum())
        first, start = first + len(keep[name]), start + len(grow[name].value)
        proposals[name] = Proposal(keep[name], n_drop, grow[name], layers[name].count - n_drop + n_grow)
    return proposals
