"""Batches from images in memory, with an order that can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from openwork.data.augment import normalise, random_pad_crop_flip
from openwork.data.efficient import DataEfficientSampler
from openwork.data.images import Images, ImageSource
from openwork.data.order import generator_of, shuffled

Batch = tuple[Tensor, Tensor, Tensor]


class BatchLoader:
    """An endless run of epochs over images in memory; one ``for`` loop is one epoch.

    Order and augmentation are functions of ``(seed, epoch, batch)`` alone and touch no global random state, so ``state_dict``
    is two numbers and a resumed run sees exactly the batches that an uninterrupted one would have seen.  A selection has its
    own state, to be loaded first.

    Args:
        images: what is served.
        source: gives normalisation and augmentation.
        batch_size: samples per batch.
        train: shuffle, augment, and drop a last batch that is not full; otherwise serve everything in order, as it is.
        seed: of order and augmentation.
        selection: which images each epoch has, and in what order; it brings its own seed of the order.

    Yields:
        ``(x float32 [N, C, H, W], y int64 [N], ids int64 [N])``; ids are positions in ``images``.

    Raises:
        ValueError: ``batch_size`` is not positive, a training set is smaller than one batch, or ``selection`` does not fit.
    """

    def __init__(
        self,
        images: Images,
        source: ImageSource,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        selection: DataEfficientSampler | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1")
        if train and len(images) < batch_size:
            raise ValueError(f"batch_size={batch_size!r} must be at most the number of training images, {len(images)}")
        if selection is not None:
            _check_selection(selection, images, batch_size, train)
        self.images = images
        self.source = source
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        # Not called sampler: Lightning takes what has one for torch's own loader.
        self.selection = selection
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches in an epoch; once a selection has removed images, in one of the epochs from then on."""
        return self._batches(len(self.images if self.selection is None else self.selection))

    def __iter__(self) -> Iterator[Batch]:
        order = self._order(self.epoch)
        while True:
            epoch, position = self.epoch, self.position
            last = position + 1 >= self._batches(len(order))
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

    def _batches(self, count: int) -> int:
        whole, rest = divmod(count, self.batch_size)
        return whole if self.train or not rest else whole + 1

    def _order(self, epoch: int) -> Tensor:
        if not self.train:
            return torch.arange(len(self.images))
        if self.selection is not None:
            return self.selection.order(epoch)
        return shuffled(torch.arange(len(self.images)), self.seed, epoch)

    def _batch(self, order: Tensor, epoch: int, position: int) -> Batch:
        ids = order[position * self.batch_size : (position + 1) * self.batch_size]
        pixels = self.images.pixels[ids]
        if self.train:
            generator = generator_of(self.seed, epoch, position + 1)
            pixels = random_pad_crop_flip(pixels, self.source.pad, self.source.flip, generator)
        return normalise(pixels, self.source.normalisation), self.images.labels[ids], ids


def _check_selection(selection: DataEfficientSampler, images: Images, batch_size: int, train: bool) -> None:
    if not train:
        raise ValueError("selection must be None where train=False: evaluation serves all images")
    if selection.events.n_examples != len(images):
        raise ValueError(f"selection is for {selection.events.n_examples} examples, there are {len(images)} training images")
    if selection.at_least < batch_size:
        raise ValueError(f"selection keeps at_least={selection.at_least} images, but an epoch needs one batch of {batch_size}")
