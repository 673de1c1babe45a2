"""What a method is: a judgement of what is worth keeping, in scores, blind to layouts and kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from openwork.scores import Evidence, Proposal, Scores, Selection, arguments


class Layer(Protocol):
    """One sparse layer at a topology update, as a method sees it."""

    @property
    def count(self) -> int:
        """Units that the layer holds, to be handed on in the proposal (or changed there)."""

    @property
    def density(self) -> float:
        """Of the asked sparsity; the layer may hold more or fewer units at present."""

    @property
    def resizable(self) -> bool:
        """Whether ``count`` counts atoms and may change by any number of them."""

    def units(self, density: float) -> int:
        """The units that make up ``density``, as the layout counts."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a unit of the layer's layout."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)`` of the weight."""

    @property
    def generator(self) -> torch.Generator:
        """The run's random state."""

    def magnitudes(self) -> Tensor:
        """The mean ``|w|`` of every active atom."""

    def importances(self, gradient_weight: float) -> Tensor:
        """The mean ``|w| + |gradient_weight * dL/dw|`` of every active atom.

        The gradient is that of the step just done, or the mean over the method's ``gradient_steps``.
        """

    def weights(self) -> Tensor:
        """``|w|`` of every active weight, in storage order."""

    def positions(self) -> Tensor:
        """int64, the flat position ``row * C + column`` of every active weight, in storage order."""

    def sample_inactive(self, n: int) -> Scores:
        """``n`` random inactive atoms."""

    def largest_gradients(self, keep: Tensor, n: int, *, single: bool = False) -> Scores:
        """The ``n`` atoms of largest mean ``|dL/dw|`` among those inactive and the ``n`` of lowest ``keep``.

        With ``single``, weights take the place of atoms.  Needs ``Evidence.DENSE_GRAD``.
        """

    def norms(self) -> tuple[Tensor, Tensor]:
        """``(|dOut| [R], |In| [C])``, norms over batch and positions.  Needs ``Evidence.L1_NORMS`` or ``L2_NORMS``.

        With ``Evidence.SIGNED_SUMS``: the sums with random signs.
        """

    def gradients_at(self, positions: Tensor) -> Scores:
        """The mean ``|dL/dw|`` of the inactive atoms that hold these flat positions, nothing else.

        Needs ``Evidence.GRAD_AT``.
        """


class Method(ABC):
    """Decides when the topology changes and what it should become.

    Attributes:
        needs: what armed layers collect in the backward pass of a topology step.
        replaces_step: whether a topology update takes the place of the optimizer's step (its gradients are then set to None) or
            follows it.
        gradient_steps: over how many optimizer steps, that of the update the last, ``importances`` takes the gradient's mean.
        total_steps: optimizer steps of the whole training, where known.
        home: ``"packed"``: only active weights are trained; ``"dense"``: all are, the layers compute with copies of the active
            ones, and updates are ``Selection``s.  It costs the memory of dense weights, gradients and optimizer state.
    """

    needs: frozenset[Evidence] = frozenset()
    replaces_step: bool = False
    gradient_steps: int = 1
    home: Literal["packed", "dense"] = "packed"
    total_steps: int | None = None

    def initial_density(self, density: float) -> float:
        """The density that a layer of target ``density`` begins with."""
        return density

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether the topology changes at optimizer step ``step``, counted from 0."""

    def settled(self, step: int) -> bool:
        """Whether from the update at ``step`` on only active weights are trained, though ``home`` is ``"dense"``."""
        return False

    @abstractmethod
    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal | Selection]:
        """What should change in which layer; sees all layers at once, so that budgets may move between them."""

    def __repr__(self) -> str:
        return arguments(self)
