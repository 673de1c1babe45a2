"""The sections of the page, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openwork.train.page import costs, curves, layers, masks, summary, topology
from openwork.train.page.html import Section
from openwork.train.runs import Run


def sections(runs: Sequence[Run]) -> list[Callable[[], Section]]:
    """Each draws one section when it is called.

    Calling one raises ``ValueError`` where a file that only it needs is damaged.
    """
    makers: list[Callable[[Sequence[Run]], Section]] = [
        summary.summary,
        curves.accuracy,
        layers.sparsity,
        layers.exploration,
        masks.masks,
        topology.topology,
        costs.memory,
        costs.flops,
        costs.speed,
    ]
    return [lambda make=make: make(runs) for make in makers]  # type: ignore[misc]
