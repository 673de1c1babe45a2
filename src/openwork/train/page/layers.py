"""Sparsity and exploration, layer by layer and over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from openwork.train.page.colours import looks
from openwork.train.page.curves import by_epoch
from openwork.train.page.html import Section, figures, paragraph
from openwork.train.page.svg import panel
from openwork.train.runs import LayerEpoch, Run

NAME_LENGTH = 30


def sparsity(runs: Sequence[Run]) -> Section:
    """Every sparse layer's share of zeros at the last epoch, and over all layers by epoch."""
    title = "Sparsity by layer"
    if not any(run.layers for run in runs):
        return Section("sparsity", title, paragraph("No run here has sparse layers."))
    by_layer = _dots("fig-sparsity", runs, lambda row: row.sparsity, _asked)
    over_all = by_epoch("fig-sparsity-epochs", runs, lambda row: row.sparsity, least=0.05)
    drawn = [
        ("sparsity of each layer now; a grey bar: asked for", by_layer),
        ("sparsity over all sparse layers", over_all),
    ]
    return Section("sparsity", title, figures(drawn), keyed=True)


def exploration(runs: Sequence[Run]) -> Section:
    """``R_s`` by epoch and by layer."""
    title = "Exploration rate"
    if not any(row.exploration_rate is not None for run in runs for row in run.layers):
        return Section("exploration", title, paragraph("No run here kept count of the weights that were ever active."))
    text = "ITOP's R_s: the share of all weights of the sparse layers that were ever active, up to then."
    drawn = [
        ("R_s over all sparse layers", by_epoch("fig-exploration", runs, lambda row: row.exploration_rate)),
        ("R_s of each layer now; a grey bar: at the start", _dots("fig-exploration-layers", runs, _rate, _first_rate)),
    ]
    return Section("exploration", title, paragraph(text, note=True) + figures(drawn), keyed=True)


def _rate(row: LayerEpoch) -> float | None:
    return row.exploration_rate


def _asked(run: Run) -> dict[str, float]:
    return {row.layer: 1 - row.asked for row in run.facts.report.rows if row.layout != "dense"} if run.facts is not None else {}


def _first_rate(run: Run) -> dict[str, float]:
    first: dict[str, float] = {}
    for row in run.layers:
        if row.exploration_rate is not None:
            first.setdefault(row.layer, row.exploration_rate)
    return first


def _dots(
    name: str, runs: Sequence[Run], value: Callable[[LayerEpoch], float | None], mark: Callable[[Run], dict[str, float]]
) -> str:
    """A line of the figure for every layer of any run, from the first down, with a dot for every run."""
    names = list(dict.fromkeys(row.layer for run in runs for row in run.layers))
    at = {layer: i for i, layer in enumerate(names)}
    sparse = [(run, look) for run, look in zip(runs, looks(runs), strict=True) if run.layers]

    def draw(axes: Axes) -> None:
        for i, (run, look) in enumerate(sparse):
            # Side by side, so that runs that agree do not hide each other.
            shift = 0.6 * ((i + 0.5) / len(sparse) - 0.5)
            marks = {layer: y for layer, y in mark(run).items() if layer in at}
            axes.scatter(list(marks.values()), [at[layer] + shift for layer in marks], marker="|", s=60, color="#888888")
            rows = [(row.layer, y) for row in run.last_layers.values() if (y := value(row)) is not None]
            axes.scatter([y for _, y in rows], [at[layer] + shift for layer, _ in rows], s=16, color=look.colour)
        axes.set_yticks(range(len(names)), [shortened(layer) for layer in names], fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.tick_params(axis="y", length=0)

    return panel(name, 5.2, 0.9 + len(names) * max(0.2, 0.1 * len(sparse)), draw)


def shortened(name: str) -> str:
    """A layer's name, without its middle where it is long."""
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"
