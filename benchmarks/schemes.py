"""Sparsity schemes on one convolution (MEST, Figure 2): how much faster than dense, at which sparsity.

    python benchmarks/schemes.py

The convolution is 3 x 3 with 64-64 channels on 16 x 16 pixels: forward, input gradient and weight gradient through the public
operators, from and to NCHW, against the fastest dense way, taking turns.  Before a scheme is timed, its results are compared
with dense ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import Conv, Functions, check
from plots import plt, save
from timing import RESULTS, interleaved, report, warm_allocator

from openwork import layouts
from openwork.pattern import Pattern

LAYER = Conv(64, 64, 16, 1, 128)
DIMS = (64, 64, 3, 3)
SCHEMES: dict[str, layouts.LayoutRule] = {
    "unstructured": layouts.Unstructured(),
    "block 4 x 1": layouts.Block(4, 1),
    "pattern": layouts.KernelPattern(),
    "channel": layouts.Channel(),
    "filter": layouts.Filter(),
    "shuffled block 16": layouts.ShuffledBlock(16, 16),
}
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def pattern_of(rule: layouts.LayoutRule, sparsity: float) -> Pattern | None:
    """A random pattern, None where the scheme cannot be so dense."""
    layout = rule.for_layer("", DIMS)
    weight = torch.randn(DIMS)
    try:
        count = layout.fit(DIMS, 1 - sparsity)
    except layouts.LayoutError:
        return None
    return layout.initial(DIMS, count, weight, torch.Generator().manual_seed(0))


def measure(sparsities: tuple[float, ...], repeats: int) -> list[tuple[Any, ...]]:
    """One row for each scheme and sparsity."""
    x, g = LAYER.tensors()
    wanted = x.clone().requires_grad_()
    dense, sparse = LAYER.dense(x, g)[1], {}
    densities = {}
    for name, rule in SCHEMES.items():
        for sparsity in sparsities:
            pattern = pattern_of(rule, sparsity)
            if pattern is None:
                continue
            values = torch.randn(pattern.value_shape).requires_grad_()
            check(LAYER, x, g, values, pattern)
            densities[name, sparsity] = pattern.density
            sparse[name, sparsity] = _all_three(wanted, g, values, pattern)
    functions: Functions = {**dense, **sparse}  # type: ignore[dict-item]
    times = interleaved(functions, repeats)
    fastest = min(times[name] for name in dense)
    return [(name, f"{s:g}", 1 - densities[name, s], fastest, times[name, s], fastest / times[name, s]) for name, s in sparse]  # type: ignore[index]


def _all_three(x: torch.Tensor, g: torch.Tensor, values: torch.Tensor, pattern: Pattern) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(LAYER.sparse(x, values, pattern), (x, values), g)


def plot(rows: list[tuple[Any, ...]], path: Path) -> None:
    """Speed-up over sparsity."""
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for scheme in SCHEMES:
        mine = [row for row in rows if row[0] == scheme]
        axis.plot([row[2] for row in mine], [row[-1] for row in mine], marker=".", label=scheme)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("sparsity")
    axis.set_ylabel("times faster than dense, forward + backward")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sparsities, few repeats")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for schemes.csv, schemes.md and schemes.svg")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = measure((0.5, 0.7, 0.9) if arguments.quick else SPARSITIES, 3 if arguments.quick else arguments.repeats)
    columns = ("scheme", "sparsity asked", "sparsity", "dense ms", "ms", "x")
    report("schemes", f"Sparsity schemes on {LAYER} (medians; x = times faster)", columns, rows, arguments.output)
    plot(rows, arguments.output / "schemes.svg")


if __name__ == "__main__":
    warm_allocator()
    main()
