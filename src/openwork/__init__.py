"""openwork: neural networks that are sparse from the first training step to the last."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openwork import analysis, budgets, layouts, methods, nn
from openwork.allocator import AllocatorWarning
from openwork.pattern import Pattern
from openwork.report import Report
from openwork.sparsify import Sparsity, sparsify
from openwork.surgery import densify

if TYPE_CHECKING:
    from openwork import data

__all__ = [
    "AllocatorWarning",
    "Pattern",
    "Report",
    "Sparsity",
    "analysis",
    "budgets",
    "data",
    "densify",
    "layouts",
    "methods",
    "nn",
    "sparsify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Reading images is not what most users come for, so it is not loaded before it is used.
    if name == "data":
        return import_module("openwork.data")
    raise AttributeError(f"module 'openwork' has no attribute {name!r}")
