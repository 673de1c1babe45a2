"""Batches from images in memory, with an order that can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from openwork.data.augment import normalise, random_pad_crop_flip
from openwork.data.images import Images, ImageSource

Batch = tuple[Tensor, Tensor, Tensor]


class BatchLoader:
    """An endless run of epochs over images in memory; one ``for`` loop is one epoch.

    Order and augmentation are functions of ``(seed, epoch, batch)`` alone and touch no global random state, so ``state_dict``
    is two numbers and a resumed run sees exactly the batches that an uninterrupted one would have seen.

    Args:
        images: what is served.
        source: gives normalisation and augmentation.
        batch_size: samples per batch.
        train: shuffle, augment, and drop a last batch that is not full; otherwise serve everything in order, as it is.
        seed: of order and augmentation.

    Yields:
        ``(x float32 [N, C, H, W], y int64 [N], ids int64 [N])``; ids are positions in ``images``.

    Raises:
        ValueError: ``batch_size`` is not positive, or a training set is smaller than one batch.
    """

    def __init__(self, images: Images, source: ImageSource, batch_size: int, *, train: bool, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1")
        if train and len(images) < batch_size:
            raise ValueError(f"batch_size={batch_size!r} must be at most the number of training images, {len(images)}")
        self.images = images
        self.source = source
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.train or not rest else whole + 1

    def __iter__(self) -> Iterator[Batch]:
        order = self._order(self.epoch)
        while True:
            epoch, position = self.epoch, self.position
            last = position + 1 >= len(self)
            # Move on before the batch is handed out: whoever saves the state after a step must find the next batch.
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
            yield self._batch(order, epoch, position)
            if last:
                return

    def state_dict(self) -> dict[str, int]:
        """The next batch: ``{"epoch", "position"}``."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state_dict`` was taken; the next ``for`` loop starts there.

        Raises:
            ValueError: the position lies outside the epoch.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < len(self):
            raise ValueError(f"epoch={epoch}, position={position} is outside an epoch of {len(self)} batches")
        self.epoch, self.position = epoch, position

    def _order(self, epoch: int) -> Tensor:
        if not self.train:
            return torch.arange(len(self.images))
        return torch.randperm(len(self.images), generator=_generator(self.seed, epoch, 0))

    def _batch(self, order: Tensor, epoch: int, position: int) -> Batch:
        ids = order[position * self.batch_size : (position + 1) * self.batch_size]
        pixels = self.images.pixels[ids]
        if self.train:
            generator = _generator(self.seed, epoch, position + 1)
            pixels = random_pad_crop_flip(pixels, self.source.pad, self.source.flip, generator)
        return normalise(pixels, self.source.normalisation), self.images.labels[ids], ids


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """A generator of its own for every (seed, epoch, stream)."""
    # Multiplying by odd constants keeps the keys apart; the generator scrambles its seed itself.
    key = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(key)
