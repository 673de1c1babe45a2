"""How each run is drawn: one colour a run, its dense twin in the same colour, dashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import to_hex

from openwork.train.runs import TWIN, Run

# Okabe and Ito's colours, which most people can tell apart, without the yellow that none can see on white.
_FEW = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

KINDS = {"weights": "#0072b2", "gradients": "#56b4e9", "optimizer_state": "#e69f00", "indices": "#009e73", "buffers": "#999999"}
"""Kind of memory -> colour."""


class Look(NamedTuple):
    """Colour, and whether the line is dashed and its points hollow."""

    colour: str
    dashed: bool


def looks(runs: Sequence[Run]) -> list[Look]:
    """One for each run; a dense twin, which stands after its run, has that run's colour."""
    owners: list[int] = []
    for i, run in enumerate(runs):
        own = i == 0 or run.folder.name != TWIN or run.folder.parent.resolve() != runs[i - 1].folder.resolve()
        owners.append((owners[-1] + 1 if owners else 0) if own else owners[-1])
    count = owners[-1] + 1 if owners else 0
    many = [to_hex(colour) for colour in colormaps["turbo"]([i / max(1, count - 1) for i in range(count)])]
    palette = _FEW if count <= len(_FEW) else many
    return [Look(palette[owner], run.is_dense) for owner, run in zip(owners, runs, strict=True)]
