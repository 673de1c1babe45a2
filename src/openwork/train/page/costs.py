"""Memory, FLOPs and step time against dense."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.axes import Axes
from rich.filesize import decimal

from openwork.analysis.memory import KINDS
from openwork.train.page import colours
from openwork.train.page.colours import Look
from openwork.train.page.curves import by_epoch
from openwork.train.page.html import Section, figures, paragraph
from openwork.train.page.layers import shortened
from openwork.train.page.svg import panel
from openwork.train.runs import Run

Bar = tuple[str, list[tuple[float, Look]], str]
"""Label, pieces with how they look, and what stands at the end."""


def memory(runs: Sequence[Run]) -> Section:
    """Bytes by kind, a bar for every training."""
    title = "Memory"
    known = [(run, run.facts.memory) for run in runs if run.facts is not None and run.facts.memory is not None]
    if not known:
        return Section("memory", title, paragraph("No run here has counted its bytes: no step was made."))
    bars: list[Bar] = [
        (run.title, [(getattr(held, kind) / 1e6, Look(colours.KINDS[kind], False)) for kind in KINDS], decimal(held.total))
        for run, held in known
    ]
    keys = "".join(
        '<li><svg class="key" viewBox="0 0 30 10" aria-hidden="true">'
        f'<rect width="30" height="10" fill="{colours.KINDS[kind]}"/></svg>{escape(kind.replace("_", " "))}</li>'
        for kind in KINDS
    )
    text = (
        "Counted tensor by tensor after a step, the most that was seen; activations and temporaries are not counted. Buffers: "
        "such as the running statistics of batch norms."
    )
    drawn = figures([("megabytes held by each training", _bars("fig-memory", bars))])
    return Section("memory", title, paragraph(text, note=True) + f'<ul class="legend">{keys}</ul>' + drawn)


def flops(runs: Sequence[Run]) -> Section:
    """FLOPs of a training step over those of the same model dense."""
    title = "FLOPs against dense"
    known = [(run, run.facts.flops) for run in runs if run.facts is not None and run.facts.flops is not None]
    if not known:
        return Section("flops", title, paragraph("No run here has counted its FLOPs."))
    look = {run.folder: one for run, one in zip(runs, colours.looks(runs), strict=True)}
    inference, training, noted = [], [], []
    for run, cost in known:
        assert run.facts is not None
        step = run.facts.training_step or 0.0
        ratio = step / cost.dense_training if cost.dense_training else 1.0
        inference.append((run.title, [(cost.ratio, look[run.folder])], f"{cost.ratio:.3f}"))
        training.append((run.title, [(ratio, look[run.folder])], f"{ratio:.3f}"))
        noted += [f"{run.title}: {note}" for note in run.facts.notes if note.startswith(("FLOPs", "topology updates"))]
    text = "Linear and convolution layers, 2 for each multiply-accumulate of an active weight; a step is three forward passes."
    drawn = [
        ("forward pass at the last topology, of dense", _bars("fig-inference", inference)),
        ("average training step, topology updates included, of dense", _bars("fig-training", training)),
    ]
    notes = "".join(paragraph(note) for note in noted)
    return Section("flops", title, paragraph(text, note=True) + notes + figures(drawn))


def speed(runs: Sequence[Run]) -> Section:
    """Milliseconds a step: the median of all, and by epoch."""
    title = "Step time"
    if not any(run.step_ms is not None for run in runs):
        return Section("speed", title, paragraph("No run here has made enough steps to time them."))
    bars: list[Bar] = [
        (run.title, [(run.step_ms, look)], f"{run.step_ms:.2f}")
        for run, look in zip(runs, colours.looks(runs), strict=True)
        if run.step_ms is not None
    ]
    text = (
        "From the batch at hand to the end of the optimizer's step, without steps that update the topology. Trainings run one "
        "after the other, so compare them only where the machine had nothing else to do."
    )
    drawn = [
        ("milliseconds a step, median", _bars("fig-speed", bars)),
        ("milliseconds a step, median of each epoch", by_epoch("fig-speed-epochs", runs, lambda row: row.step_ms, bottom=0.0)),
    ]
    return Section("speed", title, paragraph(text, note=True) + figures(drawn), keyed=True)


def _bars(name: str, bars: Sequence[Bar]) -> str:
    """Lying bars with their labels above them, where a long name has room."""
    longest = max((sum(value for value, _ in pieces) for _, pieces, _ in bars), default=0.0) or 1.0

    def draw(axes: Axes) -> None:
        for i, (label, pieces, end) in enumerate(bars):
            left = 0.0
            for value, look in pieces:
                face = "white" if look.dashed else look.colour
                axes.barh(i, value, left=left, height=0.42, color=face, edgecolor=look.colour, linewidth=1.0)
                left += value
            axes.text(left + 0.01 * longest, i, end, va="center", ha="left")
            axes.text(0, i - 0.3, shortened(label), va="bottom", ha="left", fontsize=8)
        axes.set_ylim(len(bars) - 0.6, -0.75)
        axes.set_xlim(0, 1.18 * longest)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")

    return panel(name, 5.2, 0.5 + 0.5 * len(bars), draw)
