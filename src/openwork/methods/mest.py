"""Memory-economic sparse training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from openwork.budgets import active_weights
from openwork.methods.base import Layer
from openwork.methods.periodic import Periodic, is_count, is_moment
from openwork.scores import Proposal

Mode = Literal["constant", "elastic", "soft"]
PresetName = Literal["paper-cifar", "paper-imagenet", "release"]


class _Preset(NamedTuple):
    """A schedule in epochs, and rates as shares of all weights or of the active ones."""

    epochs: int
    every: int
    halved_at: int
    end: int
    gradient_weight: float
    elastic: tuple[float, bool]
    soft: tuple[float, bool]


_PRESETS = {
    "paper-cifar": _Preset(160, 5, 100, 130, 0.01, (0.05, False), (0.05, False)),
    "paper-imagenet": _Preset(150, 2, 90, 120, 0.001, (0.05, False), (0.05, False)),
    # The scripts print densities: of 0.9, 0.92 and 0.91 for EM, 0.85 and 0.875 for EM&S.  They rank by magnitude alone.
    "release": _Preset(160, 5, 90, 120, 0.0, (0.2, True), (0.05, False)),
}


class MEST(Periodic):
    """Remove what matters least by ``|w| + |lambda dL/dw|``, grow at random (Yuan et al. 2021, sec. 3).

    Three modes.  ``"elastic"`` (EM): remove a share ``p`` of the weights and grow as many, ``p`` halving at milestones.
    ``"constant"``: the same with a constant ``p``, the paper's vanilla MEST.  ``"soft"`` (EM&S, soft memory bound): grow first,
    train with ``p`` more weights than the target, then remove the ``p`` that matter least.  Layers then begin at the peak
    density, every update ends at a peak that falls with ``p``, and the one at ``end`` leaves exactly the asked sparsity;
    storage is that of the present density at every moment.  Layouts of one density have no place for a surplus.

    The gradient is that of the optimizer step just done, of the active weights alone, read before it is zeroed (eq. 1).  The
    update follows the step.  What was just removed is not grown in the same update.

    Args:
        mode: see above.
        interval: optimizer steps between topology updates (the paper: 5 epochs).
        end: no update after this step: a step count, or a float share of ``total_steps``.  Default: 130 of 160 epochs.
        total_steps: optimizer steps of the whole training; needed for shares.
        mutation: the share ``p``.
        relative: whether ``mutation`` is a share of the weights that the asked sparsity leaves active (the public code's rates
            are 0.2 for EM at 0.9 sparsity), or, as in the paper (0.05), of all.
        milestones: where ``mutation`` halves, in steps or shares of ``total_steps``.  Default: 100 of 160 epochs, none for
            ``"constant"``.
        gradient_weight: lambda (CIFAR 0.01, ImageNet 0.001); 0 ranks by magnitude alone, as the public code does.
        gradient_steps: the gradient is the mean over so many optimizer steps, that of the update the last of them.  With more
            than one, a copy of the active gradients is held in these steps.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    def __init__(
        self,
        mode: Mode = "elastic",
        interval: int = 100,
        end: int | float | None = None,
        total_steps: int | None = None,
        mutation: float = 0.2,
        relative: bool = True,
        milestones: Sequence[int | float] | None = None,
        gradient_weight: float = 0.01,
        gradient_steps: int = 1,
    ) -> None:
        super().__init__(interval, end, total_steps, usual_end=130 / 160)
        if mode not in ("constant", "elastic", "soft"):
            raise ValueError(f"mode={mode!r} is unknown; known: constant, elastic, soft")
        if not (isinstance(mutation, float) and 0.0 < mutation < 1.0):
            raise ValueError(f"mutation={mutation!r} must be a number strictly between 0 and 1")
        if not isinstance(relative, bool):
            raise ValueError(f"relative={relative!r} must be True or False")
        if milestones is not None and not (isinstance(milestones, Sequence) and all(is_moment(at) for at in milestones)):
            raise ValueError(f"milestones={milestones!r} must be step counts, or floats in (0, 1], shares of total_steps")
        if not (isinstance(gradient_weight, int | float) and gradient_weight >= 0):
            raise ValueError(f"gradient_weight={gradient_weight!r} must be a number of at least 0")
        if not (is_count(gradient_steps) and gradient_steps <= interval):
            raise ValueError(f"gradient_steps={gradient_steps!r} must be a whole number from 1 to interval={interval}")
        if mode == "constant" and milestones:
            raise ValueError(f"milestones={milestones!r} make mutation fall; mode='constant' has none")
        self.mode, self.mutation, self.relative = mode, mutation, relative
        self.milestones, self.gradient_weight, self.gradient_steps = milestones, gradient_weight, gradient_steps
        self._warned = False

    @classmethod
    def preset(cls, name: PresetName, mode: Mode = "elastic", *, total_steps: int) -> MEST:
        """Published schedules, stretched to a training of ``total_steps``.

        | preset | update every | mutation, then half of it | from | no update from |
        |---|---|---|---|---|
        | ``"paper-cifar"`` (Table G.1) | 5 of 160 epochs | 0.05 of all weights | 100 | 130 |
        | ``"paper-imagenet"`` (Table G.1) | 2 of 150 epochs | 0.05 of all weights | 90 | 120 |
        | ``"release"`` (public scripts) | 5 of 160 epochs | EM: 0.2 of the active, EM&S: 0.05 of all | 90 | 120 |

        Args:
            name: see the table.
            mode: as in the constructor; ``"constant"`` has no second rate.
            total_steps: optimizer steps of the whole training.

        Returns:
            The method; print it to see its arguments.

        Raises:
            ValueError: ``name`` is unknown, or another argument out of range.
        """
        if name not in _PRESETS:
            raise ValueError(f"name={name!r} is unknown; known: {', '.join(_PRESETS)}")
        if not is_count(total_steps):
            raise ValueError(f"total_steps={total_steps!r} must be a positive number of steps")
        preset = _PRESETS[name]
        mutation, relative = preset.soft if mode == "soft" else preset.elastic
        return cls(
            mode,
            interval=max(1, round(total_steps * preset.every / preset.epochs)),
            end=preset.end / preset.epochs,
            total_steps=total_steps,
            mutation=mutation,
            relative=relative,
            milestones=None if mode == "constant" else [preset.halved_at / preset.epochs],
            gradient_weight=preset.gradient_weight,
        )

    def due(self, step: int) -> bool:
        """Every ``interval`` steps until ``end``; with ``"soft"``, at ``end`` too, where the surplus goes for good."""
        self._share(step)  # here too, so that attach learns of a missing total_steps
        return super().due(step) or (self.mode == "soft" and step == self.last_step)

    def initial_density(self, density: float) -> float:
        """``"soft"`` begins with the surplus of the first period."""
        return self._peak(density, 0) if self.mode == "soft" else density

    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal]:
        """One proposal for each layer."""
        propose = self._soft if self.mode == "soft" else self._elastic
        return {name: propose(step, name, layer) for name, layer in layers.items()}

    def _elastic(self, step: int, name: str, layer: Layer) -> Proposal:
        """Remove to sparsity ``s + p``, grow to ``s``, in canonical counts."""
        keep = layer.importances(self.gradient_weight)
        total = math.prod(layer.shape)
        active = active_weights(total, layer.density)
        surplus = self._surplus(layer.density, step)
        if surplus >= layer.density and not self._warned:
            self._warned = True
            warnings.warn(
                f"mutation={self.mutation} of all weights is more than the density {layer.density:.4g} of {name!r} has: one "
                "weight stays at each update; lower mutation, or set relative=True",
                stacklevel=2,
            )
        kept = max(1, active_weights(total, max(0.0, layer.density - surplus)))
        n_drop = round((active - kept) * len(keep) / max(1, active))
        return Proposal(keep, n_drop, layer.sample_inactive(n_drop), layer.count)

    def _soft(self, step: int, name: str, layer: Layer) -> Proposal:
        """Remove to sparsity ``s``, grow to ``s - p`` unless this is the end."""
        keep = layer.importances(self.gradient_weight)
        kept = layer.units(layer.density)
        count = kept if step >= self.last_step else layer.units(self._peak(layer.density, step))
        # Of a shuffled layout's units each holds several atoms.
        n_kept, n_after = (round(len(keep) * units / max(1, layer.count)) for units in (kept, count))
        return Proposal(keep, max(0, len(keep) - n_kept), layer.sample_inactive(max(0, n_after - n_kept)), count)

    def _peak(self, density: float, step: int) -> float:
        return min(1.0, density + self._surplus(density, step))

    def _surplus(self, density: float, step: int) -> float:
        """``p`` as a share of all weights of a layer of target density ``density``."""
        return self._share(step) * (density if self.relative else 1.0)

    def _share(self, step: int) -> float:
        """``mutation``, halved at every milestone passed."""
        milestones = self.milestones
        if milestones is None:
            milestones = () if self.mode == "constant" or self.total_steps is None else (100 / 160,)
        return self.mutation * 0.5 ** sum(step >= self.step_at("milestones", at) for at in milestones)
