"""What topology updates dropped, grew and evicted."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

from openwork.train.page.colours import looks
from openwork.train.page.curves import Points, curves
from openwork.train.page.html import Section, figures, paragraph
from openwork.train.runs import Run, Update


def topology(runs: Sequence[Run]) -> Section:
    """Shares of all active weights that each update dropped, grew and evicted."""
    title = "Dropped and grown weights"
    still = [run.title for run in runs if not run.is_dense and not run.updates]
    words = f"No topology update: {', '.join(still)}." if still else ""
    if not any(run.updates for run in runs):
        return Section("topology", title, paragraph(words or "No run here has a topology that moves."))
    drawn = [
        ("dropped, % of the active weights, by update", _rates("fig-dropped", runs, lambda row: row.dropped)),
        ("grown, % of the active weights, by update", _rates("fig-grown", runs, lambda row: row.grown)),
        ("evicted, % of the active weights, by update", _rates("fig-evicted", runs, lambda row: row.evicted)),
        ("evicted, % of a layer's sum of |w|, mean over the layers", _masses("fig-evicted-mass", runs)),
    ]
    text = (
        "By optimizer step, over all sparse layers. Evicted: weights that the method wanted to keep and the layout let go, as "
        "re-blocking does."
    )
    said = paragraph(text, note=True) + (paragraph(words) if words else "")
    return Section("topology", title, said + figures(drawn), keyed=True)


def _rates(name: str, runs: Sequence[Run], count: Callable[[Update], int]) -> str:
    lines = [(look, _shares(run, count)) for run, look in zip(runs, looks(runs), strict=True)]
    return curves(name, lines, "step", bottom=0.0)


def _shares(run: Run, count: Callable[[Update], int]) -> Points:
    """Percent of the weights that were active after the last epoch before each update."""
    active: dict[int, int] = defaultdict(int)
    for layer in run.layers:
        active[layer.step] += layer.active
    steps = sorted(active)
    totals: dict[int, int] = defaultdict(int)
    for update in run.updates:
        totals[update.step] += count(update)
    # An update's step has that many steps before it: the row of an epoch that ended with them comes first.
    known = {step: active[steps[bisect_right(steps, step) - 1]] for step in totals if steps and steps[0] <= step}
    x = sorted(step for step in known if known[step])
    return [float(step) for step in x], [100 * totals[step] / known[step] for step in x]


def _masses(name: str, runs: Sequence[Run]) -> str:
    lines = []
    for run, look in zip(runs, looks(runs), strict=True):
        by_step: dict[int, list[float]] = defaultdict(list)
        for update in run.updates:
            by_step[update.step].append(100 * update.evicted_mass)
        x = sorted(by_step)
        lines.append((look, ([float(step) for step in x], [sum(by_step[step]) / len(by_step[step]) for step in x])))
    return curves(name, lines, "step", bottom=0.0)
