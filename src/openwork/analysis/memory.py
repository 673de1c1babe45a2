"""Bytes that a model and its optimizer hold at this moment, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.nn import SparseModule


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for.

    Args:
        weights: parameters, dense and sparse.
        gradients: ``.grad`` of the parameters, where there is one.
        optimizer_state: every tensor in the optimizer's state.
        indices: the patterns of sparse layers.
        buffers: the other buffers of the model, such as the running statistics of batch norms.
    """

    weights: int
    gradients: int
    optimizer_state: int
    indices: int
    buffers: int

    @property
    def trained(self) -> int:
        """Weights, gradients and optimizer state: what sparsity should shrink in proportion to the density."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def total(self) -> int:
        """Everything counted."""
        return self.trained + self.indices + self.buffers


def memory(model: nn.Module, optimizer: Optimizer | None = None) -> Memory:
    """Count the bytes of a model's weights, gradients, indices and buffers and of its optimizer's state.

    It counts what is there: gradients exist between ``backward`` and ``zero_grad``, optimizer state from the first step on.
    Activations and temporaries are not counted.

    Args:
        model: any module; tensors that are shared are counted once.
        optimizer: the optimizer that trains it, or None.
    """
    parameters = list(model.parameters())
    indices = [index for module in model.modules() if isinstance(module, SparseModule) for index in _pattern(module)]
    known = {id(index) for index in indices}
    states = optimizer.state.values() if optimizer is not None else ()
    return Memory(
        weights=_bytes(parameters),
        gradients=_bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        optimizer_state=_bytes(value for state in states for value in state.values() if isinstance(value, Tensor)),
        indices=_bytes(indices),
        buffers=_bytes(buffer for buffer in model.buffers() if id(buffer) not in known),
    )


def active_parameters(model: nn.Module) -> int:
    """Numbers that are trained: all parameters, without the padding that a sparse layer may store."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    layers = [module for module in model.modules() if isinstance(module, SparseModule)]
    return stored - sum(layer.values.numel() - layer.pattern.nnz for layer in layers)


def _pattern(module: SparseModule) -> tuple[Tensor, Tensor, Tensor]:
    return module.rows, module.offsets, module.cols


def _bytes(tensors: Iterable[Tensor]) -> int:
    # By object: the parameters of two tied layers are one tensor.
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
