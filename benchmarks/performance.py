"""How much faster than dense, over sparsity: single layers and whole training steps, with the sparsity from which it pays.

    python benchmarks/performance.py

Dense is the fastest dense way of ``kernels.py`` and ``step.py``, which take the times here too.  Layers: forward, input
gradient and weight gradient, from and to plain tensors.  Steps: forward, backward and SGD with momentum.  All sparsities,
layouts and dense ways of one layer or model take turns.  ``from`` is the sparsity at which the curve, interpolated, crosses
dense for good; ``vectors 4`` are 4 x 1 blocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kernels
import step
import torch
from plots import plt, save
from timing import RESULTS, report, warm_allocator

import openwork as ow

SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
LAYERS = (*kernels.CONVS[:4], *kernels.LINEARS[1:3])
MODELS = ("resnet18", "wrn22-2", "vgg16")
LAYOUTS: step.Layouts = {
    "blocks 16": lambda: ow.layouts.ShuffledBlock(16, 16),
    "vectors 4": lambda: ow.layouts.Block(4, 1),
    "unstructured": lambda: ow.layouts.Unstructured(),
}
ALMOST_DENSE = 1e-9
"""``sparsify`` wants some sparsity; rounded up to whole units, this leaves every weight."""

Curve = tuple[str, str, float, list[float]]
"""A layer or model, its layout, dense milliseconds, and how many times faster at each sparsity."""


def layer_curves(layers: Sequence[Any], sparsities: Sequence[float], repeats: int) -> list[Curve]:
    """Forward and backward of single layers."""
    found = []
    for layer in layers:
        # A row of ``kernels.measure``: layer, sparsity, layout, four times, and how much faster forward and all of it are.
        rows = kernels.measure(layer, sparsities, repeats)
        found += [_curve(str(layer), layout, [r for r in rows if r[2] == layout], dense=4) for layout in kernels.HEIGHTS]
    return found


def step_curves(models: Sequence[str], sparsities: Sequence[float], budget: str, repeats: int) -> list[Curve]:
    """Whole training steps."""
    found = []
    for model in models:
        asked = [max(sparsity, ALMOST_DENSE) for sparsity in sparsities]
        rows = step.measure(model, step.TASKS[model], asked, budget, repeats, LAYOUTS)
        found += [_curve(model, layout, [r for r in rows if r[2] == layout], dense=3) for layout in LAYOUTS]
    return found


def _curve(name: str, layout: str, rows: list[tuple[Any, ...]], dense: int) -> Curve:
    return name, layout, rows[0][dense], [row[-1] for row in rows]


def break_even(sparsities: Sequence[float], faster: Sequence[float]) -> float | None:
    """The sparsity from which on sparse is faster than dense, interpolated; None if it is not even at the last.

    0.0 where it is faster throughout.
    """
    slower = [i for i, ratio in enumerate(faster) if ratio < 1]
    if not slower:
        return 0.0
    i = slower[-1]
    if i == len(faster) - 1:
        return None
    part = (1 - faster[i]) / (faster[i + 1] - faster[i])
    return sparsities[i] + part * (sparsities[i + 1] - sparsities[i])


def write(name: str, title: str, what: str, curves: list[Curve], sparsities: Sequence[float], output: Path) -> None:
    """A table, with a column for each sparsity, and a plot."""
    columns = (what, "layout", "dense ms", *(f"x at {s:g}" for s in sparsities), "from")
    rows = []
    for curve in curves:
        start = break_even(sparsities, curve[3])
        rows.append((*curve[:3], *curve[3], "never" if start is None else "always" if start == 0 else start))
    report(name, title, columns, rows, output)
    plot(curves, sparsities, output / f"{name}.svg")


def plot(curves: list[Curve], sparsities: Sequence[float], path: Path) -> None:
    """Speed-up over sparsity, a panel for each layer or model, with what fewer multiplications alone would give."""
    names = list(dict.fromkeys(curve[0] for curve in curves))
    wide = min(3, len(names))
    high = -(-len(names) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(4 * wide, 3.6 * high), layout="constrained", squeeze=False, sharey=True)
    ticks = range(len(sparsities))
    for axis, name in zip(axes.flat, names, strict=False):
        for _, layout, _, faster in (curve for curve in curves if curve[0] == name):
            axis.plot(ticks, faster, marker=".", label=layout)
        axis.plot(ticks, [1 / (1 - s) for s in sparsities], color="grey", linestyle=":", label="1 / density")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylim(0.25, 64)
        axis.set_xticks(ticks, [f"{s:g}" for s in sparsities])
        axis.set_title(name, fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("times faster than dense")
    for axis in axes[-1]:
        axis.set_xlabel("sparsity")
    axes[0, 0].legend(fontsize="small")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one convolution, one linear layer and WRN-22-2, few repeats")
    parser.add_argument("--only", choices=("layers", "steps"), help="one of the two tables")
    parser.add_argument("--models", nargs="+", choices=list(step.TASKS), default=list(MODELS))
    parser.add_argument("--budget", choices=("erk", "uniform"), default="erk", help="how sparsity is spread over the layers")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for performance-layers.* and performance-steps.*")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layers, models, sparsities, repeats = LAYERS, arguments.models, SPARSITIES, arguments.repeats
    if arguments.quick:
        layers, models, sparsities, repeats = (LAYERS[3], LAYERS[4]), ["wrn22-2"], (0.0, 0.5, 0.9), 3
    made: dict[str, Callable[[], None]] = {
        "layers": lambda: write(
            "performance-layers",
            "Single layers, forward and backward, against the fastest dense way (medians; x = times faster)",
            "layer",
            layer_curves(layers, sparsities, repeats),
            sparsities,
            arguments.output,
        ),
        "steps": lambda: write(
            "performance-steps",
            f"Training steps against the fastest dense way (medians; budget {arguments.budget}; x = times faster)",
            "model",
            step_curves(models, sparsities, arguments.budget, repeats),
            sparsities,
            arguments.output,
        ),
    }
    for name, make in made.items():
        if arguments.only in (None, name):
            make()


if __name__ == "__main__":
    warm_allocator()
    main()
