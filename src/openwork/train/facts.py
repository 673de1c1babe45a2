"""What a training is and what it costs, kept in ``run.json`` for ``openwork inspect`` and ``openwork report``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openwork.analysis import Comparison, Flops, Memory
from openwork.analysis.footprint import Peak, dsb_table_3
from openwork.methods import DSB, Method, RigL
from openwork.report import Report
from openwork.train.files import write_text
from openwork.train.plain import as_json, decode

FACTS = "run.json"
FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """One training, sparse or dense.

    Args:
        format: of this file.
        name: "sparse" or "dense".
        settings: the main ones, in words and numbers.
        epochs: of the whole training.
        step: optimizer steps done when this was written.
        report: every layer that could be sparse, as made at the start; empty for a dense training.
        memory: bytes by module, the most that were seen after a step; None before the first.
        formulas: the sparse layers' bits by formula and as held at that moment; None without sparse layers or formula.
        flops: of one image at the present topology; None where the model has nothing to count.
        forward: mean FLOPs of a forward pass of one image over all steps so far; None before the first.
        training: FLOPs of the average training step by image while the topology moves, by the formula for the method; None
            where there is none.
        peak: numbers held by DSB's Table 3, for the methods in it.
        notes: why something is None.
    """

    format: int
    name: str
    settings: dict[str, str | int | float | None]
    epochs: int
    step: int
    report: Report
    memory: Memory | None
    formulas: Comparison | None
    flops: Flops | None
    forward: float | None
    training: float | None
    peak: Peak | None
    notes: tuple[str, ...]

    @property
    def training_step(self) -> float | None:
        """FLOPs of the average training step by image, topology updates included; without updates where no formula has them."""
        if self.training is not None or self.flops is None:
            return self.training
        return float(self.flops.training)

    def save(self, folder: Path) -> None:
        """Write ``run.json``."""
        write_text(folder / FACTS, json.dumps(as_json(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Facts | None:
        """Read ``run.json``; None where there is none.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        path = folder / FACTS
        content = read_json(path)
        if content is None:
            return None
        if isinstance(content, Mapping) and content.get("format") != FORMAT:
            raise ValueError(f"{path} has format {content.get('format')!r}; this version reads {FORMAT}")
        return decode(cls, content, str(path))


def read_json(path: Path) -> object:
    """What a JSON file holds; None where there is no such file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def table_3(method: Method, cost: Flops | None) -> Peak | None:
    """What DSB's Table 3 says the sparse layers hold, None for a method that is not in it."""
    if cost is None or not isinstance(method, DSB | RigL):
        return None
    sparse = [layer for layer in cost.layers if layer.sparse]
    total, active = sum(math.prod(layer.shape) for layer in sparse), sum(layer.active for layer in sparse)
    dense_gradient = isinstance(method, RigL) or method.grow == "gradient"
    return dsb_table_3("rigl" if dense_gradient else "dsb", total, active)
