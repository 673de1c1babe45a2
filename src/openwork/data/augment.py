"""Augmentation and normalisation of a whole batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.data.images import NORMALISATIONS


def pad_crop_flip(pixels: Tensor, top: Tensor, left: Tensor, mirror: Tensor, pad: int) -> Tensor:
    """Pad with black, cut every image's own window of the old size, mirror some.

    Args:
        pixels: ``[N, C, H, W]``, any dtype.
        top: int64 ``[N]``, first row of each window in the padded image, ``0..2 * pad``.
        left: int64 ``[N]``, first column of each window.
        mirror: bool ``[N]``, which windows are mirrored left to right.
        pad: width of the black border.

    Returns:
        ``[N, C, H, W]``, contiguous.
    """
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels, (pad, pad, pad, pad)) if pad else pixels
    rows = top[:, None] + torch.arange(height)
    across = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(mirror[:, None], across.flip(1), across)
    # One flat gather: several index tensors at once would cost three times as much.
    at = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    at = at.view(count, 1, height * width).expand(count, channels, height * width)
    return padded.flatten(2).gather(2, at).view(count, channels, height, width)


def random_pad_crop_flip(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """:func:`pad_crop_flip` with windows drawn uniformly and half of them mirrored (GSE, appendix D)."""
    if not pad and not flip:
        return pixels
    count = len(pixels)
    corners = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    mirror = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    return pad_crop_flip(pixels, corners[0], corners[1], mirror, pad)


def normalise(pixels: Tensor, normalisation: str) -> Tensor:
    """uint8 ``[N, C, H, W]`` to float32: scaled to 0..1, then by a preset of :data:`NORMALISATIONS`.

    Raises:
        ValueError: the preset has another number of channels than the images.
    """
    mean, std = NORMALISATIONS[normalisation]
    if len(mean) not in (1, pixels.shape[1]):
        raise ValueError(f"normalisation={normalisation!r} is for {len(mean)} channels, the images have {pixels.shape[1]}")
    shift = torch.tensor(mean).view(-1, 1, 1)
    scale = torch.tensor(std).view(-1, 1, 1)
    return pixels.float().sub_(255 * shift).div_(255 * scale)
