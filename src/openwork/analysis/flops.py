"""Floating-point operations of a model, counted layer by layer in one forward pass."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from openwork.nn import SparseConv2d, SparseLinear, SparseModule


@dataclass(frozen=True)
class LayerFlops:
    """One layer's share.

    Attributes:
        layer: name in the model.
        shape: of the dense weight.
        sparse: whether it is an openwork layer.
        active: weights that exist.
        positions: outputs that every weight has a part in, over the whole input: batch x tokens, or batch x pixels.
    """

    layer: str
    shape: tuple[int, ...]
    sparse: bool
    active: int
    positions: int

    @property
    def forward(self) -> int:
        """Two for each multiply-accumulate of an active weight."""
        return 2 * self.active * self.positions

    @property
    def dense_forward(self) -> int:
        """The same if every weight were active."""
        return 2 * math.prod(self.shape) * self.positions


@dataclass(frozen=True)
class Flops:
    """FLOPs of a model for one input; prints as a table."""

    layers: tuple[LayerFlops, ...]

    @property
    def forward(self) -> int:
        """Inference (``f_S``)."""
        return sum(layer.forward for layer in self.layers)

    @property
    def dense_forward(self) -> int:
        """Inference of the dense model (``f_D``)."""
        return sum(layer.dense_forward for layer in self.layers)

    @property
    def training(self) -> int:
        """A training step without topology update, ``3 f_S``: the backward pass costs two forward ones, for the gradients of
        inputs and of weights.  :func:`training_flops` adds what the method costs.
        """
        return 3 * self.forward

    @property
    def dense_training(self) -> int:
        """A training step of the dense model, ``3 f_D``."""
        return 3 * self.dense_forward

    @property
    def ratio(self) -> float:
        """Sparse over dense, the same for inference and for a training step."""
        return self.forward / self.dense_forward if self.dense_forward else 1.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            title=f"{self.forward:,} FLOPs forward, {self.training:,} a training step: {self.ratio:.4f} of dense",
            caption="2 for each multiply-accumulate of linear and convolution layers; biases and all else are not counted",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("layer", overflow="fold")
        for name in ("shape", "active", "positions", "forward", "dense", "ratio"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.layers:
            shape, ratio = "x".join(map(str, row.shape)), row.active / max(1, math.prod(row.shape))
            counts = (row.active, row.positions, row.forward, row.dense_forward)
            table.add_row(row.layer, shape, *(f"{count:,}" for count in counts), f"{ratio:.4f}" if row.sparse else "(dense)")
        table.add_section()
        table.add_row("total", "", "", "", f"{self.forward:,}", f"{self.dense_forward:,}", f"{self.ratio:.4f}")
        yield table
        if unused := [layer.layer for layer in self.layers if not layer.positions]:
            yield f"never called by the model itself, so not counted: {', '.join(unused)}"

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


def flops(model: nn.Module, input: Any) -> Flops:
    """Count the FLOPs of linear and convolution layers, dense and sparse, in one forward pass.

    A multiply-accumulate is 2 FLOPs.  A layer takes one for each of its active weights and each of its output positions
    (transposed convolutions: input positions), padding included, as is usual.  Not counted: biases, norms, activations, losses,
    and products outside of these layers, such as attention's scores and weights that ``nn.MultiheadAttention`` uses directly; a
    layer that was never called shows with 0 positions and in a note.  A training step counts as three forward passes, the first
    layer's input gradient included, as the literature does (RigL, App. H; MEST, Table 2).

    The pass runs without gradients and in evaluation mode; modes, gradients, buffers and torch's random state are as before.

    Args:
        model: any module.
        input: what the model takes: a tensor (with its batch dimension; give a batch of 1 for FLOPs by sample), a tuple of
            arguments, or a mapping of named ones.

    Raises:
        ValueError: ``model`` has no linear or convolution layer.
    """
    known = (nn.Linear, _ConvNd, SparseModule)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, known)}
    if not layers:
        raise ValueError(f"model={type(model).__name__} has no linear or convolution layer to count")
    positions = dict.fromkeys(layers, 0)

    def watch(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            positions[name] += _positions(module, inputs[0], output)

        return count

    with _undisturbed(model), torch.no_grad():
        handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
        try:
            _call(model, input)
        finally:
            for handle in handles:
                handle.remove()
    return Flops(tuple(_layer(name, module, positions[name]) for name, module in layers.items()))


def _layer(name: str, module: nn.Module, positions: int) -> LayerFlops:
    if isinstance(module, SparseModule):
        return LayerFlops(name, module.dense_dims, True, module.pattern.nnz, positions)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return LayerFlops(name, tuple(weight.shape), False, weight.numel(), positions)


def _positions(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """How often every weight takes part.  A grouped convolution's weight has the channels of one group only."""
    if isinstance(module, nn.Linear | SparseLinear):
        return out.numel() // module.out_features
    assert isinstance(module, _ConvNd | SparseConv2d)
    if isinstance(module, _ConvNd) and module.transposed:
        return x.numel() // module.in_channels
    return out.numel() // module.out_channels


def _call(model: nn.Module, input: Any) -> None:
    if isinstance(input, Mapping):
        model(**input)
    elif isinstance(input, tuple | list):
        model(*input)
    else:
        model(input)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with modes, buffers and torch's random state put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng([device.index for device in devices]):
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)
