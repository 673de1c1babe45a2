"""The training command's parts, on Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openwork.train.checkpoint import CheckpointError, Interrupted
    from openwork.train.data_efficiency import DataEfficiency
    from openwork.train.learning_rate import Constant, Cosine, LearningRate, OneCycle, Restart, Step
    from openwork.train.pictures import Pictures
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
    "Pictures",
    "Restart",
    "Result",
    "Settings",
    "Step",
    "train",
]

_HOMES = {
    "checkpoint": ("CheckpointError", "Interrupted"),
    "data_efficiency": ("DataEfficiency",),
    "learning_rate": ("Constant", "Cosine", "LearningRate", "OneCycle", "Restart", "Step"),
    "pictures": ("Pictures",),
    "run": ("Result", "train"),
    "settings": ("Settings",),
}


def __getattr__(name: str) -> Any:
    # Looking at a run that is there already should not wait for Lightning, so nothing is loaded before it is used.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"openwork.train.{module}"), name)
    raise AttributeError(f"module 'openwork.train' has no attribute {name!r}")
