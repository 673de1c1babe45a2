"""The training scheme of complementary sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from openwork.methods.base import Layer
from openwork.methods.periodic import Periodic
from openwork.scores import Selection


class CSTraining(Periodic):
    """Sparsify step by step while all weights are trained, then train the sparse ones alone (CS, TMLR 2023), *reconstructed*.

    The paper's algorithm is not public; this follows what is said of it: scheduled sparsity, weight re-selection, and sparse
    fine-tuning in place of a dense pretraining.

    Until ``end`` every layer keeps a dense weight.  At each update it computes with those of greatest magnitude at the density
    of the moment, in the arrangement of its layout; gradients go straight through to all weights, so that one that was left out
    may come back (re-selection).  The density halves from 1 over ``1/2``, ``1/4`` and so on to the asked one in equal parts of
    the time until ``ramp * end``, within each along a cubic; layouts of one density are reached over sets of 2, 4, ... weights
    (``Complementary``) or groups that keep one less (``NM``).  At ``end`` the choice is made for the last time, and what was
    left out ceases to exist: weights, gradients and optimizer state.  Restart the learning rate there for the paper's two
    phases of equal length.

    Memory until ``end`` is that of dense weights, gradients and optimizer state, and the weight gradient is a dense product;
    the other two products of a step are sparse.  At density 1 layers compute densely.

    Args:
        interval: optimizer steps between re-selections.
        end: the last one: a step count, or a float, the share of ``total_steps``.  Default: half of them.
        total_steps: optimizer steps of the whole training; needed for a float ``end``.
        ramp: the share of the time until ``end`` in which the density falls.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    home: Literal["packed", "dense"] = "dense"

    def __init__(
        self,
        interval: int = 100,
        end: int | float | None = None,
        total_steps: int | None = None,
        ramp: float = 2 / 3,
    ) -> None:
        super().__init__(interval, end, total_steps, usual_end=0.5)
        if not (isinstance(ramp, float) and 0.0 < ramp <= 1.0):
            raise ValueError(f"ramp={ramp!r} must be a number in (0, 1]")
        self.ramp = ramp

    def due(self, step: int) -> bool:
        """Every ``interval`` steps, and at ``end`` for the last time."""
        return super().due(step) or step == self.last_step

    def settled(self, step: int) -> bool:
        """From ``end`` on."""
        return step >= self.last_step

    def initial_density(self, density: float) -> float:
        """Dense."""
        return 1.0

    def density_at(self, step: int, density: float) -> float:
        """The density at ``step`` of a layer that ends at ``density``."""
        time = step / (self.ramp * self.last_step)
        if time >= 1.0:
            return density
        stages = max(1, math.ceil(-math.log2(density) - 1e-9))
        stage = math.floor(time * stages)
        first, last = 0.5**stage, max(density, 0.5 ** (stage + 1))
        return last + (first - last) * (1 - (time * stages - stage)) ** 3

    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Selection]:
        """The density of every layer at this moment."""
        return {name: Selection(self.density_at(step, layer.density)) for name, layer in layers.items()}
