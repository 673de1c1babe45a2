"""What a model costs, what its topology explores, and what a layout allows."""

from openwork.analysis import footprint
from openwork.analysis.comparison import Comparison, compare_memory
from openwork.analysis.diversity import mask_diversity
from openwork.analysis.exploration import Exploration, layer_sparsity
from openwork.analysis.flops import Flops, flops
from openwork.analysis.memory import Memory, active_parameters, memory
from openwork.analysis.step_flops import dsb_update, gse_update, training_flops

__all__ = [
    "Comparison", "Exploration", "Flops", "Memory", "active_parameters", "compare_memory", "dsb_update", "flops", "footprint",
    "gse_update", "layer_sparsity", "mask_diversity", "memory", "training_flops",
]  # fmt: skip
