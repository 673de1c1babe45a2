"""What a batch that fills no whole vectors or panels costs: time per sample relative to a full batch.

    python benchmarks/tails.py

Forward and both gradients through the public operators, in plain tensors, as ``kernels.py`` has them, at one sparsity.  A batch
that costs as much per sample as the first one stands at 1.00.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import HEIGHTS, Conv, Linear, check, random_pattern
from timing import RESULTS, WARM, interleaved, report, warm_allocator

BATCHES = (128, 100, 33)
LAYERS: tuple[Linear | Conv, ...] = (
    Linear(1024, 1024, 0), Linear(2048, 2048, 0), Conv(64, 64, 32, 1, 0), Conv(128, 128, 16, 1, 0), Conv(256, 256, 8, 1, 0),
    Conv(512, 512, 4, 1, 0),
)  # fmt: skip


def measure(layer: Linear | Conv, sparsity: float, repeats: int) -> list[tuple[Any, ...]]:
    """One row for each layout."""
    functions: dict[Any, Callable[[], Any]] = {}
    for name, height in HEIGHTS.items():
        pattern = random_pattern(layer.matrix, height, 1 - sparsity)
        values = torch.randn(pattern.value_shape).requires_grad_()
        for batch in BATCHES:
            sized = layer._replace(batch=batch)
            x, g = sized.tensors()
            check(sized, x, g, values, pattern)
            functions[name, batch] = step(sized, x.requires_grad_(), g, values, pattern)
    times = interleaved(functions, repeats, warm=WARM)
    rows = []
    for name in HEIGHTS:
        per_sample = [times[name, batch] / batch for batch in BATCHES]
        relative = [cost / per_sample[0] for cost in per_sample[1:]]
        rows.append((str(layer).rsplit(" ", 1)[0], name, *(times[name, batch] for batch in BATCHES), *relative))
    return rows


def step(layer: Linear | Conv, x: torch.Tensor, g: torch.Tensor, values: torch.Tensor, pattern: Any) -> Callable[[], Any]:
    """Forward, input gradient and weight gradient."""
    return lambda: torch.autograd.grad(layer.sparse(x, values, pattern), (x, values), g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("linear", "conv"), help="one kind of layer")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for tails.csv and tails.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows: list[tuple[Any, ...]] = []
    for layer in LAYERS:
        if arguments.only in (None, type(layer).__name__.lower()):
            rows += measure(layer, arguments.sparsity, arguments.repeats)
    columns = ("layer", "layout", *(f"B{batch} ms" for batch in BATCHES), *(f"B{batch} x" for batch in BATCHES[1:]))
    name = "tails" if arguments.only is None else f"tails-{arguments.only}"
    title = f"Forward and backward at sparsity {arguments.sparsity:g} (medians; x = time per sample relative to B{BATCHES[0]})"
    report(name, title, columns, rows, arguments.output)


if __name__ == "__main__":
    warm_allocator()
    main()
