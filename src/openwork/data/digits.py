"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from openwork.data.images import Images, ImageSource, Split, checked_split, class_names

TEST_IMAGES = 360


class Digits(ImageSource):
    """scikit-learn's 1,797 digits of 8 x 8 pixels: 1,437 to train on, 360 to test; no network is needed.

    Args:
        normalisation: a name of :data:`openwork.data.NORMALISATIONS`.
        pad: pixels of black border for the random crop of the training images.
    """

    def __init__(self, normalisation: str = "digits", pad: int = 1) -> None:
        super().__init__(normalisation, pad, flip=False)

    def load(self, split: Split) -> Images:
        """The images of one split; which image lies where never changes."""
        from sklearn.datasets import load_digits

        checked_split(split)
        raw = load_digits()
        # The set is sorted by writer; a fixed shuffle gives both splits every writer.
        order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
        ids = order[TEST_IMAGES:] if split == "train" else order[:TEST_IMAGES]
        pixels = torch.from_numpy(raw.images * 255 / 16).round().to(torch.uint8)[:, None]
        return Images(pixels[ids], torch.from_numpy(raw.target).long()[ids], class_names(10))
