"""Whether a saved topology is one that the layers at hand can have: all of it is checked before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from openwork.pattern import Pattern
from openwork.update import SparseLayer


class Checked(NamedTuple):
    """A state that has been found good.

    Attributes:
        step_count: optimizer steps so far.
        generator: random state.
        patterns: layer name -> pattern, on the CPU.
        counts: layer name -> units.
    """

    step_count: int
    generator: Tensor
    patterns: dict[str, Pattern]
    counts: dict[str, int]


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
    return Checked(step_count, _random_state(state["generator"]), patterns, {name: held[name]["count"] for name in layers})


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
        layer.layout.check(pattern, held["count"])
    except ValueError as error:
        raise ValueError(f"state of layer {layer.name!r} is damaged: {error}") from error
    return pattern


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
