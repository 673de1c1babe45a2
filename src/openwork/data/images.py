"""Images in memory, and what every source of them provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "test"]

# Means and standard deviations per channel, images scaled to 0..1.  The DSB and MEST codes share the CIFAR-10 numbers "mest",
# the GSE paper (appendix C) states its own; "none" only scales.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "gse": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mest": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "gse-cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": ((0.3057,), (0.3759,)),
    "none": ((0.0,), (1.0,)),
}


class DataError(ValueError):
    """Data that is missing, damaged or not of the stated form."""


@dataclass(frozen=True)
class Images:
    """A labelled set of images of one size, in memory.

    Args:
        pixels: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, each in ``0..len(classes) - 1``.
        classes: the classes' names.

    Raises:
        DataError: wrong dtypes or shapes, or a label without a class.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise DataError(f"pixels must be uint8 [N, C, H, W], got {self.pixels.dtype} {tuple(self.pixels.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise DataError(f"labels must be int64 [{len(self.pixels)}], got {self.labels.dtype} {tuple(self.labels.shape)}")
        if len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(f"labels lie in {low}..{high}, but there are {len(self.classes)} classes, counted from 0")

    def __len__(self) -> int:
        return len(self.labels)


class ImageSource(ABC):
    """Where images come from, and how they are normalised and augmented.

    Args:
        normalisation: a name of :data:`NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images; 0 for none.
        flip: mirror training images with probability 1/2.

    Raises:
        ValueError: an unknown normalisation, or a negative ``pad``.
    """

    def __init__(self, normalisation: str, pad: int, flip: bool) -> None:
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation={normalisation!r} must be one of {sorted(NORMALISATIONS)}")
        if pad < 0:
            raise ValueError(f"pad={pad!r} must not be negative")
        self.normalisation = normalisation
        self.pad = pad
        self.flip = flip

    @abstractmethod
    def load(self, split: Split) -> Images:
        """The images of one split, decoded.

        Raises:
            DataError: they are missing, damaged or not of the stated form.
        """


def class_names(count: int) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1", ..."""
    return tuple(str(i) for i in range(count))


def checked_split(split: str, allowed: Sequence[str] = ("train", "test")) -> None:
    """Refuse a split that is not known.

    Raises:
        ValueError: ``split`` is not in ``allowed``.
    """
    if split not in allowed:
        raise ValueError(f"split={split!r} must be one of {list(allowed)}")
