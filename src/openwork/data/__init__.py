"""Images held in memory, served in augmented batches, and which of them are worth training on."""

from openwork.data.augment import normalise, pad_crop_flip, random_pad_crop_flip
from openwork.data.cifar import Cifar10, Cifar100
from openwork.data.digits import Digits
from openwork.data.efficient import DataEfficientSampler, expected_speedup
from openwork.data.files import ImageFolder, Parquet
from openwork.data.forgetting import ForgettingEvents
from openwork.data.images import NORMALISATIONS, DataError, Images, ImageSource
from openwork.data.loader import BatchLoader

__all__ = [
    "NORMALISATIONS",
    "BatchLoader",
    "Cifar10",
    "Cifar100",
    "DataEfficientSampler",
    "DataError",
    "Digits",
    "ForgettingEvents",
    "ImageFolder",
    "ImageSource",
    "Images",
    "Parquet",
    "expected_speedup",
    "normalise",
    "pad_crop_flip",
    "random_pad_crop_flip",
]
