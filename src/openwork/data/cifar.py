"""CIFAR-10 and CIFAR-100 from the official binary archives."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from openwork.data.download import fetch, unpack
from openwork.data.images import DataError, Images, ImageSource, Split, checked_split

PIXELS = 3 * 32 * 32


class Archive(NamedTuple):
    """One official archive and what its files look like."""

    url: str
    sha256: str
    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    label_bytes: int


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    names="batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    names="fine_label_names.txt",
    label_bytes=2,
)


def read_binary(folder: Path, archive: Archive, split: Split) -> Images:
    """Read the binary files of one split: records of label bytes (the last one counts) and 3 x 32 x 32 pixels.

    Raises:
        DataError: a file is missing or does not consist of whole records.
    """
    record = archive.label_bytes + PIXELS
    parts = []
    for name in archive.files[split]:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; delete {folder} to have it unpacked again")
        raw = np.fromfile(path, np.uint8)
        if not len(raw) or len(raw) % record:
            raise DataError(f"{path} has {len(raw)} bytes, which is no positive multiple of a record's {record}")
        parts.append(raw.reshape(-1, record))
    data = torch.from_numpy(np.concatenate(parts))
    names = [line.strip() for line in (folder / archive.names).read_text().splitlines() if line.strip()]
    pixels = data[:, archive.label_bytes :].reshape(-1, 3, 32, 32).contiguous()
    return Images(pixels, data[:, archive.label_bytes - 1].long(), tuple(names))


class _Cifar(ImageSource):
    """What both sets share: find, or download, then read."""

    archive: Archive

    def __init__(self, root: str, normalisation: str, pad: int, flip: bool, download: bool) -> None:
        super().__init__(normalisation, pad, flip)
        self.root = Path(root)
        self.download = download

    def load(self, split: Split) -> Images:
        """The images of one split; downloads and unpacks the archive where it is not there yet.

        Raises:
            DataError: the archive is neither there nor to be had, or it is damaged.
        """
        checked_split(split)
        folder = self.root / self.archive.folder
        if not folder.is_dir():
            target = self.root / Path(self.archive.url).name
            if not target.exists() and not self.download:
                raise DataError(f"{folder} is missing; put {self.archive.url} at {target}, or set download to true")
            unpack(fetch(self.archive.url, target, self.archive.sha256), folder)
        return read_binary(folder, self.archive, split)


class Cifar10(_Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 in 10 classes (Krizhevsky, 2009).

    Args:
        root: folder of the official archive ``cifar-10-binary.tar.gz`` or of its unpacked content.
        normalisation: "gse" or "mest", the papers' constants, or another name of :data:`openwork.data.NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images.
        flip: mirror half of the training images.
        download: fetch the archive (170 MB) where it is missing; it is checked by SHA-256 either way.
    """

    archive = CIFAR10

    def __init__(
        self, root: str = "data", normalisation: str = "gse", pad: int = 4, flip: bool = True, download: bool = True
    ) -> None:
        super().__init__(root, normalisation, pad, flip, download)


class Cifar100(_Cifar):
    """CIFAR-100 with its 100 fine classes (Krizhevsky, 2009); 50,000 training and 10,000 test images of 32 x 32.

    Args:
        root: folder of the official archive ``cifar-100-binary.tar.gz`` or of its unpacked content.
        normalisation: "gse-cifar100", or another name of :data:`openwork.data.NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images.
        flip: mirror half of the training images.
        download: fetch the archive (169 MB) where it is missing; it is checked by SHA-256 either way.
    """

    archive = CIFAR100

    def __init__(
        self, root: str = "data", normalisation: str = "gse-cifar100", pad: int = 4, flip: bool = True, download: bool = True
    ) -> None:
        super().__init__(root, normalisation, pad, flip, download)
