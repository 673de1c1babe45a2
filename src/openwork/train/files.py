"""Small files of a run folder: text written whole, tables that grow row by row."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
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
        """The rows so far, without a last line that is not complete: its process was killed or is still writing."""
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, str]], bool]:
        """The rows, and whether the file ends within one."""
        if not self.path.exists():
            return [], False
        with self.path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline=""))), whole != text

    def keep(self, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop the rows that are not wanted, and a last one that is not complete."""
        rows, torn = self._read()
        kept = [row for row in rows if wanted(row)]
        if len(kept) == len(rows) and not torn:
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
