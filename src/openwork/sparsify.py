"""The front door: make a model sparse, let topology updates ride on its optimizer, save, load, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from openwork import layouts as layouts_package
from openwork import methods as methods_package
from openwork.allocator import MemoryWatch
from openwork.budgets import Budget, densities_of, is_number
from openwork.evidence import Collector
from openwork.kernels import choose
from openwork.layouts import LayoutRule
from openwork.methods import Method
from openwork.names import resolve
from openwork.nn import SparseModule
from openwork.pattern import carried, same_pattern
from openwork.report import Report, build_report
from openwork.scores import Selection
from openwork.state import check_state
from openwork.surgery import SPARSE_TYPES, survey, swap
from openwork.update import Change, SparseLayer


class Sparsity:
    """The sparse layers of a model and the method that moves them.  Made by :func:`sparsify`.

    Attributes:
        method: what decides on topology updates.
        step_count: optimizer steps seen since ``attach``, topology updates included.
        last_update: layer name -> what the newest topology update did there; empty before the first.
        last_update_step: its step, None before the first.
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLayer],
        method: Method,
        generator: torch.Generator,
        dense: Mapping[str, tuple[nn.Module, str]],
        order: Sequence[str],
    ) -> None:
        self.method = method
        self.step_count = 0
        self.last_update: dict[str, Change] = {}
        self.last_update_step: int | None = None
        self._layers = dict(layers)
        self._generator = generator
        self._dense = dict(dense)
        self._order = list(order)
        self._optimizer: torch.optim.Optimizer | None = None
        self._updated = False
        self._memory = MemoryWatch()

    @property
    def layers(self) -> dict[str, SparseModule]:
        """Name in the model -> sparse module."""
        return {name: layer.module for name, layer in self._layers.items()}

    def attach(self, optimizer: torch.optim.Optimizer) -> Sparsity:
        """Let topology updates ride on ``optimizer.step()``; the training loop stays as it is.

        The optimizer's own hooks are used, so closures, gradient accumulation, clipping, loss scaling and frameworks work.
        Every tensor of the optimizer's state that is shaped like a layer's values moves with them.

        Args:
            optimizer: any torch optimizer that owns the values of every sparse layer that is trained.

        Returns:
            self.

        Raises:
            RuntimeError: something is attached already.
            TypeError: ``optimizer`` is none.
            ValueError: the optimizer does not own a sparse layer's values, or the method lacks ``total_steps``.
        """
        if self._optimizer is not None:
            raise RuntimeError("attach was called before: a Sparsity rides on one optimizer")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer={optimizer!r} must be a torch.optim.Optimizer")
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [
            name
            for name, module in self.layers.items()
            if module.values.requires_grad and not {id(module.values), id(module.trained)} <= owned
        ]
        if missing:
            raise ValueError(
                f"optimizer does not own the weights of {', '.join(missing)}; make it from model.parameters() after sparsify"
            )
        self.method.due(0)
        self._optimizer = optimizer
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        if all(module.values.device.type == "cpu" for module in self.layers.values()):
            self._memory.attach(optimizer)
        self._arm()
        return self

    def _arm(self) -> None:
        """Let layers collect evidence if the next step is one of a topology update."""
        armed = self._optimizer is not None and bool(self.method.needs) and self.method.due(self.step_count)
        for module in self.layers.values():
            module.collector = Collector(self.method.needs, module, self._generator) if armed else None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._updated = False
        if not (self.method.replaces_step and self.method.due(self.step_count)):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._replace_step(optimizer)
            return None

        def evaluated() -> Any:
            # The gradients of this step exist only once the closure has run.
            loss = closure()
            self._replace_step(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    def _replace_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._updated:
            self._update()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def _sum_gradients(self) -> None:
        """Keep the gradients of the steps before an update, where the method looks at more than the last."""
        ahead = range(self.method.gradient_steps)
        if len(ahead) > 1 and any(self.method.due(self.step_count + steps) for steps in ahead):
            for layer in self._layers.values():
                layer.add_gradient()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._sum_gradients()
        if not self._updated and self.method.due(self.step_count):
            self._update()
        else:
            self._gather()
        if self.method.home == "dense" and self.method.settled(self.step_count):
            self._settle(optimizer)
        self.step_count += 1
        self._arm()

    def _gather(self) -> None:
        """Let the layers compute with the weights that the optimizer has just moved."""
        for module in self.layers.values():
            if module.has_master:
                module.gather()

    @torch.no_grad()
    def _settle(self, optimizer: torch.optim.Optimizer) -> None:
        for layer in self._layers.values():
            if layer.module.has_master:
                layer.settle(optimizer)

    @torch.no_grad()
    def _update(self) -> None:
        """Propose and revise; a layer that no gradient reached since it was armed keeps its topology."""
        self._updated = True
        ready = {
            name: layer
            for name, layer in self._layers.items()
            if layer.module.values.requires_grad
            and (not self.method.needs or (layer.module.collector is not None and not layer.module.collector.empty))
        }
        proposals = self.method.propose(self.step_count, ready)
        assert self._optimizer is not None
        changes = {}
        for name, proposal in proposals.items():
            layer = ready[name]
            if isinstance(proposal, Selection):
                changes[name] = layer.select(proposal.density)
            else:
                changes[name] = layer.revise(proposal, self._optimizer.state.get(layer.module.values, {}))
            layer.module.collector = None
        self.last_update, self.last_update_step = changes, self.step_count

    def state_dict(self) -> dict[str, Any]:
        """Topology, step and random state, as tensors and plain values (``torch.load(weights_only=True)`` reads it).

        Values lie in the model's ``state_dict``, optimizer state in the optimizer's; the three may be loaded in any order.
        """
        return {
            "step_count": self.step_count,
            "generator": self._generator.get_state(),
            "layers": {
                name: {
                    "layout": repr(layer.layout),
                    "count": layer.count,
                    "shape": list(layer.shape),
                    **{key: getattr(layer.module, key).clone() for key in ("rows", "offsets", "cols")},
                    **({} if layer.selected is None else {"density": layer.selected}),
                    **({} if layer.gradients is None else {"gradients": layer.gradients._asdict()}),
                }
                for name, layer in self._layers.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over topology, step and random state; all of it is checked before anything is changed.

        Raises:
            ValueError: the state is of another model or layout, or incomplete.
        """
        checked = check_state(state, self._layers)
        for name, pattern in checked.patterns.items():
            layer = self._layers[name]
            if not same_pattern(pattern, layer.now):
                values = layer.module.values.detach()
                layer.module.replace(pattern, carried(values.cpu(), layer.now, pattern).to(values.device))
            layer.count = checked.counts[name]
            layer.gradients, layer.selected = checked.gradients[name], checked.selected[name]
        self._generator.set_state(checked.generator)
        self.step_count = checked.step_count
        self.last_update, self.last_update_step = {}, None
        self._arm()

    def report(self) -> Report:
        """Layer by layer: layout, kernel, density asked and got, bytes; prints as a table."""
        return build_report(self._layers, self._dense, self._order, self._memory.advice)


def sparsify(
    model: nn.Module,
    *,
    sparsity: float,
    layout: LayoutRule | str,
    method: Method | str,
    budget: str | Budget | Mapping[str, float] = "erk",
    exclude: Sequence[str] = (),
    force: Sequence[str] = (),
    densities: Mapping[str, float] | None = None,
    seed: int = 0,
    loss: Callable[..., Any] | None = None,
    batch: Any = None,
    kernel: str | None = None,
) -> Sparsity:
    """Swap every eligible ``nn.Linear`` and ``nn.Conv2d`` of ``model`` for a sparse one, in place.

    The active weights keep the values they have; all others cease to exist.  Grouped and depthwise convolutions, tied weights,
    subclasses and layers smaller than a unit of the layout stay dense and are named in the report.  Make the optimizer after
    this call.

    Args:
        model: any module.
        sparsity: share of zeros over the sparsified weights, strictly between 0 and 1; exact to one unit of the layout per
            layer.
        layout: where non-zeros may lie, an object or a string such as ``"shuffled_block(16, 16)"``.
        method: what changes the topology, an object or a string such as ``"rigl"``.
        budget: how the sparsity is shared among layers: ``"erk"``, ``"uniform"``, ``"uniform_dense_first"``,
            ``"erdos_renyi"``, ``"proportional"``, a function ``(shapes, sparsity, fixed=...) -> densities`` such as
            ``FixedRatio``, or a density for every layer by name or glob.
        exclude: names or globs of layers to leave dense.
        force: names or globs of layers to make sparse although they are grouped or smaller than a unit.
        densities: densities fixed by name or glob; the other layers make up for them.
        seed: of the random topology; the global random state is neither read nor changed.
        loss: for methods that look at data before training.
        batch: the data for it.
        kernel: ``"reference"``, ``"cpu"``, or None for the fastest there is.  ``"auto"`` times that one against the dense
            product (forward and backward, unpacking included) when a layer first sees an input of a shape, and takes the
            faster from then on; the report shows both times.  Where that is the dense one, the dense weight and its gradient
            are allocated while it computes.  The choice depends on the machine, so that two runs may differ by rounding.

    Returns:
        What holds the topology together; call its ``attach(optimizer)``.

    Raises:
        ValueError: an argument is out of range, unknown or cannot be met; ``model`` is then as it was.
        TypeError: an argument is of a wrong type; the same holds.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a torch.nn.Module")
    if not is_number(sparsity) or not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r} must be a number strictly between 0 and 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} must be an integer")
    layout = resolve("layout", layout, LayoutRule, layouts_package)  # type: ignore[type-abstract]
    method = resolve("method", method, Method, methods_package)  # type: ignore[type-abstract]
    dense_layers, left = survey(model, layout, exclude, force)
    order = [name for name, module in model.named_modules() if name in dense_layers or name in left]
    modules = dict(model.named_modules())
    shapes = {name: tuple(module.weight.shape) for name, module in dense_layers.items()}
    own = {name: layout.for_layer(name, dims) for name, dims in shapes.items()}
    only = {name: one.density for name, one in own.items() if one.density is not None}
    shares = densities_of(shapes, float(sparsity), budget, densities, only)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, SparseLayer] = {}
    for name, module in dense_layers.items():
        choose(module.weight.device, module.weight.dtype, kernel)
        place = own[name]
        first = shares[name] if method.home == "dense" else method.initial_density(shares[name])
        count = place.fit(shapes[name], first)
        if count == 0 and shares[name] > 0:
            raise ValueError(f"sparsity={sparsity} leaves {name!r} of shape {shapes[name]} without a single unit of {place!r}")
        pattern = place.initial(shapes[name], count, module.weight, generator)
        sparse = SPARSE_TYPES[type(module)].from_dense(module, pattern, kernel)  # type: ignore[arg-type]
        layers[name] = SparseLayer(name, sparse, place, count, shares[name], generator)
        if method.home == "dense":
            assert isinstance(module.weight, nn.Parameter)
            layers[name].keep_all(module.weight, method.initial_density(shares[name]))
    swap(model, {dense_layers[name]: layer.module for name, layer in layers.items()})
    return Sparsity(layers, method, generator, {name: (modules[name], reason) for name, reason in left.items()}, order)
