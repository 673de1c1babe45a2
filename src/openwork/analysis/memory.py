"""Bytes that a model and its optimizer hold at this moment, counted tensor by tensor."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.nn import SparseModule

KINDS = ("weights", "gradients", "optimizer_state", "indices", "buffers")


@dataclass(frozen=True)
class LayerMemory:
    """What one module holds itself, its children apart, in bytes; the kinds are those of :class:`Memory`.

    Attributes:
        layer: name in the model.
        module: class of the module.
    """

    layer: str
    module: str
    weights: int
    gradients: int
    optimizer_state: int
    indices: int
    buffers: int

    @property
    def total(self) -> int:
        """Everything counted."""
        return sum(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for; prints as a table.

    Args:
        weights: parameters, dense and sparse.
        gradients: ``.grad`` of the parameters, where there is one.
        optimizer_state: every tensor in the optimizer's state.
        indices: the patterns of sparse layers, and what their products keep beside them.
        buffers: the other buffers of the model, such as the running statistics of batch norms.
        layers: the same module by module, a shared tensor where it stands first.
    """

    weights: int
    gradients: int
    optimizer_state: int
    indices: int
    buffers: int
    layers: tuple[LayerMemory, ...] = ()

    @property
    def trained(self) -> int:
        """Weights, gradients and optimizer state: what sparsity should shrink in proportion to the density."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def total(self) -> int:
        """Everything counted."""
        return self.trained + self.indices + self.buffers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title=f"{decimal(self.total)} held", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("layer", "module"):
            table.add_column(name, overflow="fold")
        for name in (*KINDS, "total"):
            table.add_column(name.replace("_state", ""), justify="right", no_wrap=True)
        for row in self.layers:
            table.add_row(row.layer, row.module, *(decimal(getattr(row, kind)) for kind in KINDS), decimal(row.total))
        table.add_section()
        table.add_row("total", "", *(decimal(getattr(self, kind)) for kind in KINDS), decimal(self.total))
        yield table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


def memory(model: nn.Module, optimizer: Optimizer | None = None) -> Memory:
    """Count the bytes of a model's weights, gradients, indices and buffers and of its optimizer's state.

    It counts what is there: gradients exist between ``backward`` and ``zero_grad``, optimizer state from the first step on.
    Activations and temporaries are not counted.

    Args:
        model: any module; tensors that are shared are counted once.
        optimizer: the optimizer that trains it, or None.
    """
    states: dict[Any, Any] = dict(optimizer.state) if optimizer is not None else {}
    known: set[int] = set()
    rows = [_layer(name or "(model)", module, states, known) for name, module in model.named_modules()]
    # The optimizer may also train what is not in this model.
    rest = _bytes((value for state in states.values() for value in _tensors(state)), known)
    rows.append(LayerMemory("(elsewhere)", type(optimizer).__name__, 0, 0, rest, 0, 0))
    weights, gradients, optimizer_state, indices, buffers = (sum(getattr(row, kind) for row in rows) for kind in KINDS)
    held = tuple(row for row in rows if row.total)
    return Memory(weights, gradients, optimizer_state, indices, buffers, held)


def active_parameters(model: nn.Module) -> int:
    """Numbers that are trained: all parameters, without the padding that a sparse layer may store.

    Where a method trains all weights, all of them count, and the copies of the active ones do not.
    """
    stored = sum(parameter.numel() for parameter in model.parameters())
    layers = [module for module in model.modules() if isinstance(module, SparseModule)]
    return stored - sum(layer.values.numel() - (0 if layer.has_master else layer.pattern.nnz) for layer in layers)


def _layer(name: str, module: nn.Module, states: Mapping[Any, Any], known: set[int]) -> LayerMemory:
    parameters = list(module.parameters(recurse=False))
    gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
    optimizer_state = (value for parameter in parameters for value in _tensors(states.get(parameter, {})))
    # All that a sparse module registers besides parameters is its pattern.
    buffers = _bytes(module.buffers(recurse=False), known)
    indices, buffers = (buffers + module.kept_bytes, 0) if isinstance(module, SparseModule) else (0, buffers)
    trained = (_bytes(parameters, known), _bytes(gradients, known), _bytes(optimizer_state, known))
    return LayerMemory(name, type(module).__name__, *trained, indices, buffers)


def _tensors(state: Mapping[Any, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Tensor], known: set[int]) -> int:
    """Bytes of those not ``known`` yet, which they are from now on: the parameters of two tied layers are one tensor."""
    total = 0
    for tensor in tensors:
        if id(tensor) not in known:
            known.add(id(tensor))
            total += tensor.numel() * tensor.element_size()
    return total
