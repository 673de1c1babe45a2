"""Whole training steps: forward, backward and SGD with momentum, sparse against the fastest dense.

    python benchmarks/step.py
    python benchmarks/step.py --dtype bfloat16

Dense is the better of NCHW and channels_last.  The topology is fixed while the steps are timed.  Before a model is timed, its
output is compared with that of its own dense copy; a wrong result stops the benchmark.  With ``--dtype bfloat16`` all models
compute their outputs under autocast to it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import RESULTS, assert_right, interleaved, report, warm_allocator
from torch import Tensor, nn

import openwork as ow
from openwork.models import MLP, VGG, CifarResNet18, WideResNet

Layouts = Mapping[str, Callable[[], ow.layouts.Layout]]
LAYOUTS: Layouts = {
    "shuffled blocks 16": lambda: ow.layouts.ShuffledBlock(16, 16),
    "unstructured": lambda: ow.layouts.Unstructured(),
}
COLUMNS = ("model", "sparsity", "layout", "dense ms", "sparse ms", "x")


class Task(NamedTuple):
    """A model and the shape of its input."""

    model: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]


TASKS = {
    "resnet18": Task(CifarResNet18, 128, (3, 32, 32)),
    "wrn22-2": Task(lambda: WideResNet(22, 2), 128, (3, 32, 32)),
    "vgg16": Task(VGG, 128, (3, 32, 32)),
    "mlp": Task(lambda: MLP(2048, (2048, 2048)), 512, (2048,)),
}


def stepper(model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """One optimizer step on the same batch every time; autocast to ``dtype`` unless that is float32."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(x)
        F.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def check(name: str, model: nn.Module, x: Tensor) -> None:
    """The sparse model against its own dense copy, in eval mode."""
    dense = ow.densify(copy.deepcopy(model))
    assert_right(name, model.eval()(x), dense.eval()(x), 1e-3)


def measure(
    name: str,
    task: Task,
    sparsities: Sequence[float],
    budget: str,
    repeats: int,
    layouts: Layouts = LAYOUTS,
    dtype: torch.dtype = torch.float32,
) -> list[tuple[Any, ...]]:
    """One row for each sparsity and layout."""
    torch.manual_seed(0)
    x, labels = torch.randn(task.batch, *task.shape), torch.randint(0, 10, (task.batch,))
    functions: dict[Any, Callable[[], None]] = {"dense": stepper(task.model(), x, labels, dtype)}
    if x.dim() == 4:
        order = torch.channels_last
        ordered = task.model().to(memory_format=order), x.to(memory_format=order)
        functions["dense channels_last"] = stepper(*ordered, labels, dtype)
    ways = list(functions)
    for sparsity in sparsities:
        for title, layout in layouts.items():
            model = task.model()
            ow.sparsify(model, sparsity=sparsity, layout=layout(), method=ow.methods.Static(), budget=budget)
            check(f"{name} at {sparsity:g}, {title}", model, x)
            functions[sparsity, title] = stepper(model, x, labels, dtype)
    times = interleaved(functions, repeats)
    dense = min(times[way] for way in ways)
    return [
        (name, f"{sparsity:g}", title, dense, times[sparsity, title], dense / times[sparsity, title])
        for sparsity in sparsities
        for title in layouts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the MLP and WRN-22-2 at 0.9, few repeats")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budget", choices=("erk", "uniform"), default="erk", help="how sparsity is spread over the layers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: outputs under autocast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for step.csv and step.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ["mlp", "wrn22-2"] if arguments.quick else arguments.models
    sparsities, repeats = ([0.9], 3) if arguments.quick else ([0.5, 0.75, 0.9, 0.95], arguments.repeats)
    rows: list[tuple[Any, ...]] = []
    for name in names:
        rows += measure(name, TASKS[name], sparsities, arguments.budget, repeats, dtype=getattr(torch, arguments.dtype))
    under = "" if arguments.dtype == "float32" else " under autocast to bfloat16"
    title = f"Training steps{under}, sparse against the fastest dense (medians; budget {arguments.budget}; x = times faster)"
    parts = [
        "step",
        *([arguments.dtype] if under else []),
        *(names if names != list(TASKS) else []),
        *([] if arguments.budget == "erk" else [arguments.budget]),
    ]
    report("-".join(parts), title, COLUMNS, rows, arguments.output)


if __name__ == "__main__":
    warm_allocator()
    main()
