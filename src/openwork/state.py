"""Whether a saved topology is one that the layers at hand can have: all of it is checked before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from openwork.budgets import is_number
from openwork.layouts.stage import Stage
from openwork.pattern import Pattern
from openwork.update import Gradients, SparseLayer


class Checked(NamedTuple):
    """A state that has been found good.

    Attributes:
        step_count: optimizer steps so far.
        generator: random state.
        patterns: layer name -> pattern, on the CPU.
        counts: layer name -> units.
        selected: layer name -> the density of the last selection, None where only active weights are trained.
        gradients: layer name -> gradients summed for the next update, None where there are none.
    """

    step_count: int
    generator: Tensor
    patterns: dict[str, Pattern]
    counts: dict[str, int]
    selected: dict[str, float | None]
    gradients: dict[str, Gradients | None]


def check_state(state: object, layers: Mapping[str, SparseLayer]) -> Checked:
    """Read the state of a ``Sparsity``.

    Raises:
        ValueError: it is of another model or layout, incomplete or damaged.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state={state!r} is no state of a Sparsity")
    missing = {"step_count", "generator", "layers"} - set(state)
    if missing:
        raise ValueError(f"state lacks {', '.join(sorted(missing))}: it is no state of a Sparsity, or was cut off")
    step_count, held = state["step_count"], state["layers"]
    if not _is_count(step_count):
        raise ValueError(f"state has step_count={step_count!r}; it must be a number of steps")
    if not isinstance(held, Mapping):
        raise ValueError(f"state has layers={held!r}; they must be a mapping by name")
    if set(held) != set(layers):
        strange, absent = sorted(set(held) - set(layers)), sorted(set(layers) - set(held))
        raise ValueError(f"state is of another model: it has {strange or 'no'} unknown and lacks {absent or 'no'} layers")
    patterns = {name: _pattern(layer, held[name]) for name, layer in layers.items()}
    counts = {name: held[name]["count"] for name in layers}
    gradients = {name: _gradients(layer, held[name], patterns[name]) for name, layer in layers.items()}
    selected = {name: held[name].get("density") for name in layers}
    return Checked(step_count, _random_state(state["generator"]), patterns, counts, selected, gradients)


def _random_state(held: object) -> Tensor:
    try:
        if not isinstance(held, Tensor):
            raise TypeError(f"it is a {type(held).__name__}")
        return torch.Generator().set_state(held.cpu()).get_state()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"state has a generator that is no random state: {error}") from error


def _pattern(layer: SparseLayer, held: object) -> Pattern:
    """The pattern of one layer's state, if it is one that this layer can have."""
    keys = {"layout", "count", "shape", "rows", "offsets", "cols"}
    missing = keys - set(held) if isinstance(held, Mapping) else keys
    if missing or not isinstance(held, Mapping):
        raise ValueError(f"state of layer {layer.name!r} lacks {', '.join(sorted(missing))}")
    if held["shape"] != list(layer.shape) or held["layout"] != repr(layer.layout):
        raise ValueError(
            f"state of layer {layer.name!r} is of another model: {held['layout']} of shape {held['shape']}, "
            f"here {layer.layout!r} of shape {list(layer.shape)}"
        )
    try:
        if not _is_count(held["count"]):
            raise ValueError(f"count={held['count']!r} is no number of units")
        for key in ("rows", "offsets", "cols"):
            if not isinstance(held[key], Tensor):
                raise ValueError(f"{key} is a {type(held[key]).__name__}, no tensor")
        pattern = Pattern(layer.shape, *(held[key].cpu().clone() for key in ("rows", "offsets", "cols")))
        if held.get("density") is not None:
            if layer.module.master is None:
                raise ValueError("all of its weight was trained, which the method here does not do")
            if not is_number(held["density"]) or not 0.0 < held["density"] <= 1.0:
                raise ValueError(f"density={held['density']!r} is none")
            Stage(layer.layout, layer.module.dense_dims, held["density"]).check(pattern)
        else:
            layer.layout.check(pattern, held["count"])
    except ValueError as error:
        raise ValueError(f"state of layer {layer.name!r} is damaged: {error}") from error
    return pattern


def _gradients(layer: SparseLayer, held: Mapping[str, Any], pattern: Pattern) -> Gradients | None:
    """What one layer's state says of summed gradients."""
    if "gradients" not in held:
        return None
    sums = held["gradients"]
    total, steps = (sums.get("total"), sums.get("steps")) if isinstance(sums, Mapping) else (None, None)
    if not (isinstance(total, Tensor) and total.is_floating_point() and tuple(total.shape) == pattern.value_shape):
        raise ValueError(
            f"state of layer {layer.name!r} is damaged: its gradients are no tensor of shape {pattern.value_shape}"
        )
    if not (_is_count(steps) and steps):
        raise ValueError(f"state of layer {layer.name!r} is damaged: its gradients are of steps={steps!r}, no number of steps")
    return Gradients(total.to(layer.module.values, copy=True), steps)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
