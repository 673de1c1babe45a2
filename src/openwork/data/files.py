"""Encoded images: Parquet files in the Hugging Face layout, and folders with one class per subfolder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from openwork.data.images import DataError, Images, ImageSource, Split, checked_split, class_names

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def decode(encoded: Iterable[tuple[str, bytes]], count: int, size: int | None, channels: int, what: str) -> Tensor:
    """Decode images once into uint8 ``[N, channels, H, W]``, showing progress where it takes long.

    Args:
        encoded: pairs of name (for errors) and file content.
        count: how many there are.
        size: side of the square to which images are brought (shorter side scaled, centre cut); None: they have one size.
        channels: 3 for RGB, 1 for grey.
        what: title of the progress bar.

    Raises:
        DataError: an image cannot be decoded, or sizes differ and no ``size`` is given.
    """
    from PIL import Image, UnidentifiedImageError

    pixels: Tensor | None = None
    shown = track(encoded, what, total=count, transient=True, console=Console(stderr=True), disable=count < 2000)
    for i, (name, content) in enumerate(shown):
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{name} is no readable image: {error}") from error
        if size is not None:
            image = centre_square(image, size)
        array = torch.from_numpy(np.array(image)).view(image.height, image.width, channels).permute(2, 0, 1)
        if pixels is None:
            pixels = torch.empty((count, *array.shape), dtype=torch.uint8)
        if array.shape != pixels.shape[1:]:
            expected, found = tuple(pixels.shape[2:]), tuple(array.shape[1:])
            raise DataError(f"{name} is {found} (height, width), the images before it {expected}; set size to bring all to one")
        pixels[i] = array
    if pixels is None:
        raise DataError(f"{what}: there are no images")
    return pixels


def centre_square(image: Image, size: int) -> Image:
    """Scale the shorter side to ``size`` and cut the square in the middle."""
    from PIL import Image as Pillow

    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Pillow.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


class Parquet(ImageSource):
    """Encoded images in Parquet files, as Hugging Face stores them.

    The image column is ``img`` or ``image``: bytes, or a struct with ``bytes`` and ``path``; the label column is ``label`` (or
    ``fine_label``), integers.

    Args:
        path: a folder; its files whose names start with the split's name (``train*.parquet``, ``test*.parquet``) are read.
        normalisation: a name of :data:`openwork.data.NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images.
        flip: mirror half of the training images.
        size: side of the square to which images are brought; None: they have one size already.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self,
        path: str,
        normalisation: str = "gse",
        pad: int = 4,
        flip: bool = True,
        size: int | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(normalisation, pad, flip)
        self.path = Path(path)
        self.size = size
        self.channels = channels

    def load(self, split: Split) -> Images:
        """Decode one split.

        Raises:
            DataError: no file of that split, no column of images or labels, or an image that cannot be decoded.
        """
        import pyarrow.parquet as pq

        checked_split(split)
        files = sorted(self.path.glob(f"{split}*.parquet"))
        if not files:
            raise DataError(f"path={str(self.path)!r} holds no file named {split}*.parquet")
        tables = [pq.read_table(file) for file in files]
        columns = tables[0].column_names
        image, label = _column(columns, ("img", "image"), files[0]), _column(columns, ("label", "fine_label"), files[0])
        labels = np.concatenate([table[label].to_numpy() for table in tables]).astype(np.int64)
        encoded = ((f"{file}, row {i}", _bytes(cell.as_py())) for file, table in zip(files, tables, strict=True)
                   for i, cell in enumerate(table[image]))  # fmt: skip
        pixels = decode(encoded, len(labels), self.size, self.channels, f"decoding {split} images")
        names = _class_names(tables[0].schema.metadata, label) or class_names(int(labels.max()) + 1)
        return Images(pixels, torch.from_numpy(labels), names)


def _column(columns: list[str], wanted: tuple[str, ...], file: Path) -> str:
    found = [name for name in wanted if name in columns]
    if not found:
        raise DataError(f"{file} has columns {columns}, but none of {list(wanted)}")
    return found[0]


def _bytes(cell: Any) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else b""


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Names from the schema metadata that Hugging Face writes, where they are there."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names))


class ImageFolder(ImageSource):
    """Image files in ``path/train/CLASS/*`` and ``path/test/CLASS/*`` (or ``path/val/...``).

    Args:
        path: the folder that holds both splits; classes are the training split's subfolders in alphabetical order.
        normalisation: a name of :data:`openwork.data.NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images.
        flip: mirror half of the training images.
        size: side of the square to which images are brought; None: they have one size already.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self,
        path: str,
        normalisation: str = "imagenet",
        pad: int = 4,
        flip: bool = True,
        size: int | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(normalisation, pad, flip)
        self.path = Path(path)
        self.size = size
        self.channels = channels

    def load(self, split: Split) -> Images:
        """Decode one split.

        Raises:
            DataError: no such folder, no images, a class that the training split lacks, or an image that cannot be decoded.
        """
        checked_split(split)
        train = self._folder("train")
        classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
        folder = train if split == "train" else self._folder("test", "val")
        unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in classes)
        if unknown:
            raise DataError(f"{folder} has classes {unknown} that {train} lacks")
        found = [(file, i) for i, name in enumerate(classes) for file in sorted((folder / name).glob("*"))
                 if file.suffix.lower() in ENDINGS]  # fmt: skip
        encoded = ((str(file), file.read_bytes()) for file, _ in found)
        pixels = decode(encoded, len(found), self.size, self.channels, f"decoding {split} images of {folder}")
        return Images(pixels, torch.tensor([i for _, i in found], dtype=torch.int64), tuple(classes))

    def _folder(self, *names: str) -> Path:
        for name in names:
            if (self.path / name).is_dir():
                return self.path / name
        raise DataError(f"path={str(self.path)!r} holds no folder {' or '.join(map(repr, names))}")
