"""Small pictures of where a layer's weights lie, kept over the training: counts of active weights by cell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from openwork.nn import SparseModule
from openwork.pattern import Pattern
from openwork.train.files import write_bytes

FOLDER = "pictures"
MOST_LAYERS = 16
FEW_LAYERS = 5

_NAME = re.compile(r"epoch-\d{5,}\.safetensors")
# One entry: several would be written in random order, and a resumed run's files could not be compared.
_ENTRY = "openwork"


@dataclass(frozen=True)
class Pictures:
    """Which layers' masks are kept as small pictures over the training, how finely and how often.

    Args:
        layers: names or globs of sparse layers, 16 layers at most; null: up to five of those that are not full, evenly spread
            from the first to the last.
        cells: rows and columns of a picture at most; in a larger matrix a cell counts the active weights of several.
        moments: pictures of a layer at most, evenly spread over the epochs, with the start and the last.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    layers: list[str] | None = None
    cells: int = 96
    moments: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (("cells", 1, 512), ("moments", 2, 1000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"pictures.{name}={value!r} must be a whole number from {low} to {high}")

    def choose(self, layers: Mapping[str, SparseModule]) -> dict[str, SparseModule]:
        """Of the sparse ``layers``, by name, those to picture.

        Raises:
            ValueError: a glob matches none, or all together match too many.
        """
        names = list(layers)
        if self.layers is None:
            names = [name for name, module in layers.items() if module.pattern.density < 1.0] or names
            return {names[i]: layers[names[i]] for i in spread(len(names), FEW_LAYERS)}
        for glob in self.layers:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"pictures.layers names {glob!r}, which matches no sparse layer; there are {', '.join(names)}")
        chosen = [name for name in names if any(fnmatchcase(name, glob) for glob in self.layers)]
        if len(chosen) > MOST_LAYERS:
            raise ValueError(
                f"pictures.layers={self.layers!r} matches {len(chosen)} layers; at most {MOST_LAYERS} are pictured"
            )
        return {name: layers[name] for name in chosen}

    def epochs(self, epochs: int) -> set[int]:
        """After which of so many epochs pictures are taken; 0 is the start."""
        return set(spread(epochs + 1, self.moments))


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``0 .. count - 1``, ascending and evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    # Rounded half up, not to even, so that no step of the spread is taken twice.
    return [(2 * i * (count - 1) + most - 1) // (2 * (most - 1)) for i in range(most)]


@dataclass(frozen=True)
class Picture:
    """One layer at one moment.

    Args:
        layer: its name.
        epoch: epochs done.
        step: optimizer steps done.
        shape: ``(R, C)`` of the weight.
        counts: unsigned ``[r, c]``, active weights in each cell; rows and columns are divided as evenly as can be.
    """

    layer: str
    epoch: int
    step: int
    shape: tuple[int, int]
    counts: np.ndarray

    @property
    def density(self) -> np.ndarray:
        """float64 ``[r, c]``, the share of each cell's weights that are active."""
        rows, cols = (
            np.bincount(_cells(np.arange(size), size, cells), minlength=cells)
            for size, cells in zip(self.shape, self.counts.shape, strict=True)
        )
        return self.counts / np.outer(rows, cols)


def draw(pattern: Pattern, cells: int) -> np.ndarray:
    """Count the active weights of each of at most ``cells x cells`` cells, from the positions of the active ones alone.

    Returns:
        ``[min(R, cells), min(C, cells)]`` of the smallest unsigned type that holds a full cell.
    """
    shape = pattern.shape
    size = min(shape[0], cells), min(shape[1], cells)
    flat = pattern.positions.cpu().numpy().ravel()
    row, col = np.divmod(flat[flat >= 0], max(1, shape[1]))
    cell = _cells(row, shape[0], size[0]) * size[1] + _cells(col, shape[1], size[1])
    full = -(-shape[0] // max(1, size[0])) * -(-shape[1] // max(1, size[1]))
    return np.bincount(cell, minlength=size[0] * size[1]).reshape(size).astype(np.min_scalar_type(full))


def _cells(index: np.ndarray, size: int, cells: int) -> np.ndarray:
    """The cell of each index below ``size``."""
    return index * cells // max(1, size)


def read_pictures(folder: Path) -> list[Picture]:
    """All pictures of a run folder, by time and then by layer.

    Raises:
        ValueError: a file is damaged.
    """
    return [picture for path in _files(folder) for picture in _read(path)]


def _files(folder: Path) -> list[Path]:
    inside = folder / FOLDER
    return sorted(path for path in inside.iterdir() if _NAME.fullmatch(path.name)) if inside.is_dir() else []


def _read(path: Path) -> list[Picture]:
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_ENTRY])
            when = int(about["epoch"]), int(about["step"])
            return [
                _checked(Picture(name, *when, (int(rows), int(cols)), file.get_tensor(name)))
                for name, (rows, cols) in about["shapes"].items()
            ]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no picture: {error}") from error


def _checked(picture: Picture) -> Picture:
    counts, shape = picture.counts, picture.shape
    whole = counts.ndim == 2 and counts.dtype.kind == "u"
    if not whole or not all(0 < n <= size for n, size in zip(counts.shape, shape, strict=True)):
        raise ValueError(f"{picture.layer!r} of shape {shape} has counts {counts.dtype} of shape {counts.shape}")
    return picture


class PictureBook(pl.Callback):
    """Writes ``pictures/epoch-*.safetensors`` at the start and after the chosen epochs.

    Args:
        folder: the run's folder.
        layers: name -> module of those pictured.
        cells: as in :class:`Pictures`.
        epochs: after which epochs; 0 is the start.
    """

    def __init__(self, folder: Path, layers: Mapping[str, SparseModule], cells: int, epochs: Iterable[int]) -> None:
        self.folder = folder
        self.layers = dict(layers)
        self.cells = cells
        self.epochs = set(epochs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pictures that an interrupted run took after its checkpoint will be taken again."""
        for path in _files(self.folder):
            if not trainer.global_step or _read(path)[0].step > trainer.global_step:
                path.unlink()
        if trainer.global_step == 0:
            self._take(0, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take one of every layer, if this is one of the epochs."""
        self._take(trainer.current_epoch + 1, trainer.global_step)

    def _take(self, epoch: int, step: int) -> None:
        if epoch not in self.epochs:
            return
        drawn = {name: draw(module.pattern, self.cells) for name, module in self.layers.items()}
        shapes = {name: list(module.shape) for name, module in self.layers.items()}
        about = json.dumps({"epoch": epoch, "step": step, "shapes": shapes})
        write_bytes(self.folder / FOLDER / f"epoch-{epoch:05}.safetensors", save(drawn, {_ENTRY: about}))
