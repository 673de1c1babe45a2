"""Masks over time: for every pictured layer a row of small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes

from openwork.train.page.html import Section, figures, paragraph
from openwork.train.page.layers import shortened
from openwork.train.page.svg import grid
from openwork.train.pictures import Picture, read_pictures, spread
from openwork.train.runs import Run

COLUMNS, MOST = 3, 6
WIDTH = 5.2


def masks(runs: Sequence[Run]) -> Section:
    """Some moments of every pictured layer of every run.

    Raises:
        ValueError: a picture is damaged.
    """
    title = "Masks over time"
    parts = []
    for number, run in enumerate(runs):
        by_layer: dict[str, list[Picture]] = {}
        for picture in read_pictures(run.folder):
            by_layer.setdefault(picture.layer, []).append(picture)
        drawn = [_layer(f"fig-mask-{number}-{i}", held) for i, held in enumerate(by_layer.values())]
        if drawn:
            parts.append(f"<h3>{escape(run.title)}</h3>{figures(drawn)}")
    if not parts:
        return Section("masks", title, paragraph("No run here kept pictures of its masks."))
    text = (
        "Rows of a picture are outputs, columns are inputs (of a convolution: input channel, then tap). The darker a cell, the "
        "more of its weights are active; white: none; black: the densest cell of the layer in all its pictures."
    )
    return Section("masks", title, paragraph(text, note=True) + "".join(parts))


def _layer(name: str, held: Sequence[Picture]) -> tuple[str, str]:
    """Caption and SVG of one layer."""
    shown = [held[i] for i in spread(len(held), MOST)]
    densities = [picture.density for picture in shown]
    top = max(float(density.max()) for density in densities)
    rows, cols = shown[0].counts.shape
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    # As the matrix is, but neither a thread nor a tower.
    ratio = min(1.6, max(0.3, rows / cols))

    def draw(axes: list[Axes]) -> None:
        for one in axes[len(shown) :]:
            one.set_visible(False)
        for one, picture, density in zip(axes, shown, densities, strict=False):
            one.imshow(density, cmap="Greys", vmin=0.0, vmax=top or 1.0, aspect="auto", interpolation="none")
            one.set_box_aspect(ratio)
            one.set_title("start" if picture.epoch == 0 else f"epoch {picture.epoch}", fontsize=9)
            one.set_xticks([])
            one.set_yticks([])
            one.grid(visible=False)
            for spine in one.spines.values():
                spine.set(visible=True, color="#aaaaaa")

    size = WIDTH, lines * (WIDTH / COLUMNS * ratio + 0.3)
    shape = shown[0].shape
    cells = "" if shown[0].counts.shape == shape else f" in {rows} x {cols} cells"
    mean = np.mean([picture.counts.sum() for picture in shown]) / max(1, shape[0] * shape[1])
    caption = f"{shortened(shown[0].layer)}: {shape[0]} x {shape[1]}{cells}, density {mean:.3f}, black is {top:.2f}"
    return caption, grid(name, size, (lines, columns), draw)
