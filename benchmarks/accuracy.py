"""Accuracy on CIFAR-10 of dense and sparse runs with the same seed, data order and schedule.

    python benchmarks/accuracy.py --data FOLDER --epochs 8
    python benchmarks/accuracy.py --data FOLDER --epochs 8 --sparsities 0.9 0.95 \\
        --runs static mest-constant mest-elastic mest-soft mest-soft-de gse rigl

FOLDER holds train*.parquet and test*.parquet.  After every run the results are written anew: ``accuracy.csv`` (a row a run),
``accuracy-epochs.csv``, ``accuracy-topology.csv``, ``accuracy.md`` and ``accuracy.svg``.  Runs that stand in the CSV are
skipped, so that the benchmark can be stopped, continued and widened; rows of runs made elsewhere can be pasted in.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from plots import plt, save
from rich.console import Console
from torch import nn

import openwork as ow
from openwork.analysis import active_parameters, memory
from openwork.data import BatchLoader, Images, Parquet
from openwork.models import CifarResNet, WideResNet
from openwork.train import OneCycle
from openwork.train.classifier import Running
from openwork.train.data_efficiency import Timetable, shorten
from openwork.train.files import Table, write_text

LEARNING_RATE, WEIGHT_DECAY, BATCH, INTERVAL, END = 0.2, 5e-4, 128, 100, 0.75
MODELS: dict[str, Callable[[], nn.Module]] = {"resnet20": lambda: CifarResNet(20), "wrn22-2": lambda: WideResNet(22, 2)}
DENSE = "dense"

KEY = ("model", "epochs", "seed", "run", "sparsity")
RUN_COLUMNS = (
    *KEY, "test_accuracy", "train_loss", "train_accuracy", "parameters", "trained_bytes", "index_bytes", "updates", "grown",
    "evicted", "evicted_mass", "examples", "step_ms", "minutes",
)  # fmt: skip
EPOCH_COLUMNS = (*KEY, "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "step_ms")
TOPOLOGY_COLUMNS = (*KEY, "step", "dropped", "grown", "evicted", "evicted_mass")


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one run from the others."""

    title: str
    layout: Callable[[], ow.layouts.Layout]
    method: Callable[[int], ow.methods.Method]
    all_examples: float = 1.0  # the share of epochs before the easy ones are left out
    easy: float | None = None  # the share of examples left out; None: those that were never forgotten

    def selection(self, examples: int, epochs: int, seed: int) -> ow.data.DataEfficientSampler | None:
        """Which examples each epoch has; None: all of them throughout."""
        start = max(1, round(self.all_examples * epochs))
        if start >= epochs:
            return None
        choice = {"threshold": 0} if self.easy is None else {"remove": round(self.easy * examples)}
        events = ow.data.ForgettingEvents(examples)
        return ow.data.DataEfficientSampler(events, start, at_least=BATCH, seed=seed, **choice)


def recipes(size: int) -> dict[str, Recipe]:
    """The sparse runs, by short name, for blocks of ``size`` x ``size``."""

    def dsb(**options: Any) -> Callable[[int], ow.methods.Method]:
        return lambda total: ow.methods.DSB(interval=INTERVAL, end=END, total_steps=total, **options)

    def rigl(total: int) -> ow.methods.Method:
        return ow.methods.RigL(interval=INTERVAL, end=END, total_steps=total)

    def shuffled() -> ow.layouts.Layout:
        return ow.layouts.ShuffledBlock(size, size)

    def mest(mode: Literal["constant", "elastic", "soft"], title: str, *data: float) -> Recipe:
        return Recipe(
            f"MEST {title}", ow.layouts.Unstructured,
            lambda total: ow.methods.MEST(mode, interval=INTERVAL, total_steps=total), *data,
        )  # fmt: skip

    return {
        "ssb": Recipe(f"SSB-{size} (static)", shuffled, lambda total: ow.methods.Static()),
        "dsb-max": Recipe(f"DSB-{size}, lift max (paper)", shuffled, dsb(lift="max")),
        "dsb-gentle": Recipe(f"DSB-{size}, lift max, drop fraction 0.1", shuffled, dsb(lift="max", drop_fraction=0.1)),
        "dsb-mean": Recipe(f"DSB-{size}, lift mean", shuffled, dsb(lift="mean")),
        "dsb-mean-fixed": Recipe(f"DSB-{size}, lift mean, rows keep groups", shuffled, dsb(lift="mean", regroup=False)),
        "dsb-gradient": Recipe(f"DSB-{size}, lift mean, by gradient", shuffled, dsb(lift="mean", grow="gradient")),
        "rigl": Recipe("RigL, unstructured", ow.layouts.Unstructured, rigl),
        "rigl-vector": Recipe(f"RigL on OutVector({size})", lambda: ow.layouts.OutVector(size), rigl),
        "static": Recipe("static, unstructured", ow.layouts.Unstructured, lambda total: ow.methods.Static()),
        "mest-constant": mest("constant", "constant"),
        "mest-elastic": mest("elastic", "EM"),
        "mest-soft": mest("soft", "EM&S"),
        "mest-soft-de": mest("soft", "EM&S, + data efficiency: without those never forgotten", 0.5),
        "mest-soft-de30": mest("soft", "EM&S, + data efficiency: without the easiest 30 %", 0.5, 0.3),
        "gse": Recipe(
            "GSE, uniform",
            ow.layouts.Unstructured,
            lambda total: ow.methods.GSE(interval=INTERVAL, end=END, total_steps=total),
        ),
    }


@dataclass
class Outcome:
    """What one run measured."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    topology: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def movement(self) -> dict[str, Any]:
        """What all topology updates moved."""
        sums = {name: sum(update[name] for update in self.topology) for name in ("grown", "evicted")}
        masses = [update["evicted_mass"] for update in self.topology]
        return {"updates": len(masses), **sums, "evicted_mass": statistics.fmean(masses) if masses else 0.0}


def evaluate(model: nn.Module, images: Images, source: Parquet) -> Running:
    """Loss and accuracy on the test images."""
    model.eval()
    figures = Running()
    with torch.no_grad():
        for x, y, _ in BatchLoader(images, source, 500, train=False):
            scores = model(x)
            figures.add(F.cross_entropy(scores, y), scores, y)
    model.train()
    return figures


def changes(sparsity: ow.Sparsity) -> dict[str, Any]:
    """The newest topology update over all layers; the evicted mass is the mean of the layers' shares."""
    update = list(sparsity.last_update.values())
    sums = {name: sum(getattr(change, name) for change in update) for name in ("dropped", "grown", "evicted")}
    return {"step": sparsity.last_update_step, **sums, "evicted_mass": statistics.fmean(c.evicted_mass for c in update)}


def train(
    model: nn.Module, sparsity: ow.Sparsity | None, data: tuple[Images, Images], source: Parquet, epochs: int, seed: int,
    selection: ow.data.DataEfficientSampler | None, console: Console,
) -> Outcome:  # fmt: skip
    """One run, as a plain loop."""
    loader = BatchLoader(data[0], source, BATCH, train=True, seed=seed, selection=selection)
    full = len(loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)
    if sparsity is not None:
        sparsity.attach(optimizer)
    schedule, outcome, seconds, seen_update = OneCycle(), Outcome(), [], None
    began = time.perf_counter()
    for epoch in range(epochs):
        figures, in_epoch = Running(), []
        if selection is not None and sparsity is not None and epoch == selection.start:
            selection.select()
            console.print(f"  {selection.removed:,} easy examples left out from here")
            shorten(sparsity.method, Timetable(epochs, full, epoch, len(loader)))
        for step, (x, y, ids) in enumerate(loader):
            start = time.perf_counter()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule.factor(epoch + (step + 0.5) / len(loader), epochs)
            scores = model(x)
            loss = F.cross_entropy(scores, y)
            loss.backward()
            optimizer.step()
            if epoch == 0 and step == 1:
                held = memory(model, optimizer)
            optimizer.zero_grad()
            figures.add(loss, scores, y)
            if selection is not None:
                selection.events.record(ids, scores, y)
            if sparsity is not None and sparsity.last_update_step != seen_update:
                seen_update = sparsity.last_update_step
                outcome.topology.append(changes(sparsity))
            else:
                in_epoch.append(time.perf_counter() - start)
        tested = evaluate(model, data[1], source)
        seconds += in_epoch
        outcome.epochs.append({
            "epoch": epoch + 1, "train_loss": figures.mean_loss, "train_accuracy": figures.accuracy,
            "test_loss": tested.mean_loss, "test_accuracy": tested.accuracy,
            "step_ms": round(1e3 * statistics.median(in_epoch), 2),
        })  # fmt: skip
        console.print(f"  epoch {epoch + 1}: loss {figures.mean_loss:.3f}, test {100 * tested.accuracy:.2f} %, "
                      f"{1e3 * statistics.median(in_epoch):.0f} ms a step")  # fmt: skip
    outcome.run = {
        **{name: outcome.epochs[-1][name] for name in ("test_accuracy", "train_loss", "train_accuracy")},
        "parameters": active_parameters(model), "trained_bytes": held.trained, "index_bytes": held.indices,
        **outcome.movement(), "examples": len(data[0]) - (0 if selection is None else selection.removed),
        "step_ms": round(1e3 * statistics.median(seconds), 2), "minutes": round((time.perf_counter() - began) / 60, 1),
    }  # fmt: skip
    return outcome


def build(model_name: str, recipe: Recipe | None, share: float, total: int, seed: int) -> tuple[nn.Module, ow.Sparsity | None]:
    """The model from the seed's weights; the first convolution stays dense."""
    torch.manual_seed(seed)
    model = MODELS[model_name]()
    if recipe is None:
        return model, None
    layout, method = recipe.layout(), recipe.method(total)
    sparsity = ow.sparsify(
        model, sparsity=share, layout=layout, method=method, budget="erk", exclude=["conv1", "fc"], seed=seed
    )
    return model, sparsity


def markdown(rows: list[dict[str, str]], titles: dict[str, str], command: str) -> str:
    """The results as a table."""
    lines = [
        "# Accuracy on CIFAR-10",
        "",
        f"`{command}`; batch {BATCH}, SGD momentum 0.9, weight decay {WEIGHT_DECAY}, one-cycle to {LEARNING_RATE}, "
        f"pad-crop-flip, ERK, first convolution and classifier dense, updates every {INTERVAL} steps until {END:.0%}, "
        "drop fraction 0.3 cosine unless named (GSE: 0.2; MEST: mutation 0.2 of the active weights, half of it from 62.5 % on, "
        "until 81 %). Differences under about 0.7 points are noise. Short runs say nothing about long ones.",
        "",
        "| model | epochs | seed | run | sparsity | test % | train loss | trained numbers | newly active in all | "
        "evicted weights | evicted share of \\|w\\| per update | examples at the end | ms a step | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['epochs']} | {row['seed']} | {titles.get(row['run'], row['run'])} | {row['sparsity']} | "
            f"{100 * float(row['test_accuracy']):.2f} | {float(row['train_loss']):.3f} | {int(row['parameters']):,} | "
            f"{int(row['grown']):,} | {int(row['evicted']):,} | {100 * float(row['evicted_mass']):.2f} % | "
            f"{int(row['examples']):,} | {row['step_ms']} | {row['minutes']} |"
        )
    return "\n".join([*lines, "", "![Test accuracy by epoch, and evicted weight by update](accuracy.svg)", ""])


def plot(epochs: list[dict[str, str]], topology: list[dict[str, str]], titles: dict[str, str], path: Path) -> None:
    """Test accuracy by epoch, and evicted mass by update, side by side for each sparsity; dense in all of them."""
    sparsities = sorted({row["sparsity"] for row in epochs if row["run"] != DENSE}, key=float) or ["0.0"]
    colours = {run: plt.get_cmap("tab20")(i) for i, run in enumerate(titles)} | {DENSE: "black"}
    figure, axes = plt.subplots(2, len(sparsities), figsize=(6 * len(sparsities), 9), layout="constrained", squeeze=False)
    for column, sparsity in zip(axes.T, sparsities, strict=True):
        for rows, axis, x, y in ((epochs, column[0], "epoch", "test_accuracy"), (topology, column[1], "step", "evicted_mass")):
            shown = [row for row in rows if row["run"] == DENSE or row["sparsity"] == sparsity]
            for key in dict.fromkeys(tuple(row[name] for name in KEY) for row in shown):
                mine = [row for row in shown if tuple(row[name] for name in KEY) == key]
                points = [int(row[x]) for row in mine], [100 * float(row[y]) for row in mine]
                axis.plot(*points, label=titles.get(key[3], key[3]), color=colours[key[3]], marker=".")
            axis.set_xlabel(x)
            axis.grid(alpha=0.3)
        column[0].set_title(f"sparsity {sparsity}")
        column[0].set_ylabel("test accuracy, %")
        column[1].set_ylabel("evicted share of a layer's |w|, %")
        # Below: curves of many runs leave no room among them.
        column[0].legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    save(figure, path)


def publish(options: argparse.Namespace, tables: dict[str, Table], titles: dict[str, str]) -> None:
    """The page and the plot of all runs that there are."""
    command = f"python benchmarks/accuracy.py --data FOLDER --model {options.model} --epochs {options.epochs}"
    write_text(options.out / "accuracy.md", markdown(tables["runs"].rows(), titles, command))
    plot(tables["epochs"].rows(), tables["topology"].rows(), titles, options.out / "accuracy.svg")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train*.parquet and test*.parquet")
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--block", type=int, default=8, help="block size of the block layouts")
    names = [DENSE, *recipes(8)]
    parser.add_argument(
        "--runs", nargs="+", choices=names, default=[DENSE, "ssb", "dsb-max", "dsb-gentle", "rigl", "rigl-vector"]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, help="train on the first so many images only, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    options, console = arguments(), Console()
    tables = {
        "runs": Table(options.out / "accuracy.csv", RUN_COLUMNS),
        "epochs": Table(options.out / "accuracy-epochs.csv", EPOCH_COLUMNS),
        "topology": Table(options.out / "accuracy-topology.csv", TOPOLOGY_COLUMNS),
    }
    known = recipes(options.block)
    titles = {name: recipe.title for name, recipe in known.items()}
    source = Parquet(options.data)
    train_set, test_set = source.load("train"), source.load("test")
    if options.train_images is not None:
        train_set = Images(
            train_set.pixels[: options.train_images], train_set.labels[: options.train_images], train_set.classes
        )
    total = options.epochs * (len(train_set) // BATCH)
    # Sparsity by sparsity, so that a run cut short leaves comparable rows.
    plan = [(name, share) for share in options.sparsities for name in options.runs if name != DENSE]
    for name, share in ([(DENSE, 0.0)] if DENSE in options.runs else []) + plan:
        key = dict(zip(KEY, map(str, (options.model, options.epochs, options.seed, name, share)), strict=True))
        if any(all(row[column] == key[column] for column in KEY) for row in tables["runs"].rows()):
            console.print(f"{name} at {share}: is there already")
            continue
        console.print(f"{titles.get(name, name)} at {share}")
        model, sparsity = build(options.model, known.get(name), share, total, options.seed)
        selection = known[name].selection(len(train_set), options.epochs, options.seed) if name in known else None
        outcome = train(model, sparsity, (train_set, test_set), source, options.epochs, options.seed, selection, console)
        tables["epochs"].append([{**key, **row} for row in outcome.epochs])
        tables["topology"].append([{**key, **row} for row in outcome.topology])
        # Last, because its row says that the run is complete.
        tables["runs"].append([{**key, **outcome.run}])
        publish(options, tables, titles)
    publish(options, tables, titles)


if __name__ == "__main__":
    main()
