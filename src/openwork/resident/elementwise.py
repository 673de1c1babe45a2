"""ReLU, additions and what costs nothing, on resident tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.resident import native
from openwork.resident.formula import DTYPES, Formula
from openwork.resident.tensor import CPU, Content, ResidentTensor, content_of, handles, is_resident, wrap

aten = torch.ops.aten


@handles(aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return ResidentTensor(args[0].content)


@handles(aten.view.default, aten._unsafe_view.default, aten.expand.default)
def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, size = args[0], tuple(args[1])
    return ResidentTensor(tensor.content) if is_resident(tensor) and size == tuple(tensor.shape) else NotImplemented


@handles(aten.clone.default)
def _clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not is_resident(args[0]) or kwargs.get("memory_format") not in (None, torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    # Nothing ever writes to blocked numbers: whoever changes a tensor in place exchanges its formula.
    content = args[0].content
    return wrap(content.formula(), content, content.moments)


@handles(aten._to_copy.default)
def _to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Between the dtypes of activations; whatever else a copy may be is no resident tensor.
    asked = {name: value for name, value in kwargs.items() if value not in (None, False, torch.preserve_format)}
    dtype = asked.pop("dtype", None)
    plain = asked.pop("device", CPU) == CPU and asked.pop("layout", torch.strided) == torch.strided and not asked
    if not is_resident(args[0]) or dtype not in DTYPES or not plain:
        return NotImplemented
    content = args[0].content
    return wrap(native.numbers(content.formula(), dtype=dtype)[0], content)


@handles(
    aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default, aten.full_like.default, aten.rand_like.default,
    aten.randn_like.default, aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default, aten.new_full.default,
    aten.new_empty_strided.default,
)  # fmt: skip
def _new(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Only the size is wanted, not the numbers.
    return func(torch.empty(1, dtype=args[0].dtype).expand(args[0].shape), *args[1:], **kwargs)


@handles(aten.relu.default, aten.relu_.default)
def _relu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not is_resident(args[0]):
        return NotImplemented
    content = args[0].content
    formula = content.formula()
    if formula.relu:
        return _put(func, args[0], formula)
    if formula.keep is not None:
        formula = content.numbers()
    result = formula.replace(relu=True)
    if not result.is_line:
        # A sum of two has several readers as a rule: the next block and its shortcut.
        result = native.numbers(result)[0]
    return _put(func, args[0], result)


@handles(aten.threshold_backward.default)
def _relu_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    g, result, threshold = args
    if threshold != 0 or not is_resident(result) or g.dtype != result.dtype:
        return NotImplemented
    g_content = content_of(g, result.content)
    # What ReLU returned, or, with nn.Threshold, took: positive where it lets the gradient through.
    z = result.content.formula()
    if z.is_line and (z.a is not None or z.shift is not None):
        gradient = g_content.numbers()
        scale = torch.ones(z.size[1]) if z.a is None else z.a
        shift = torch.zeros(z.size[1]) if z.shift is None else z.shift
        return wrap(gradient.replace(y=z.x, open_scale=scale, open_shift=shift), result.content)
    gate = z.x if z.is_line else result.content.numbers().x
    gradient = g_content.formula()
    if gradient.is_numbers:
        return wrap(gradient.replace(gate=gate), result.content)
    if gradient.keep is not None or gradient.relu:
        return wrap(g_content.numbers().replace(gate=gate), result.content)
    # As above: the gradient of a sum goes several ways.
    return wrap(native.numbers(gradient.replace(keep=gate))[0], result.content)


@handles(aten.add.Tensor, aten.add_.Tensor)
def _add(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    one, other = args[0], args[1]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or kwargs.get("alpha", 1) != 1 or one.shape != other.shape:
        return NotImplemented
    if one.dtype != other.dtype or (func is aten.add_.Tensor and not is_resident(one)):
        return NotImplemented
    if not is_resident(one) and not is_resident(other):
        return NotImplemented
    known = one.content if is_resident(one) else other.content  # type: ignore[attr-defined]
    return _put(func, one, added(content_of(one, known), content_of(other, known)), known)


def added(one: Content, other: Content) -> Formula:
    """The formula of a sum; a term that is no simple one becomes numbers first."""
    first, second = one.formula(), other.formula()
    if not _is_term(first):
        first = one.numbers()
    if not _is_term(second):
        second = other.numbers()
    if second.gate is not None:
        first, second, one, other = second, first, other, one
    if second.gate is not None:
        second = other.numbers()
    shifts = [part.shift for part in (first, second) if part.shift is not None]
    shift = None if not shifts else shifts[0] if len(shifts) == 1 else shifts[0] + shifts[1]
    return first.replace(y=second.x, b=second.a, shift=shift)


def _is_term(formula: Formula) -> bool:
    return formula.y is None and formula.keep is None and not formula.relu


def _put(func: Any, tensor: Tensor, formula: Formula, known: Content | None = None) -> Tensor:
    """The result: a new tensor, or the one that is written to."""
    if isinstance(tensor, ResidentTensor):
        if func in (aten.relu_.default, aten.add_.Tensor):
            tensor.content.held, tensor.content.moments = formula, None
            return tensor
        known = known or tensor.content
    assert known is not None
    return wrap(formula, known)
