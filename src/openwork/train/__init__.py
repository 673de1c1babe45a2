"""The training command's parts, on Lightning."""

from openwork.train.checkpoint import CheckpointError, Interrupted
from openwork.train.data_efficiency import DataEfficiency
from openwork.train.learning_rate import Constant, Cosine, LearningRate, OneCycle, Step
from openwork.train.run import Result, train
from openwork.train.settings import Settings

__all__ = [
    "CheckpointError",
    "Constant",
    "Cosine",
    "DataEfficiency",
    "Interrupted",
    "LearningRate",
    "OneCycle",
    "Result",
    "Settings",
    "Step",
    "train",
]
