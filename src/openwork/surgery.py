"""Finding the layers of a model that can be sparse, and exchanging modules in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from openwork.layouts import LayoutError, LayoutRule
from openwork.nn import SparseConv2d, SparseLinear, SparseModule

SPARSE_TYPES: dict[type[nn.Module], type[SparseLinear] | type[SparseConv2d]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def survey(
    model: nn.Module, layout: LayoutRule, exclude: Sequence[str], force: Sequence[str]
) -> tuple[dict[str, nn.Linear | nn.Conv2d], dict[str, str]]:
    """Which layers of a model will be sparse, and why the others will not.

    Args:
        model: any module; it is not changed.
        layout: decides what it has no place for.
        exclude: names or globs of layers to leave dense.
        force: names or globs of layers to make sparse although they are grouped or smaller than a unit.

    Returns:
        (name -> layer to be sparse, name -> reason to stay dense), in the model's order.

    Raises:
        ValueError: a pattern matches no layer, a forced layer cannot be sparse, the model is sparse already, is itself a single
            layer, or has nothing to make sparse.
    """
    if any(isinstance(module, SparseModule) for module in model.modules()):
        raise ValueError("model has sparse layers already; densify it first")
    if type(model) in SPARSE_TYPES:
        raise ValueError(
            f"model is a single {type(model).__name__}, which cannot be swapped in place; wrap it in nn.Sequential"
        )
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    _check_globs("exclude", exclude, layers)
    _check_globs("force", force, layers)
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    sparse: dict[str, nn.Linear | nn.Conv2d] = {}
    dense: dict[str, str] = {}
    for name, module in layers.items():
        forced = _matches(name, force)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        never = _never(module, owners)
        if _matches(name, exclude):
            dense[name] = "excluded"
        elif never is not None:
            if forced:
                raise ValueError(f"force names {name!r}, which cannot be sparse: {never}")
            dense[name] = never
        elif not forced and (reason := _better_dense(name, module, layout)) is not None:
            dense[name] = reason
        else:
            sparse[name] = module
    if not sparse:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dense.items()) or "it has no nn.Linear or nn.Conv2d"
        raise ValueError(f"model has no layer to make sparse with {layout!r} ({reasons})")
    return sparse, dense


def _never(module: nn.Module, owners: Counter[int]) -> str | None:
    """Why a layer cannot be sparse at all."""
    if type(module) not in SPARSE_TYPES:
        return f"{type(module).__name__} is a subclass; others may read its weight"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight is not initialised yet; run one batch first"
    if owners[id(weight)] > 1:
        return "its weight is tied to another module"
    return None


def _better_dense(name: str, module: nn.Linear | nn.Conv2d, layout: LayoutRule) -> str | None:
    """Why a layer is left dense unless it is forced."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return (
            "depthwise convolution" if module.groups == module.in_channels else f"grouped convolution, groups={module.groups}"
        )
    dims = tuple(module.weight.shape)
    try:
        return layout.for_layer(name, dims).unfit(dims)
    except LayoutError as error:
        return str(error)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _check_globs(argument: str, globs: Sequence[str], layers: dict[str, nn.Module]) -> None:
    if isinstance(globs, str) or not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"{argument}={globs!r} must be a sequence of names or globs")
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in layers):
            raise ValueError(f"{argument} names {glob!r}, which matches no layer; layers: {', '.join(layers)}")


def swap(model: nn.Module, exchanges: dict[nn.Module, nn.Module]) -> None:
    """Put new modules where the old ones stand, at every place of the model, with their hooks."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in exchanges:
                parent._modules[name] = exchanges[child]
    for old, new in exchanges.items():
        for hooks in _HOOKS:
            setattr(new, hooks, getattr(old, hooks))


def densify(model: nn.Module) -> nn.Module:
    """Turn every sparse layer back into a plain ``nn`` module of the same function, in place.

    Allocates every weight in full.  Biases stay the same parameters; weights are new ones, so an optimizer has to be made anew.

    Returns:
        ``model``, or the dense layer where ``model`` is itself a sparse one.
    """
    if isinstance(model, SparseModule):
        return model.to_dense()
    swap(model, {module: module.to_dense() for module in model.modules() if isinstance(module, SparseModule)})
    return model
