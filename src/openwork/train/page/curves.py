"""Accuracy and loss by epoch; and how any figure by epoch is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from openwork.train.page.colours import Look, looks
from openwork.train.page.html import Section, figures, paragraph
from openwork.train.page.svg import panel
from openwork.train.runs import Epoch, Run

WIDTH, HEIGHT = 5.2, 3.2
Points = tuple[list[float], list[float]]


def accuracy(runs: Sequence[Run]) -> Section:
    """Test and training accuracy and loss."""
    title = "Accuracy and loss"
    shown = [
        ("test-accuracy", "test accuracy, %", lambda row: 100 * row.test_accuracy),
        ("train-accuracy", "training accuracy, %", lambda row: 100 * row.train_accuracy),
        ("test-loss", "test loss", lambda row: row.test_loss),
        ("train-loss", "training loss", lambda row: row.train_loss),
    ]  # type: list[tuple[str, str, Callable[[Epoch], float | None]]]
    if not any(run.epochs for run in runs):
        return Section("accuracy", title, paragraph("No epoch has ended yet."))
    drawn = [(caption, by_epoch(f"fig-{name}", runs, value, ceiling="loss" in name)) for name, caption, value in shown]
    lost = [run.title for run in runs if any(not math.isfinite(row.train_loss + row.test_loss) for row in run.epochs)]
    text = f"The loss became infinite or no number: {', '.join(lost)}." if lost else ""
    return Section("accuracy", title, (paragraph(text) if text else "") + figures(drawn), keyed=True)


def by_epoch(
    name: str,
    runs: Sequence[Run],
    value: Callable[[Epoch], float | None],
    bottom: float | None = None,
    least: float = 0.0,
    ceiling: bool = False,
) -> str:
    """One line for each run over its epochs, as SVG.

    Args:
        name: of the figure.
        runs: whose epochs.
        value: of an epoch; None and what is not finite are left out.
        bottom: as in :func:`curves`.
        least: as in :func:`curves`.
        ceiling: cut off what is more than twice the highest first value, so that a run that diverges hides no other.
    """
    lines = []
    for run, look in zip(runs, looks(runs), strict=True):
        known = [(float(row.epoch), y) for row in run.epochs if (y := value(row)) is not None and math.isfinite(y)]
        lines.append((look, ([x for x, _ in known], [y for _, y in known])))
    first = [y[0] for _, (_, y) in lines if y]
    return curves(name, lines, "epoch", bottom, least, 2 * max(first) if ceiling and first else math.inf)


def curves(
    name: str,
    lines: Sequence[tuple[Look, Points]],
    along: str,
    bottom: float | None = None,
    least: float = 0.0,
    top: float = math.inf,
) -> str:
    """Lines over a whole-numbered axis, as SVG.

    Args:
        name: of the figure.
        lines: how and where.
        along: what the axis counts.
        bottom: where the other axis starts; None: below the lowest point.
        least: what that axis spans at least, so that nothing looks large that is not.
        top: where that axis ends at the latest.
    """

    def draw(axes: Axes) -> None:
        for look, (x, y) in lines:
            if x:
                line(axes, look, x, y, clipped=max(y) > top)
        low, high = axes.get_ylim()
        more = max(0.0, least - (high - low)) / 2
        start = low - more if bottom is None else bottom
        axes.set_ylim(start if high <= top else -0.02 * top, min(top, high + more))
        axes.set_xlabel(along)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))

    return panel(name, WIDTH, HEIGHT, draw)


def line(axes: Axes, look: Look, x: Sequence[float], y: Sequence[float], clipped: bool) -> None:
    """One run's line, with some of its points; unless it is ``clipped``, points on the edge are drawn whole."""
    axes.plot(
        x, y, color=look.colour, linestyle="--" if look.dashed else "-", linewidth=1.5, marker="o", markersize=3.5,
        markerfacecolor="white" if look.dashed else look.colour, markevery=max(1, len(x) // 12), clip_on=clipped,
    )  # fmt: skip
