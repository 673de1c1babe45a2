"""How much of a layer exists now, and how much has ever existed: ITOP's exploration rate."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from openwork.nn import SparseModule

_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def layer_sparsity(model: nn.Module) -> dict[str, float]:
    """The share of zeros of every sparse layer: name in the model -> sparsity."""
    return {name: 1.0 - module.pattern.density for name, module in model.named_modules() if isinstance(module, SparseModule)}


class Exploration:
    """The share of all weights that were ever active, ``R_s`` (ITOP, Liu et al. 2021, eq. 1), layer by layer.

    To know it takes one bit for every weight of the *dense* matrix, on the CPU: 1/32 of a float32 dense model, whatever the
    sparsity.  An update adds arrays proportional to the active weights.

    Args:
        layers: name -> sparse module, as in ``Sparsity.layers``; their present topologies count as the first.

    Example:
        >>> exploration = Exploration(sparsity.layers)
        >>> for x, y in loader:
        ...     step(x, y)
        ...     exploration.update()  # after every step, or after those with a topology update
        >>> exploration.rate, exploration.rates["conv1"]
    """

    def __init__(self, layers: Mapping[str, SparseModule]) -> None:
        self._layers = dict(layers)
        self._bits = {name: np.zeros(-(-_size(module) // 8), dtype=np.uint8) for name, module in self._layers.items()}
        self._counts = dict.fromkeys(self._layers, 0)
        self._seen: dict[str, Tensor] = {}
        self.update()

    def update(self) -> None:
        """Take in the topologies at present.  Costs nothing for a layer whose topology has not changed."""
        for name, module in self._layers.items():
            # A topology update replaces a pattern's tensors.
            if self._seen.get(name) is not module.cols:
                self._record(name, module)
                self._seen[name] = module.cols

    def _record(self, name: str, module: SparseModule) -> None:
        flat = module.pattern.positions.cpu().numpy().ravel()
        flat = np.sort(flat[flat >= 0])
        if not len(flat):
            return
        held = self._bits[name]
        byte, first = np.unique(flat >> 3, return_index=True)
        mask = np.bitwise_or.reduceat((1 << (flat & 7)).astype(np.uint8), first)
        before = _ones(held[byte])
        held[byte] |= mask
        self._counts[name] += _ones(held[byte]) - before

    @property
    def rates(self) -> dict[str, float]:
        """``R_s`` of every layer."""
        return {name: self._counts[name] / max(1, _size(module)) for name, module in self._layers.items()}

    @property
    def rate(self) -> float:
        """``R_s`` over all layers together."""
        return sum(self._counts.values()) / max(1, sum(map(_size, self._layers.values())))

    @property
    def nbytes(self) -> int:
        """What the tracker holds."""
        return sum(bits.nbytes for bits in self._bits.values())

    def state_dict(self) -> dict[str, Any]:
        """The bits, eight weights to a byte, as tensors and plain values (``torch.load(weights_only=True)`` reads it)."""
        return {
            "layers": {
                name: {"shape": list(module.shape), "ever": torch.from_numpy(self._bits[name].copy())}
                for name, module in self._layers.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was ever active, and add the present topologies; all of it is checked before anything is changed.

        Raises:
            ValueError: the state is of other layers, incomplete or damaged.
        """
        held = state.get("layers") if isinstance(state, Mapping) else None
        if not isinstance(held, Mapping):
            raise ValueError("state is no state of an Exploration: it lacks layers")
        if set(held) != set(self._layers):
            strange, absent = sorted(set(held) - set(self._layers)), sorted(set(self._layers) - set(held))
            raise ValueError(f"state is of another model: it has {strange or 'no'} unknown and lacks {absent or 'no'} layers")
        bits = {name: _checked(name, module, held[name]) for name, module in self._layers.items()}
        self._bits = bits
        self._counts = {name: _ones(ever) for name, ever in bits.items()}
        self._seen = {}
        self.update()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title=f"{self.rate:.4f} of all weights ever active", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("layer", overflow="fold")
        for heading in ("shape", "sparsity now", "R_s"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, rate in self.rates.items():
            module = self._layers[name]
            sparsity = 1.0 - module.pattern.density
            table.add_row(name, "x".join(map(str, module.dense_dims)), f"{sparsity:.4f}", f"{rate:.4f}")
        yield table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


def _size(module: SparseModule) -> int:
    return module.shape[0] * module.shape[1]


def _ones(bits: np.ndarray) -> int:
    return int(_ONES[bits].sum(dtype=np.int64))


def _checked(name: str, module: SparseModule, held: Any) -> np.ndarray:
    """The bits of one layer from a saved state."""
    if not isinstance(held, Mapping) or not {"shape", "ever"} <= set(held):
        raise ValueError(f"state of {name!r} lacks shape or ever")
    if list(held["shape"]) != list(module.shape):
        raise ValueError(f"state of {name!r} has shape {held['shape']}, the layer {list(module.shape)}")
    ever, size = held["ever"], _size(module)
    if not isinstance(ever, Tensor) or ever.dtype != torch.uint8 or tuple(ever.shape) != (-(-size // 8),):
        raise ValueError(f"state of {name!r} has ever={ever!r}; it must be uint8 of length {-(-size // 8)}")
    bits = ever.cpu().numpy().copy()
    if size % 8 and bits[-1] >> (size % 8):
        raise ValueError(f"state of {name!r} has bits beyond the last of {size} weights")
    return bits
