"""How the benchmarks take times and write them down."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from conditions import Conditions
from rich.console import Console
from rich.table import Table

from openwork.train.files import write_text

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
RESULTS = Path(__file__).parent / "results"
WARM = 4  # calls of a single layer in a turn
_conditions = Conditions()


def warm_allocator() -> None:
    """Start this program again with an allocator that keeps its pages; otherwise dense PyTorch mostly measures page faults."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 0) -> dict[str, float]:
    """Median milliseconds of each function; they take turns, so that a slow moment of the machine hits all of them.

    Every round has an order of its own: whoever follows another function finds in the caches what that one has left there.
    A turn during which the cores moved away from each other, or others wanted them, is taken again or left out: conditions.py.

    Args:
        functions: by name.
        repeats: rounds.
        warm: calls in a row whose mean is a turn's time, after one that does not count; 0: a turn is one call, which does.
    """
    for function in functions.values():
        function()
    turns: dict[str, list[tuple[float, bool]]] = {name: [] for name in functions}
    order = random.Random(0)
    for _ in range(repeats):
        for name, function in order.sample(list(functions.items()), len(functions)):
            turns[name].append(_conditions.watched(functools.partial(_turn, function, warm)))
    return {name: 1e3 * _median(taken) for name, taken in turns.items()}


def _median(turns: Sequence[tuple[float, bool]]) -> float:
    """Of the turns under good conditions, if that were half of them or more; else of all."""
    good = [taken for taken, undisturbed in turns if undisturbed]
    return statistics.median(good if 2 * len(good) >= len(turns) else [taken for taken, _ in turns])


def _turn(function: Callable[[], Any], warm: int) -> float:
    """Seconds of a call."""
    if warm:
        function()
    start = time.perf_counter()
    for _ in range(warm or 1):
        function()
    return (time.perf_counter() - start) / (warm or 1)


def assert_right(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Stop the benchmark before it reports the speed of a wrong result."""
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    if not error <= tolerance:
        raise SystemExit(f"{name}: differs from dense by {error:.2e} of the largest entry; no time is reported")


def machine() -> str:
    """Processor, threads, torch and commit, and under which conditions times were taken, for the head of a table of results."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} threads"
    found = f"{model} ({capability}), {threads}, torch {torch.__version__}, commit {commit or 'unknown'}"
    return f"{found}, {_conditions}" if _conditions.turns else found


def report(name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], output: Path = RESULTS) -> None:
    """Print a table and write it as ``name.csv``, ``name.md`` and ``name.json``, the last with nothing rounded."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in cells:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)  # a log file is not narrow
    console.print(table)
    output.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *cells])
    write_text(output / f"{name}.csv", text.getvalue())
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    content = {
        "title": title,
        "machine": machine(),
        "command": command,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    write_text(output / f"{name}.json", json.dumps(content, indent=1) + "\n")
    lines = [title, "", f"{content['machine']}.", "", f"`{command}`", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    write_text(output / f"{name}.md", "\n".join(lines) + "\n")
