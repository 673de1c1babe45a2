"""Small files of a run folder: text written whole, tables that grow row by row."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class Table:
    """A CSV file with fixed columns.

    Args:
        path: the file; it is made with its header at the first row.
        columns: names, in order.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self.columns = columns

    def rows(self) -> list[dict[str, str]]:
        """The rows so far."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def keep(self, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop the rows that are not wanted."""
        rows = self.rows()
        kept = [row for row in rows if wanted(row)]
        if len(kept) == len(rows):
            return
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(part, self.path)

    def append(self, rows: list[dict[str, object]]) -> None:
        """Add rows."""
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerows(rows)
