"""What a topology update costs, in plain training steps.

    python benchmarks/topology.py

A plain step is forward, backward and SGD with momentum.  An update makes two steps longer: its own, in which evidence is
collected, weights are dropped and grown and optimizer state moves (with RigL, DSB and GSE it takes the place of SGD's step),
and the one after it, whose kernels meet a new pattern.  What both take beyond two plain steps is the cost of the update.

Every method updates in every third step, all runs taking turns, so that a slow moment of the machine hits all of them.  A run
whose topology did not move stops the benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from plots import plt, save
from timing import RESULTS, interleaved, report, warm_allocator
from torch import nn

import openwork as ow
from openwork.layouts import LayoutRule
from openwork.methods import DSB, GSE, MEST, SET, RigL
from openwork.methods.periodic import Periodic
from openwork.models import MLP, CifarResNet, CifarResNet18

INTERVAL = 3  # an update, the step after it, a plain one
SETTINGS: dict[str, Any] = {"interval": INTERVAL, "end": 10**9}
BATCH = 128
COLUMNS = (
    "model", "sparsity", "layout", "method", "moved %", "plain ms", "update ms", "next ms", "extra steps",
    "default interval", "% of time",
)  # fmt: skip


class Task(NamedTuple):
    """A model, the shape of one input and the block size that suits its layers."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    block: int


class Way(NamedTuple):
    """A method on a layout."""

    layout: str
    method: str
    rule: LayoutRule
    make: Callable[..., Periodic]


class Run(NamedTuple):
    """A sparse model in training."""

    step: Callable[[], None]
    sparsity: ow.Sparsity


TASKS = {
    "resnet18": Task(CifarResNet18, (3, 32, 32), 16),
    "resnet20": Task(lambda: CifarResNet(20), (3, 32, 32), 8),
    "mlp": Task(lambda: MLP(2048, (2048, 2048)), (2048,), 16),
}
SPARSITIES = (0.9, 0.98)


def ways(task: Task) -> dict[str, Way]:
    """What is timed on a model, by the names that ``--methods`` takes."""
    free, block = ow.layouts.Unstructured(), task.block
    shuffled, vector = ow.layouts.ShuffledBlock(block, block), ow.layouts.OutVector(block)
    known = {
        "set": Way("unstructured", "SET", free, SET),
        "rigl": Way("unstructured", "RigL", free, RigL),
        "mest-elastic": Way("unstructured", "MEST elastic", free, lambda **more: MEST("elastic", **more)),
        "mest-soft": Way("unstructured", "MEST soft", free, lambda **more: MEST("soft", **more)),
        "gse-uniform": Way("unstructured", "GSE uniform", free, lambda **more: GSE("uniform", **more)),
        "gse-grabo": Way("unstructured", "GSE GraBo", free, lambda **more: GSE("grabo", **more)),
        "gse-graest": Way("unstructured", "GSE GraEst", free, lambda **more: GSE("graest", **more)),
        "dsb": Way(f"shuffled block {block}", "DSB", shuffled, DSB),
        "rigl-vector": Way(f"vectors of {block}", "RigL", vector, RigL),
        "mest-channel": Way("channel", "MEST elastic", ow.layouts.Channel(), lambda **more: MEST("elastic", **more)),
    }
    if len(task.shape) == 3:
        pattern = ow.layouts.KernelPattern()
        known["mest-pattern"] = Way("pattern", "MEST elastic", pattern, lambda **more: MEST("elastic", **more))
    return known


NAMES = tuple(ways(TASKS["resnet18"]))


def begin(task: Task, way: Way, sparsity: float) -> Run:
    """A model in training, ``INTERVAL`` steps in: the next step is one of an update."""
    torch.manual_seed(0)
    x, labels = torch.randn(BATCH, *task.shape), torch.randint(0, 10, (BATCH,))
    model = task.model().train()
    # The fixed share of a kernel pattern is less than ERK asks of small layers.
    budget = "uniform" if isinstance(way.rule, ow.layouts.KernelPattern) else "erk"
    method = way.make(**SETTINGS)
    sparse = ow.sparsify(model, sparsity=sparsity, layout=way.rule, method=method, budget=budget)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    sparse.attach(optimizer)

    def step() -> None:
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(INTERVAL):
        step()
    return Run(step, sparse)


def moved(run: Run, name: str) -> float:
    """The share of the active weights that the newest update exchanged, in per cent."""
    sparsity = run.sparsity
    if sparsity.last_update_step != sparsity.step_count - INTERVAL:
        raise SystemExit(f"{name}: the last update was at step {sparsity.last_update_step} of {sparsity.step_count}")
    active = sum(module.pattern.nnz for module in sparsity.layers.values())
    grown = sum(change.grown for change in sparsity.last_update.values())
    if not grown:
        raise SystemExit(f"{name}: no weight moved in the last update; no time is reported")
    return 100 * grown / active


def measure(name: str, sparsity: float, methods: Sequence[str], repeats: int) -> list[tuple[Any, ...]]:
    """One row for each method."""
    known = {key: way for key, way in ways(TASKS[name]).items() if key in methods}
    runs = {key: begin(TASKS[name], way, sparsity) for key, way in known.items()}
    # Three entries that each take one step of the same run: the first of them is always the update.
    turns: Any = {(key, kind): run.step for key, run in runs.items() for kind in ("update", "next", "plain")}
    times: Any = interleaved(turns, repeats)
    rows = []
    for key, way in known.items():
        update, after, plain = (times[key, kind] for kind in ("update", "next", "plain"))
        extra = (update + after) / plain - 2
        interval = way.make().interval
        share = moved(runs[key], f"{name} at {sparsity:g}, {way.method} on {way.layout}")
        of_time = f"{100 * extra / (interval + extra):.3f}"
        rows.append((name, f"{sparsity:g}", way.layout, way.method, share, plain, update, after, extra, interval, of_time))
    return rows


def plot(rows: list[tuple[Any, ...]], path: Path) -> None:
    """Extra steps by method, a panel for each model, a bar for each sparsity."""
    models = list(dict.fromkeys(row[0] for row in rows))
    sparsities = list(dict.fromkeys(row[1] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(1.5 + 4 * len(models), 5), layout="constrained", squeeze=False)
    labels = list(dict.fromkeys(_label(row) for row in rows))
    for axis, model in zip(axes[0], models, strict=True):
        for i, sparsity in enumerate(sparsities):
            mine = {_label(row): row[COLUMNS.index("extra steps")] for row in rows if row[:2] == (model, sparsity)}
            at = [labels.index(label) + 0.8 * ((i + 0.5) / len(sparsities) - 0.5) for label in mine]
            axis.barh(at, list(mine.values()), height=0.8 / len(sparsities), label=f"sparsity {sparsity}", color=f"C{i}")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0][0] else [""] * len(labels))
        axis.invert_yaxis()
        axis.set_title(model)
        axis.set_xlabel("plain training steps for each update")
        axis.grid(axis="x", alpha=0.3)
    axes[0][-1].legend(fontsize="small")
    save(figure, path)


def _label(row: tuple[Any, ...]) -> str:
    layout = row[2].translate(str.maketrans("", "", "0123456789")).removesuffix(" of ").strip()
    return row[3] if layout == "unstructured" else f"{row[3]}, {layout}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the MLP and ResNet-20 at 0.98, few repeats")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--repeats", type=int, help="updates timed for each row; default: 3 of ResNet-18, 9 of the others")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for topology.csv, topology.md and topology.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models, sparsities = (["resnet20", "mlp"], [0.98]) if arguments.quick else (arguments.models, arguments.sparsities)
    rows: list[tuple[Any, ...]] = []
    for name in models:
        repeats = arguments.repeats or (3 if name == "resnet18" or arguments.quick else 9)
        for sparsity in sparsities:
            rows += measure(name, sparsity, arguments.methods, repeats)
    title = f"Topology updates against plain training steps (medians; batch {BATCH}; extra steps = (update + next) / plain - 2)"
    report("topology", title, COLUMNS, rows, arguments.output)
    plot(rows, arguments.output / "topology.svg")


if __name__ == "__main__":
    warm_allocator()
    main()
