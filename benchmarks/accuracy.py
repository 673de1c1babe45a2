"""Accuracy of sparse training on CIFAR-10: dense, static, DSB and RigL on several layouts, same seed and schedule.

    python benchmarks/accuracy.py --data FOLDER_OF_PARQUET_FILES --epochs 8

All convolutions but the first are sparse (ERK); batch 128, SGD momentum 0.9, weight decay 5e-4, one-cycle to 0.2,
pad-crop-flip; updates every 100 steps until 75 % of the training, drop fraction 0.3 with cosine decay.  Results are written
after every run, and a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.data import BatchLoader, Parquet
from openwork.models import CifarResNet, WideResNet

WARM = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
MODELS = {"resnet20": lambda: CifarResNet(20), "wrn22-2": lambda: WideResNet(22, 2)}


def methods(total_steps: int) -> dict[str, tuple[str, ow.methods.Method]]:
    """Name -> (layout, method)."""
    common: dict[str, Any] = {"interval": 100, "end": 0.75, "total_steps": total_steps, "drop_fraction": 0.3}
    block = "shuffled_block(8, 8)"
    return {
        "SSB-8": (block, ow.methods.Static()),
        "DSB-8 paper": (block, ow.methods.DSB(**common)),
        "DSB-8 mean": (block, ow.methods.DSB(lift="mean", **common)),
        "DSB-8 mean fixed rows": (block, ow.methods.DSB(lift="mean", regroup=False, **common)),
        "DSB-8 mean gradient": (block, ow.methods.DSB(lift="mean", grow="gradient", **common)),
        "RigL": ("unstructured", ow.methods.RigL(**common)),
        "RigL OutVector(8)": ("out_vector(8)", ow.methods.RigL(**common)),
        "RigL ShuffledBlock(8,8)": (block, ow.methods.RigL(**common)),
        "SET OutVector(8)": ("out_vector(8)", ow.methods.SET(**common)),
    }


def train(
    model: nn.Module, sparsity: ow.Sparsity | None, loaders: tuple[BatchLoader, BatchLoader], epochs: int
) -> dict[str, Any]:
    """Train and test every epoch; returns curves, median seconds per step and what the updates moved."""
    batches, tests = loaders
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * len(batches))
    if sparsity is not None:
        sparsity.attach(optimizer)
    curve, seconds, moved, evicted = [], [], 0, []
    for epoch in range(epochs):
        model.train()
        losses = []
        for x, y, _ in batches:
            begin = time.perf_counter()
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - begin)
            schedule.step()
            losses.append(loss.item())
            if sparsity is not None and sparsity.last_update_step == sparsity.step_count - 1:
                changes = sparsity.last_update.values()
                moved += sum(change.grown for change in changes)
                evicted.append(statistics.fmean(change.evicted_mass for change in changes))
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in tests)
        curve.append((statistics.fmean(losses), 100 * right / len(tests.images)))
        print(f"  epoch {epoch + 1}/{epochs}: loss {curve[-1][0]:.3f}, test {curve[-1][1]:.2f} %", flush=True)
    return {
        "curve": curve,
        "test": curve[-1][1],
        "loss": curve[-1][0],
        "ms_per_step": 1e3 * statistics.median(seconds),
        "grown": moved,
        "evicted_mass": statistics.fmean(evicted) if evicted else 0.0,
    }


def write(rows: list[dict[str, Any]], folder: Path, command: str) -> None:
    """CSV, Markdown and curves; each file appears whole or not at all."""
    fields = ["run", "sparsity", "seed", "test", "loss", "nnz", "ms_per_step", "grown", "evicted_mass", "curve"]
    with open(folder / "accuracy.csv.tmp", "w", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        table.writerows(rows)
    os.replace(folder / "accuracy.csv.tmp", folder / "accuracy.csv")
    head = "| run | sparsity | test % | final training loss | active weights | weights grown | evicted mass per update |"
    lines = [f"`{command}`", "", head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['run']} | {row['sparsity']} | {float(row['test']):.2f} | {float(row['loss']):.3f} | {int(row['nnz']):,} | "
            f"{int(row['grown']):,} | {100 * float(row['evicted_mass']):.2f} % |"
        )
    (folder / "accuracy.md.tmp").write_text("\n".join(lines) + "\n")
    os.replace(folder / "accuracy.md.tmp", folder / "accuracy.md")
    plot(rows, folder)


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Test accuracy by epoch, one panel for each sparsity with the dense run in both."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    levels = sorted({row["sparsity"] for row in rows if row["run"] != "dense"})
    figure, axes = plt.subplots(1, max(1, len(levels)), figsize=(6 * max(1, len(levels)), 4.5), squeeze=False, sharey=True)
    for axis, level in zip(axes[0], levels or ["0"], strict=True):
        for row in rows:
            if row["run"] == "dense" or row["sparsity"] == level:
                points = [float(point) for point in row["curve"].split()]
                style = {"color": "black", "linestyle": "--"} if row["run"] == "dense" else {}
                axis.plot(range(1, len(points) + 1), points, label=row["run"], **style)
        axis.set(xlabel="epoch", title=f"sparsity {level}", ylim=(40, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(folder / "accuracy.tmp.svg")
    plt.close(figure)
    os.replace(folder / "accuracy.tmp.svg", folder / "accuracy.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train*.parquet and test*.parquet")
    parser.add_argument("--model", default="resnet20", choices=MODELS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sparsities", default="0.9,0.5")
    parser.add_argument("--runs", default="*", help="glob of run names, several separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernel", default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WARM.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WARM})
    folder = args.out or Path(__file__).parent / "results" / f"accuracy-{args.model}-{args.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    source = Parquet(args.data, normalisation="gse")
    train_images, test_images = source.load("train"), source.load("test")
    total = args.epochs * len(BatchLoader(train_images, source, 128, train=True))
    plan = [("dense", "0")]
    plan += [(name, level) for level in args.sparsities.split(",") for name in methods(total)]
    path = folder / "accuracy.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    command = f"python benchmarks/accuracy.py --model {args.model} --epochs {args.epochs} --data FOLDER"
    for name, level in plan:
        done = any((row["run"], row["sparsity"], row["seed"]) == (name, level, str(args.seed)) for row in rows)
        if done or not any(fnmatchcase(name, glob) for glob in args.runs.split(",")):
            continue
        print(f"{name} at {level}", flush=True)
        torch.manual_seed(args.seed)
        model = MODELS[args.model]().to(memory_format=torch.channels_last)
        sparsity = None
        if name != "dense":
            layout, method = methods(total)[name]
            sparsity = ow.sparsify(
                model,
                sparsity=float(level),
                layout=layout,
                method=method,
                exclude=("conv1", "fc"),
                seed=args.seed,
                kernel=args.kernel,
            )
        loaders = (
            BatchLoader(train_images, source, 128, train=True, seed=args.seed),
            BatchLoader(test_images, source, 500, train=False),
        )
        result = train(model, sparsity, loaders, args.epochs)
        sparse = sparsity.layers.values() if sparsity is not None else ()
        nnz = sum(module.pattern.nnz for module in sparse) or sum(p.numel() for p in model.parameters() if p.dim() > 1)
        curve = " ".join(f"{accuracy:.2f}" for _, accuracy in result.pop("curve"))
        rows.append({"run": name, "sparsity": level, "seed": str(args.seed), "nnz": nnz, "curve": curve, **result})
        write(rows, folder, command)
    if rows:
        write(rows, folder, command)


if __name__ == "__main__":
    main()
