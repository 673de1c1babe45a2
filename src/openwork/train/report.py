"""What a finished run says: its figures, kept in ``summary.json``, and the table that sets sparse against dense."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable

from openwork.analysis import Memory
from openwork.train.facts import read_json
from openwork.train.files import Table, write_text
from openwork.train.plain import decode

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """Figures of one run at its end.

    Args:
        name: "sparse" or "dense".
        accuracy: share of the test images that are classified right, after the last epoch.
        parameters: numbers that are trained.
        weights: bytes of the parameters.
        gradients: bytes of their gradients.
        optimizer_state: bytes of the optimizer's state.
        indices: bytes of the patterns.
        step: median seconds of a step without topology update; None: too few steps in this process.
        step_mean: mean seconds of all steps, topology updates included.
        updates: topology updates.
        evicted_mass: mean share of ``sum |w|`` that an update took from weights that were to stay.
    """

    name: str
    accuracy: float
    parameters: int
    weights: int
    gradients: int
    optimizer_state: int
    indices: int
    step: float | None
    step_mean: float | None
    updates: int
    evicted_mass: float

    @property
    def trained(self) -> int:
        """Bytes of weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer_state

    def save(self, folder: Path) -> None:
        """Write ``summary.json``."""
        write_text(folder / SUMMARY, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Summary | None:
        """Read ``summary.json``; None where the run has not finished.

        Raises:
            ValueError: it is damaged.
        """
        content = read_json(folder / SUMMARY)
        return None if content is None else decode(cls, content, str(folder / SUMMARY))


def topology_figures(folder: Path) -> tuple[int, float]:
    """(number of updates, mean evicted share of ``sum |w|`` over layers and updates) from ``topology.csv``."""
    rows = Table(folder / "topology.csv", ()).rows()
    masses = [float(row["evicted_mass"]) for row in rows]
    return len({row["step"] for row in rows}), sum(masses) / len(masses) if masses else 0.0


def measured(
    name: str, accuracy: float, parameters: int, held: Memory | None, times: tuple[float | None, float | None], folder: Path
) -> Summary:
    """Put the figures of a run together; ``times`` are the median and the mean seconds of a step."""
    held = held or Memory(0, 0, 0, 0, 0)
    memory = held.weights, held.gradients, held.optimizer_state, held.indices
    return Summary(name, accuracy, parameters, *memory, *times, *topology_figures(folder))


def comparison(sparse: Summary | None, dense: Summary | None) -> RichTable:
    """A table with one column for each run and, with both, one for their ratio."""
    runs = [run for run in (sparse, dense) if run is not None]
    table = RichTable("", *(run.name for run in runs), title="Result")
    for column in table.columns[1:]:
        column.justify = "right"
    both = sparse is not None and dense is not None
    if both:
        table.add_column("sparse / dense", justify="right")

    def row(title: str, values: list[float | None], shown: list[str], ratio: bool = True) -> None:
        cells = [title, *shown]
        if both:
            first, second = values
            cells.append(f"{first / second:.3f}" if ratio and first is not None and second else "")
        table.add_row(*cells)

    row("test accuracy", [run.accuracy for run in runs], [f"{100 * run.accuracy:.2f} %" for run in runs], ratio=False)
    row("trained numbers (non-zeros)", [run.parameters for run in runs], [f"{run.parameters:,}" for run in runs])
    for title, name in (
        ("bytes of weights", "weights"),
        ("bytes of gradients", "gradients"),
        ("bytes of optimizer state", "optimizer_state"),
        ("  these three together", "trained"),
    ):
        values = [getattr(run, name) for run in runs]
        row(title, values, [f"{value:,}" for value in values])
    row("bytes of indices, beside these", [run.indices for run in runs], [f"{run.indices:,}" for run in runs], ratio=False)
    row("ms per step, median", [run.step for run in runs], [_ms(run.step) for run in runs])
    row("ms per step, mean with updates", [run.step_mean for run in runs], [_ms(run.step_mean) for run in runs])
    return table


def _ms(seconds: float | None) -> str:
    return "too few steps" if seconds is None else f"{1e3 * seconds:.2f}"


def as_text(*parts: RenderableType) -> str:
    """What the parts look like on a wide terminal, without colours."""
    text = io.StringIO()
    Console(file=text, width=160, no_color=True, force_terminal=False).print(Group(*parts))
    return text.getvalue()
