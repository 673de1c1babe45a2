"""Peak resident memory of training steps, dense and sparse, and what stays when the model is gone.

    python benchmarks/memory.py

Every figure comes from a process of its own: it imports everything and runs a small product, which is the ``interpreter``;
makes model, batch and optimizer; resets the system's high-water mark and takes three steps (forward, backward, SGD with
momentum).  ``peak`` is that mark beyond the interpreter.  ``held`` is what weights, gradients, optimizer state and indices take
of it, counted tensor by tensor; nearly all of the rest are activations and temporaries.  ``left`` is what is still resident
when model, batch and optimizer are deleted, of which ``scratch`` is kept by openwork's kernels; ``released`` is what remains
once kernels and allocator (``malloc_trim``) were asked to give back what they keep.

The allocator is glibc's as it is (``default``), with the setting of the other benchmarks, by which it ``keeps`` what is freed,
or with one by which it ``returns`` every block of 1 MB or more to the system at once.  That one is slow and leaves no gaps
between blocks: its peak is what the steps need, and what the others show beyond it is theirs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from step import LAYOUTS, TASKS, stepper
from timing import ALLOCATOR, RESULTS, report
from torch import nn

import openwork as ow
from openwork.kernels import cpu

STEPS = 3
ALLOCATORS = {"default": {}, "keeps": ALLOCATOR, "returns": {"MALLOC_MMAP_THRESHOLD_": str(2**20)}}
DENSE = ("dense", "dense channels_last")
MEGA = 1e6
COLUMNS = (
    "model",
    "way",
    "allocator",
    "interpreter MB",
    "peak MB",
    "held MB",
    "left MB",
    "scratch MB",
    "released MB",
    "peak / dense",
)


class Figures(NamedTuple):
    """Bytes; ``peak``, ``left`` and ``released`` are those beyond the interpreter's."""

    interpreter: int
    peak: int
    held: int
    left: int
    scratch: int
    released: int


def status(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"this system's /proc/self/status has no {field}")


def reset_peak() -> bool:
    """Let the high-water mark start from what is resident now; False where this is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release() -> None:
    """Give back what the kernels keep, and what the allocator does where it is glibc's."""
    cpu.release_scratch()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def take(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> int:
    """Some steps; the bytes of the weights and of everything of their shape."""
    step = stepper(model, x, labels)
    for _ in range(STEPS):
        step()
    counted = ow.analysis.memory(model)
    # ``stepper`` keeps the optimizer to itself: momentum and gradient are as large as the parameters.
    return 3 * counted.weights + counted.indices + counted.buffers


def measure(name: str, way: str, sparsity: float) -> Figures:
    """All of it, in this process; nothing large may have been there before."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10))
    if way not in DENSE:
        ow.sparsify(tiny, sparsity=0.5, layout=LAYOUTS[way](), method="static")
    take(tiny, torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    del tiny
    gc.collect()
    release()
    interpreter = status("VmRSS")
    task = TASKS[name]
    model, x, labels = task.model(), torch.randn(task.batch, *task.shape), torch.randint(0, 10, (task.batch,))
    if way not in DENSE:
        ow.sparsify(model, sparsity=sparsity, layout=LAYOUTS[way](), method="static")
    elif way == DENSE[1]:
        order = torch.channels_last
        model, x = model.to(memory_format=order), x.to(memory_format=order)  # type: ignore[call-overload]
    gc.collect()
    release()
    if not reset_peak():
        print(f"{name}, {way}: the high-water mark cannot be reset, so making the model counts too", file=sys.stderr)
    held = take(model, x, labels)
    peak = status("VmHWM")
    del model, x, labels
    gc.collect()
    left, scratch = status("VmRSS"), cpu.scratch_bytes()
    release()
    return Figures(interpreter, peak - interpreter, held, left - interpreter, scratch, status("VmRSS") - interpreter)


def in_a_process(name: str, way: str, sparsity: float, allocator: str, threads: int) -> Figures:
    """The same in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key not in ALLOCATOR} | ALLOCATORS[allocator]
    command = [sys.executable, __file__, "--one", name, way, "--sparsity", str(sparsity), "--threads", str(threads)]
    # Its warning about the allocator's setting is what this benchmark shows.
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Figures(*json.loads(done.stdout))


def rows_of(name: str, sparsity: float, allocators: list[str], threads: int) -> list[tuple[Any, ...]]:
    """One row for each way and allocator; ratios are to the leaner dense way with the same allocator."""
    ways = [way for way in (*DENSE, *LAYOUTS) if len(TASKS[name].shape) == 3 or way != DENSE[1]]
    rows = []
    for allocator in allocators:
        found = {way: in_a_process(name, way, sparsity, allocator, threads) for way in ways}
        least = min(found[way].peak for way in ways if way in DENSE)
        for way, figures in found.items():
            title = way if way in DENSE else f"{way}, {sparsity:g}"
            rows.append((name, title, allocator, *(round(value / MEGA) for value in figures), figures.peak / least))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="WRN-22-2 and the default allocator alone")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for memory.csv, memory.md and memory.json")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.sparsity)))
        return
    names, allocators = (["wrn22-2"], ["default"]) if arguments.quick else (arguments.models, list(ALLOCATORS))
    rows = [row for name in names for row in rows_of(name, arguments.sparsity, allocators, arguments.threads)]
    report("memory", "Peak resident memory of training steps, beyond the interpreter's own", COLUMNS, rows, arguments.output)


if __name__ == "__main__":
    main()
