"""Batch norm on resident tensors: forward it is two numbers for each channel, backward three."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.resident import native
from openwork.resident.formula import Formula
from openwork.resident.tensor import Content, ResidentTensor, content_of, handles, is_resident, wrap

aten = torch.ops.aten


@handles(aten.native_batch_norm.default)
def _forward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, running_mean, running_var, training, momentum, eps = args
    if not is_resident(x) or not _fits(weight, bias, running_mean, running_var):
        return NotImplemented
    content = x.content
    moments = None
    if training:
        moments = _moments(content)
    numbers = content.numbers()
    line = native.norm_forward(numbers.size, moments, (weight, bias), (running_mean, running_var), momentum, eps)
    # As PyTorch does, nothing is saved of a batch that was not measured.
    saved = (line.mean, line.inverse) if training else (torch.empty(0), torch.empty(0))
    return wrap(numbers.replace(a=line.scale, shift=line.shift), content), *saved


@handles(aten.native_batch_norm_backward.default)
def _backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    g, x, weight, running_mean, running_var, mean, inverse, training, eps, wanted = args
    if not isinstance(x, ResidentTensor) or not is_resident(x) or g.dtype != x.dtype:
        return NotImplemented
    if not _fits(weight, running_mean, running_var):
        return NotImplemented
    numbers = x.content.numbers()
    if not training:
        line = native.norm_forward(numbers.size, None, (None, None), (running_mean, running_var), 0.0, eps)
        mean, inverse = line.mean, line.inverse
    content = content_of(g, x.content)
    gradient = content.formula()
    if not _reads_only(gradient, numbers.x):
        gradient = content.numbers()
    found = native.norm_backward(gradient, numbers, weight, mean, inverse, batch_statistics=training)
    dx = wrap(gradient.replace(a=found.a, y=numbers.x, b=found.b, shift=found.shift), x.content) if wanted[0] else None
    return dx, found.weight if wanted[1] else None, found.bias if wanted[2] else None


def _moments(content: Content) -> Tensor:
    """Of the lines; taken on the way where the numbers have to be made."""
    formula = content.formula()
    if content.moments is None:
        if formula.is_numbers:
            content.moments = native.line_moments(formula)
        else:
            content.held, content.moments = native.numbers(formula, moments=True)
    assert content.moments is not None
    return content.moments


def _reads_only(gradient: Formula, x: Tensor) -> bool:
    """Whether it is a gated tensor whose gate, if it is made of a tensor, is made of ``x``."""
    return gradient.is_gated and (gradient.y is None or gradient.y is x)


def _fits(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu") for t in tensors)
