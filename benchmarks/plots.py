"""How the benchmarks draw: without a display, to a temporary name, then renamed."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

__all__ = ["plt", "save"]


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole, in the format of the path's suffix, and let go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{path.suffix}")
    figure.savefig(part)
    plt.close(figure)
    part.replace(path)
