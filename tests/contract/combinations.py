"""Every layout, method and backend there is, found by their public names, and a small training run of each combination."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import openwork as ow
from openwork.kernels import available
from openwork.pattern import Pattern

LAYOUT_ARGUMENTS: dict[str, list[tuple[object, ...]]] = {
    "Block": [(4, 4), (2, 5), (5, 1)],
    "ShuffledBlock": [(4, 4), (3, 2)],
    "OutVector": [(4,), (4, True), (3, True, "group")],
    "KernelPattern": [(), ("mest-release",)],
    "PerLayer": [({"3x3": "channel", "conv": "block(4, 1)", "inner": "unstructured", "linear": "shuffled_block(4, 4)"},)],
    "TransposableNM": [(1, 2), (2, 5, "greedy")],
    "NM": [(2, 4), (1, 3)],
    "Complementary": [(2, 3), (4, 2, "out")],
}
"""Other layouts are made with 4 for every argument that has no default."""

METHOD_OPTIONS: dict[str, list[dict[str, object]]] = {
    "CSTraining": [{"end": 5}],
    "GSE": [{}, {"sampling": "grabo", "subset": 0.5}, {"sampling": "graest"}],
    "MEST": [
        {},
        {"mode": "soft", "end": 5, "mutation": 0.3},
        {"mode": "constant", "relative": False, "mutation": 0.05, "gradient_steps": 2},
    ],
    "DSB": [
        {},
        {"lift": "mean", "regroup": 2, "norm": "l2"},
        {"grow": "gradient", "regroup": False, "block_aware": False, "regrow": False},
    ],
}
"""Other methods are made with their defaults."""

INTERVAL = 2


def concrete(package: object, base: type) -> list[type]:
    """The public classes of a package that derive from ``base`` and can be made."""
    found = [getattr(package, name) for name in package.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)]


def layouts() -> list[ow.layouts.LayoutRule]:
    """At least one of every public layout."""
    made = []
    for kind in concrete(ow.layouts, ow.layouts.LayoutRule):
        required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        made += [kind(*arguments) for arguments in LAYOUT_ARGUMENTS.get(kind.__name__, [(4,) * len(required)])]
    return made


def methods() -> list[Callable[[], ow.methods.Method]]:
    """A maker for at least one of every public method, updating every ``INTERVAL`` steps where it has that option."""
    made = []
    for kind in concrete(ow.methods, ow.methods.Method):
        known = inspect.signature(kind).parameters
        common = {name: value for name, value in (("interval", INTERVAL), ("end", 1000)) if name in known}
        made += [_maker(kind, {**common, **options}) for options in METHOD_OPTIONS.get(kind.__name__, [{}])]
    return made


def _maker(kind: type, options: dict[str, object]) -> Callable[[], ow.methods.Method]:
    def make() -> ow.methods.Method:
        return kind(**options)

    given = ", ".join(f"{name}={value}" for name, value in options.items() if name not in ("interval", "end"))
    make.label = f"{kind.__name__}({given})"
    return make


LAYOUTS = layouts()
METHODS = methods()
BACKENDS = available()


class Net(nn.Module):
    """Three convolutions and three linear layers; no size divides by another, and one layer is met twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.middle = nn.Conv2d(10, 9, 3, padding=1)
        self.second = nn.Conv2d(9, 13, (2, 3), stride=2, dilation=(1, 2))
        self.inner = nn.Linear(13 * 6, 22)
        self.again = nn.Linear(22, 22)
        self.square = nn.Conv2d(10, 10, 3, padding=1)
        self.last = nn.Linear(22, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = torch.tanh(self.middle(torch.tanh(self.square(x))))
        x = torch.tanh(self.second(x)).flatten(1)
        x = torch.tanh(self.inner(x))
        return self.last(torch.tanh(self.again(torch.tanh(self.again(x)))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The same inputs and targets for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(6, 3, 7, 8, generator=generator), torch.randint(7, (6,), generator=generator)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "hoarder": lambda p: Hoarder(p),
}


class Hoarder(torch.optim.Optimizer):
    """Keeps state of several types, shaped like the parameter and not, under names that nobody knows."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["sums"] = torch.zeros_like(p, dtype=torch.float64)
                    state["signs"] = torch.zeros_like(p, dtype=torch.int64)
                    state["seen"] = torch.zeros_like(p, dtype=torch.bool)
                    state["scale"] = torch.ones(3)
                    state["count"] = 0
                state["sums"] += p.grad
                state["signs"] += p.grad.sign().long() * 2 + 1
                state["seen"] |= True
                state["count"] += 1
                p -= group["lr"] * (p.grad + 0.1 * state["sums"].to(p))


@dataclass
class Run:
    """A model in training."""

    model: Net
    sparsity: ow.Sparsity
    optimizer: torch.optim.Optimizer

    def step(self, index: int) -> float:
        """One step of an ordinary loop."""
        x, y = batch(index)
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def refused(layout: ow.layouts.LayoutRule, method: ow.methods.Method) -> bool:
    """Whether ``sparsify`` refuses the two together."""
    if method.home == "dense":
        # What begins dense has to be had at every density; kernel patterns hold 4/9 at most.
        own = layout.for_layer("", (60, 60, 3, 3))
        return (own.density is not None and len(own.rungs((60, 60, 3, 3))) == 1) or isinstance(layout, ow.layouts.KernelPattern)
    return layout.for_layer("", (60, 60, 3, 3)).density is not None and method.initial_density(0.25) != 0.25


def default_sparsity(layout: ow.layouts.LayoutRule) -> float:
    """0.7, or the only sparsity that there is."""
    only = layout.for_layer("", (60, 60, 3, 3)).density
    return 0.7 if only is None else 1 - only


def start(
    layout: ow.layouts.LayoutRule,
    method: ow.methods.Method,
    kernel: str,
    *,
    optimizer: str = "sgd",
    seed: int = 0,
    sparsity: float | None = None,
    attach: bool = True,
) -> Run:
    """A fresh run; its dense initial weights are always the same."""
    if refused(layout, method):
        pytest.skip("refused: the layout has one density")
    sparsity = default_sparsity(layout) if sparsity is None else sparsity
    torch.manual_seed(7)
    model = Net()
    sparse = ow.sparsify(model, sparsity=sparsity, layout=layout, method=method, budget="uniform", seed=seed, kernel=kernel)
    made = OPTIMIZERS[optimizer](list(model.parameters()))
    if attach:
        sparse.attach(made)
    return Run(model, sparse, made)


def by_position(pattern: Pattern, tensor: Tensor) -> dict[int, object]:
    """Flat position -> the entry that a ``[K, h]`` tensor holds for it, worked out from the raw index tensors."""
    found: dict[int, object] = {}
    rows, offsets, cols = pattern.rows.tolist(), pattern.offsets.tolist(), pattern.cols.tolist()
    entries = tensor.detach().tolist()
    for g, members in enumerate(rows):
        for k in range(offsets[g], offsets[g + 1]):
            for r, entry in zip(members, entries[k], strict=True):
                if r >= 0:
                    assert r * pattern.shape[1] + cols[k] not in found
                    found[r * pattern.shape[1] + cols[k]] = entry
    return found


def positions(pattern: Pattern) -> set[int]:
    """The flat positions of all active weights."""
    return set(by_position(pattern, torch.zeros(pattern.value_shape)))
