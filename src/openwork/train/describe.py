"""``openwork inspect``: one training in words and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from openwork.analysis.footprint import Layer, dense, dense_gradients
from openwork.analysis.memory import LayerMemory
from openwork.report import Row
from openwork.train.facts import Facts
from openwork.train.report import comparison
from openwork.train.runs import TWIN, Run, Update


def described(run: Run, twin: Run | None) -> Iterator[RenderableType]:
    """All that is known of a run, part by part; with a finished ``twin`` also the comparison."""
    yield _headline(run)
    if run.facts is not None:
        yield _settings(run.facts)
        yield from _layers(run, run.facts)
        yield from _costs(run.facts)
    else:
        yield "There is no run.json yet: no step was made, or the run is of a version that did not write it."
    yield from _last_epoch(run)
    yield from _updates(run)
    if twin is not None and run.summary is not None and twin.summary is not None:
        yield comparison(run.summary, twin.summary)


def _headline(run: Run) -> str:
    kind = "dense" if run.is_dense else "sparse"
    done = run.epochs[-1].epoch if run.epochs else 0
    of = f" of {run.facts.epochs}" if run.facts is not None else ""
    if run.summary is not None:
        state = f"finished, {done} epochs"
    else:
        whole = run.folder.parent if run.folder.name == TWIN else run.folder
        state = f"not finished, {done}{of} epochs done; if nothing runs, go on with: openwork train --resume {whole}"
    return f"[bold]{escape(str(run.folder))}[/bold]: {kind}, {escape(state)}"


def _settings(facts: Facts) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.settings.items():
        if value is not None:
            table.add_row(escape(name), escape(str(value)))
    return table


def _layers(run: Run, facts: Facts) -> Iterator[RenderableType]:
    """Sparsity, exploration and bytes, layer by layer."""
    held = {row.layer: row for row in facts.memory.layers} if facts.memory is not None else {}
    rows = [row for row in facts.report.rows if row.shape] or [
        Row(layer.layer, layer.shape, "dense", "", 1.0, 1.0, layer.active, 0, 0)
        for layer in (facts.flops.layers if facts.flops else ())
    ]
    layouts = {row.layout for row in rows if row.layout != "dense"}
    mixed = len(layouts) > 1
    title = "layers" if mixed or not layouts else f"layers, {escape(layouts.pop())}"
    caption = "asked, now: sparsity; R_s: share ever active; bytes as counted after a step"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for name in ("shape", *(("layout",) if mixed else ())):
        table.add_column(name, no_wrap=True)
    for name in ("asked", "now", "R_s", "active", "weights", "gradients", "optimizer", "indices"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        words = [escape(row.layer), "x".join(map(str, row.shape)), *((escape(row.layout),) if mixed else ())]
        table.add_row(*words, *_figures(run, row), *_bytes(held.pop(row.layer, None)))
    blanks = [""] * (len(table.columns) - 9)
    table.add_section()
    if held:
        table.add_row(f"{len(held)} other modules", *blanks, *[""] * 4, *_bytes(*held.values()))
    table.add_row("total", *blanks, *_totals(run, facts, rows), *_bytes(*(facts.memory.layers if facts.memory else ())))
    yield table
    for row in rows:
        if row.layout == "dense" and row.kernel:
            yield escape(f"{row.layer} stays dense: {row.kernel}")


def _figures(run: Run, row: Row) -> list[str]:
    """Sparsity asked and now, ``R_s`` and active weights of a layer."""
    now = run.last_layers.get(row.layer)
    if row.layout == "dense":
        return ["", "(dense)", "", f"{row.nnz:,}"]
    if now is None:
        return [f"{1 - row.asked:.4f}", f"{1 - row.got:.4f}", "", f"{row.nnz:,}"]
    rate = "" if now.exploration_rate is None else f"{now.exploration_rate:.4f}"
    return [f"{1 - row.asked:.4f}", f"{now.sparsity:.4f}", rate, f"{now.active:,}"]


def _totals(run: Run, facts: Facts, rows: list[Row]) -> list[str]:
    """The same over all layers; sparsity and ``R_s`` over the sparse ones."""
    now = run.last_layers
    total = sum(row.weights for row in now.values())
    sparsity = f"{1 - sum(row.active for row in now.values()) / total:.4f}" if total else ""
    rate = run.epochs[-1].exploration_rate if run.epochs else None
    asked = facts.settings.get("sparsity")
    active = sum(now[row.layer].active if row.layer in now else row.nnz for row in rows)
    return ["" if asked is None else f"{asked:.4f}", sparsity, "" if rate is None else f"{rate:.4f}", f"{active:,}"]


def _bytes(*held: LayerMemory | None) -> list[str]:
    """Weights, gradients, optimizer state and indices of some modules together."""
    rows = [row for row in held if row is not None]
    if not rows:
        return [""] * 4
    return [decimal(sum(getattr(row, kind) for row in rows)) for kind in ("weights", "gradients", "optimizer_state", "indices")]


def _costs(facts: Facts) -> Iterator[RenderableType]:
    """Bytes by the papers' formulas beside those held, and FLOPs against dense."""
    if facts.memory is not None:
        memory = facts.memory
        yield (
            f"Held after a step, all modules: {memory.total:,} bytes, of these {memory.trained:,} of weights, gradients and "
            f"optimizer state, {memory.indices:,} of indices"
        )
    if facts.formulas is not None:
        yield facts.formulas
        yield from _published(facts)
    if facts.flops is not None:
        yield facts.flops
        yield from _training(facts)
    yield from map(escape, facts.notes)


def _published(facts: Facts) -> Iterator[str]:
    """What the papers' tables say of the sparse layers, beside what is held."""
    assert facts.formulas is not None
    sparse = [row for row in facts.report.rows if row.layout != "dense"]
    layers = [Layer(row.shape[0], math.prod(row.shape[1:]), row.nnz) for row in sparse]
    formula, held = facts.formulas.formula, facts.formulas.held
    yield (
        f"MEST, Table A.1, weights + gradients + indices of the sparse layers: {_whole(formula.total)} bytes by this layout's "
        f"formula, {_whole(held.total)} held, {_whole(dense(layers).total)} dense"
    )
    if facts.peak is None:
        return
    peak = facts.peak
    if peak.update_gradients is not None and peak.update_gradients > peak.train_gradients:
        published = _whole(dense_gradients(layers).total)
        yield f"MEST, Table A.1, SNFS and RigL as published, with a gradient for every weight: {published} bytes"
    yield (
        f"DSB, Table 3, numbers in a step: {peak.train_weights:,} weights, {peak.train_gradients:,} gradients; in a topology "
        f"update: {peak.update_weights or 0:,} and {peak.update_gradients or 0:,}"
    )


def _whole(bits: int) -> str:
    return f"{-(-bits // 8):,}"


def _training(facts: Facts) -> Iterator[str]:
    flops, average = facts.flops, facts.training
    assert flops is not None
    if average is not None:
        ratio = average / flops.dense_training if flops.dense_training else 1.0
        yield f"Average training step by image, topology updates included: {average:,.0f} FLOPs, {ratio:.4f} of dense"
    if facts.forward is not None and facts.forward != flops.forward:
        ratio = facts.forward / flops.dense_forward
        yield f"Mean forward pass over the steps so far: {facts.forward:,.0f} FLOPs, {ratio:.4f} of dense"


def _last_epoch(run: Run) -> Iterator[str]:
    if not run.epochs:
        yield "No epoch has ended yet."
        return
    last = run.epochs[-1]
    speed = "" if last.step_ms is None else f", {last.step_ms:.2f} ms a step"
    yield (
        f"Epoch {last.epoch}, step {last.step}: test accuracy {100 * last.test_accuracy:.2f} %, loss {last.test_loss:.4f}, "
        f"train accuracy {100 * last.train_accuracy:.2f} %, train loss {last.train_loss:.4f}, "
        f"learning rate {last.learning_rate:.3g}{speed}"
    )


def _updates(run: Run) -> Iterator[RenderableType]:
    if run.is_dense:
        return
    if not run.updates:
        yield "No topology update so far."
        return
    steps = sorted({row.step for row in run.updates})
    table = Table(
        title=f"{len(steps)} topology updates, steps {steps[0]} to {steps[-1]}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold")
    for name in ("dropped", "grown", "evicted", "evicted |w|"):
        table.add_column(name, justify="right", no_wrap=True)
    by_layer: dict[str, list[Update]] = {}
    for row in run.updates:
        by_layer.setdefault(row.layer, []).append(row)
    for name, rows in by_layer.items():
        table.add_row(escape(name), *_moved(rows))
    table.add_section()
    table.add_row("total", *_moved(list(run.updates)))
    yield table
    yield "Weights in all updates; evicted: they fell although the method wanted them, with their mean share of a layer's |w|."


def _moved(rows: list[Update]) -> list[str]:
    sums = (sum(getattr(row, kind) for row in rows) for kind in ("dropped", "grown", "evicted"))
    return [*(f"{count:,}" for count in sums), f"{100 * sum(row.evicted_mass for row in rows) / len(rows):.2f} %"]
