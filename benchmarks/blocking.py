"""What the re-blocking of DSB costs, as a share of training time.

    python benchmarks/blocking.py

ResNet-18 of CIFAR size is trained with an update in every third step, so that the parts of an update are timed where they
happen, with caches as training leaves them:

- *grouping*: which rows share a group (similarity, clustering, cut);
- *blocking*: grouping, ranking of columns and choice of blocks, what the paper calls blocking;
- *update*: scores, search for new blocks, drop, blocking, and the move of weights and optimizer state;
- *extra*: how much longer the step of an update and the one after it take than two plain ones.  Beyond the update that is the
  evidence collected and a pattern new to the kernels, less the optimizer's step, which the update replaces.

Shares are of the time that training takes with an update every 100 steps.  Times are medians; those of parts are medians by
layer, and their sum over the layers.  A run whose topology did not move, or a layer that was not blocked anew, stops the
benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from plots import plt, save
from timing import RESULTS, interleaved, report, warm_allocator
from topology import BATCH, TASKS, Run, Way, begin, moved

from openwork.layouts import ShuffledBlock, shuffled_block
from openwork.methods import DSB
from openwork.update import SparseLayer

EVERY = 100  # steps between two updates, as in the paper
BLOCKS = (8, 16, 32)
SPARSITIES = (0.5, 0.7, 0.9)
COLUMNS = (
    "block", "sparsity", "plain ms", "grouping ms", "blocking ms", "update ms", "extra ms",
    "grouping %", "blocking %", "update %", "extra %",
)  # fmt: skip
LAYER_COLUMNS = ("block", "sparsity", "layer", "rows", "columns", "grouping ms", "blocking ms", "update ms")
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "grouping": ((shuffled_block, "group_rows"),),
    "blocking": ((ShuffledBlock, "project"),),
    "update": ((DSB, "propose_layer"), (SparseLayer, "revise")),
}


class Watch:
    """The milliseconds that every layer spends in each function of ``PARTS``, update by update."""

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self.taken: dict[tuple[str, str], list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note every call."""
        with contextlib.ExitStack() as stack:
            for part, places in PARTS.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, self._timed((part, name), getattr(owner, name))))
            yield

    def _timed(self, key: tuple[str, str], function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **more)
            self.taken[key].append(1e3 * (time.perf_counter() - start))
            return result

        return timed

    def medians(self, name: str, skip: int) -> dict[str, list[float]]:
        """Of every part a number for each layer, the first ``skip`` updates left out.

        Every update calls every function once for each layer, in the layers' order.
        """
        updates = {key: len(times) / self.n_layers for key, times in self.taken.items()}
        if len(updates) != sum(map(len, PARTS.values())) or len(set(updates.values())) != 1 or min(updates.values()) % 1:
            raise SystemExit(f"{name}: not every layer was blocked anew at every update, {updates}; no time is reported")
        result = {part: [0.0] * self.n_layers for part in PARTS}
        for (part, _), times in self.taken.items():
            for i in range(self.n_layers):
                result[part][i] += statistics.median(times[i + skip * self.n_layers :: self.n_layers])
        return result


class Measured(NamedTuple):
    """A row of the table and the rows of its layers."""

    row: tuple[Any, ...]
    layers: list[tuple[Any, ...]]


def measure(block: int, sparsity: float, repeats: int) -> Measured:
    """One model in training."""
    run: Run = begin(TASKS["resnet18"], Way(f"shuffled block {block}", "DSB", ShuffledBlock(block), DSB), sparsity)
    watch = Watch(len(run.sparsity.layers))
    with watch.watching():
        # Three entries that each take one step of the same run: the first of them is always the update.
        times = interleaved(dict.fromkeys(("update", "next", "plain"), run.step), repeats)
    name = f"blocks of {block} at {sparsity:g}"
    moved(run, name)
    parts = watch.medians(name, skip=1)  # ``interleaved`` warms up
    plain, extra = times["plain"], times["update"] + times["next"] - 2 * times["plain"]
    spent = [sum(layers) for layers in parts.values()]
    shares = [f"{100 * part / (EVERY * plain + extra):.3f}" for part in (*spent, extra)]
    layers = [
        (block, f"{sparsity:g}", layer, *module.shape, *(parts[part][i] for part in PARTS))
        for i, (layer, module) in enumerate(run.sparsity.layers.items())
    ]
    return Measured((block, f"{sparsity:g}", plain, *spent, extra, *shares), layers)


def plot(rows: list[tuple[Any, ...]], path: Path) -> None:
    """Shares of training time, one bar for each block size and sparsity, made up of what an update does."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    bars = [f"{row[0]} x {row[0]}\n{row[1]}" for row in rows]
    share = {name: [float(row[COLUMNS.index(f"{name} %")]) for row in rows] for name in PARTS}
    below = [0.0] * len(rows)
    labels = {"grouping": "row grouping", "blocking": "ranking and choice of blocks", "update": "the rest of the update"}
    for name, label in labels.items():
        axis.bar(bars, [total - start for total, start in zip(share[name], below, strict=True)], bottom=below, label=label)
        below = share[name]
    axis.set_ylabel(f"% of training time, an update every {EVERY} steps")
    axis.set_xlabel("block and sparsity, ResNet-18")
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="blocks of 16 at 0.9, few repeats")
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--repeats", type=int, default=3, help="updates timed for each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder for blocking.csv, .md and .svg, blocking-layers.csv and .md"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    blocks, sparsities = ([16], [0.9]) if arguments.quick else (arguments.blocks, arguments.sparsities)
    repeats = 2 if arguments.quick else arguments.repeats
    found = [measure(block, sparsity, repeats) for block in blocks for sparsity in sparsities]
    rows = [measured.row for measured in found]
    report(
        "blocking-layers",
        "Parts of a DSB update by layer (medians)",
        LAYER_COLUMNS,
        [r for m in found for r in m.layers],
        arguments.output,
    )
    title = (
        f"Re-blocking against training: DSB, ResNet-18, batch {BATCH} (medians; % of time with an update every {EVERY} steps)"
    )
    report("blocking", title, COLUMNS, rows, arguments.output)
    plot(rows, arguments.output / "blocking.svg")


if __name__ == "__main__":
    warm_allocator()
    main()
