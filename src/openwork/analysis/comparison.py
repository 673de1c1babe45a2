"""What sparse layers hold beside what the papers' formulas say they should."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.table import Table

from openwork import layouts as layouts_package
from openwork.analysis import footprint
from openwork.analysis.footprint import Bits
from openwork.layouts import LayoutRule
from openwork.names import resolve
from openwork.sparsify import Sparsity

_SCHEMES: dict[str, Callable[[Any, footprint.Layers, footprint.Widths], Bits]] = {
    "Unstructured": lambda layout, layers, widths: footprint.unstructured(layers, widths),
    "Channel": lambda layout, layers, widths: footprint.structured(layers, widths),
    "Filter": lambda layout, layers, widths: footprint.structured(layers, widths),
    "KernelPattern": lambda layout, layers, widths: footprint.pattern(layers, widths),
    "Block": lambda layout, layers, widths: footprint.block(layers, layout.m, layout.n, widths),
    "OutVector": lambda layout, layers, widths: footprint.block(layers, layout.v, 1, widths),
    "ShuffledBlock": lambda layout, layers, widths: footprint.shuffled_block(layers, layout.m, layout.n, widths),
    "ShuffledVector": lambda layout, layers, widths: footprint.shuffled_block(layers, layout.v, 1, widths),
    "NM": lambda layout, layers, widths: footprint.n_of_m(layers, layout.m, widths),
    "TransposableNM": lambda layout, layers, widths: footprint.n_of_m(layers, layout.m, widths),
    "Complementary": lambda layout, layers, widths: footprint.complementary(layers, layout.k, widths),
}
"""Class of a layout -> its formula.  A new layout is one line here."""


@dataclass(frozen=True)
class Compared:
    """One sparse layer: bits by formula, and bits of values, their gradient (0 where there is none) and indices as held."""

    layer: str
    layout: str
    formula: Bits
    held: Bits


@dataclass(frozen=True)
class Comparison:
    """Formula and measurement side by side, layer by layer; prints as a table."""

    rows: tuple[Compared, ...]

    @property
    def formula(self) -> Bits:
        """Sums over all layers."""
        return Bits(*map(sum, zip(*(row.formula for row in self.rows), strict=True)))

    @property
    def held(self) -> Bits:
        """Sums over all layers."""
        return Bits(*map(sum, zip(*(row.held for row in self.rows), strict=True)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="bytes by formula | as held", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("layer", overflow="fold")
        table.add_column("layout", no_wrap=True)
        for name in (*Bits._fields, "total"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(row.layer, row.layout, *_cells(row.formula, row.held))
        table.add_section()
        table.add_row("total", "", *_cells(self.formula, self.held))
        yield table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


def compare_memory(sparsity: Sparsity) -> Comparison:
    """The sparse layers' weights, gradients and indices as held, beside the formula for their layout.

    One storage format serves every layout here, with 32-bit indices, a row id for every row of a group and one index for every
    column of a group, so formulas that assume a format of their own (blocks, kernel patterns, N:M) come out lower.  Gradients
    are held between ``backward`` and ``zero_grad``.

    Args:
        sparsity: what ``sparsify`` returned.

    Raises:
        ValueError: there is no formula for the layout of a layer.
    """
    rows = []
    for entry in sparsity.report().rows:
        if entry.layout == "dense":
            continue
        module = sparsity.layers[entry.layer]
        layout = resolve("layout", entry.layout, LayoutRule, layouts_package)  # type: ignore[type-abstract]
        scheme = _SCHEMES.get(type(layout).__name__)
        if scheme is None:
            raise ValueError(f"{entry.layer} has layout {entry.layout}, for which there is no formula")
        width = 8 * module.values.element_size()
        # A method that trains all weights holds them beside the active ones, and their gradient alone.
        held_weights = module.values.numel() + (module.trained.numel() if module.has_master else 0)
        grad = module.trained.grad
        indices = sum(8 * index.numel() * index.element_size() for index in module.buffers())
        held = Bits(held_weights * width, 0 if grad is None else grad.numel() * width, indices)
        formula = scheme(layout, [footprint.Layer(*module.shape, entry.nnz)], footprint.Widths(width))
        rows.append(Compared(entry.layer, entry.layout, formula, held))
    return Comparison(tuple(rows))


def _cells(formula: Bits, held: Bits) -> list[str]:
    pairs = zip((*formula, formula.total), (*held, held.total), strict=True)
    return [f"{decimal(-(-a // 8))} | {decimal(-(-b // 8))}" for a, b in pairs]
