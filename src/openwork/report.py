"""The table that says, layer by layer, what is sparse, how, and what it costs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.table import Table
from torch import nn

from openwork.nn import SparseModule
from openwork.nn.auto import Timing
from openwork.update import SparseLayer

TIMINGS = 3
"""Kinds of input of which a report shows the times, the newest of a layer."""


@dataclass(frozen=True)
class Row:
    """One layer of a report.

    Attributes:
        layer: name in the model.
        shape: of the dense weight.
        layout: as written in code, or ``"dense"``.
        kernel: the backend, or why the layer is dense.  With ``kernel="auto"``: what was found faster, ``"cpu (auto)"``,
            ``"dense (auto)"``, ``"cpu or dense (auto)"`` where it depends on the input, ``"cpu (auto, not measured)"`` so far.
        asked: density that the budget gave it.
        got: density that the layout could make of it.
        nnz: active weights.
        dense_bytes: of the dense weight.
        stored_bytes: of values and indices as stored, of what products keep beside them (transposed and cut indices of single
            rows, positions where ``kernel="auto"`` takes the dense way), and of the dense weight where all of it is trained.
        master: whether all of the weight is trained.
        timings: what ``kernel="auto"`` measured, the newest last.
        conversions: how often a resident activation that began at this layer was turned to NCHW, by the operation that wanted
            it, or back (``"from NCHW"``); and how often it stayed NCHW under autocast, because the processor has no bfloat16
            instructions.
    """

    layer: str
    shape: tuple[int, ...]
    layout: str
    kernel: str
    asked: float
    got: float
    nnz: int
    dense_bytes: int
    stored_bytes: int
    master: bool = False
    timings: tuple[Timing, ...] = ()
    conversions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Report:
    """Rows for all linear and convolution layers of a model; prints as a table.

    Attributes:
        rows: one for each layer.
        advice: how training steps would get their memory faster, None where there is nothing to say.
    """

    rows: tuple[Row, ...]
    advice: str | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros over the sparsified weights."""
        sparse = [row for row in self.rows if row.layout != "dense"]
        total = sum(math.prod(row.shape) for row in sparse)
        return 1.0 - sum(row.nnz for row in sparse) / total if total else 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: layers left dense, kernels that compute densely, measured times, advice."""
        notes = [f"{row.layer} stays dense: {row.kernel}" for row in self.rows if row.layout == "dense"]
        masters = [row.layer for row in self.rows if row.master]
        if masters:
            notes.append(f"all weights are trained and stored, dense, until the method settles: {', '.join(masters)}")
        for kernel in ("reference", "dense"):
            unpacked = [row.layer for row in self.rows if row.layout != "dense" and kernel in row.kernel.split()]
            if unpacked:
                notes.append(f"kernel {kernel!r} unpacks the weight to dense at every use: {', '.join(unpacked)}")
        measured = [f"{row.layer}, {timing}" for row in self.rows for timing in row.timings]
        turned = [
            f"{row.layer}, resident output: {', '.join(f'{why} x {times}' for why, times in row.conversions)}"
            for row in self.rows
            if row.conversions
        ]
        if turned:
            notes.append("activations converted between the kernels' layout and NCHW, by operation:")
        return (*notes, *turned, *measured, *(() if self.advice is None else (self.advice,)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layouts = {row.layout for row in self.rows if row.layout != "dense"}
        # One layout for all is the usual case and does not need a column.
        common = f"{layouts.pop()}, " if len(layouts) == 1 else ""
        caption = "asked, got: density; dense, stored: bytes of the weight"
        table = Table(title=f"{common}sparsity {self.sparsity:.4f}", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("layer", overflow="fold")
        for name in ("shape", *(() if common else ("layout",)), "kernel"):
            table.add_column(name, no_wrap=True)
        for name in ("asked", "got", "nnz", "dense", "stored"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            kernel = "(dense)" if row.layout == "dense" else row.kernel
            table.add_row(
                row.layer, "x".join(map(str, row.shape)), *(() if common else (row.layout,)), kernel, f"{row.asked:.4f}",
                f"{row.got:.4f}", f"{row.nnz:,}", decimal(row.dense_bytes), decimal(row.stored_bytes),
            )  # fmt: skip
        nnz, dense, stored = (sum(getattr(row, name) for row in self.rows) for name in ("nnz", "dense_bytes", "stored_bytes"))
        table.add_section()
        blanks = [""] * (len(table.columns) - 4)
        table.add_row("total", *blanks, f"{nnz:,}", decimal(dense), decimal(stored))
        yield table
        yield from self.notes

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(self)
        return text.getvalue()


def build_report(
    layers: Mapping[str, SparseLayer], dense: Mapping[str, tuple[nn.Module, str]], order: list[str], advice: str | None = None
) -> Report:
    """Rows in the model's order, and what else there is to say."""
    rows = []
    for name in order:
        if name in layers:
            rows.append(_sparse_row(layers[name]))
        else:
            module, reason = dense[name]
            rows.append(_dense_row(name, module, reason))
    return Report(tuple(rows), advice)


def _sparse_row(layer: SparseLayer) -> Row:
    module, pattern = layer.module, layer.module.pattern
    width = module.values.element_size()
    master = module.master.numel() * width if module.master is not None else 0
    indices = sum(index.numel() * 4 for index in (pattern.rows, pattern.offsets, pattern.cols))
    stored = master + module.values.numel() * width + indices + module.kept_bytes
    size = layer.shape[0] * layer.shape[1]
    return Row(
        layer.name, module.dense_dims, repr(layer.layout), _kernel(module), layer.density, pattern.density, pattern.nnz,
        size * width, stored, module.has_master, tuple(module.timings.values())[-TIMINGS:],
        tuple(sorted(module.conversions.items())),
    )  # fmt: skip


def _kernel(module: SparseModule) -> str:
    if module.kernel != "auto":
        return module.backend
    if not module.timings:
        return f"{module.backend} (auto, not measured)"
    ways = {timing.dense_wins for timing in module.timings.values()}
    return " or ".join("dense" if dense else module.backend for dense in sorted(ways)) + " (auto)"


def _dense_row(name: str, module: nn.Module, reason: str) -> Row:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or isinstance(weight, nn.parameter.UninitializedParameter):
        return Row(name, (), "dense", reason, 1.0, 1.0, 0, 0, 0)
    size = weight.numel() * weight.element_size()
    return Row(name, tuple(weight.shape), "dense", reason, 1.0, 1.0, weight.numel(), size, size)
