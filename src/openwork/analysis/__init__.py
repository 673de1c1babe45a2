"""What a model costs."""

from openwork.analysis.memory import Memory, active_parameters, memory

__all__ = ["Memory", "active_parameters", "memory"]
