"""openwork: neural networks that are sparse from the first training step to the last."""

from openwork import analysis, budgets, layouts, methods, nn
from openwork.pattern import Pattern
from openwork.report import Report
from openwork.sparsify import Sparsity, sparsify
from openwork.surgery import densify

__all__ = ["Pattern", "Report", "Sparsity", "analysis", "budgets", "densify", "layouts", "methods", "nn", "sparsify"]
__version__ = "0.1.0"
