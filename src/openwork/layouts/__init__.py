"""Where non-zeros may lie.  A new layout is one file plus one import line here."""

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Layout, LayoutError, LayoutRule
from openwork.layouts.block import Block
from openwork.layouts.channel import Channel
from openwork.layouts.complementary import Complementary
from openwork.layouts.filter import Filter
from openwork.layouts.kernel_pattern import KernelPattern
from openwork.layouts.nm import NM
from openwork.layouts.out_vector import OutVector
from openwork.layouts.per_layer import PerLayer
from openwork.layouts.refit import RefitLayout
from openwork.layouts.shuffled_block import ShuffledBlock
from openwork.layouts.shuffled_vector import ShuffledVector
from openwork.layouts.transposable import TransposableNM
from openwork.layouts.unstructured import Unstructured

__all__ = [
    "NM", "AtomLayout", "Block", "Channel", "Complementary", "Filter", "KernelPattern", "Layout", "LayoutError", "LayoutRule",
    "OutVector", "PerLayer", "RefitLayout", "ShuffledBlock", "ShuffledVector", "TransposableNM",
    "Unstructured",
]  # fmt: skip
