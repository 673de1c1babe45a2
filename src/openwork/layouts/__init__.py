"""Where non-zeros may lie.  A new layout is one file here plus one line below."""

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Layout, LayoutError, RefitLayout
from openwork.layouts.block import Block
from openwork.layouts.out_vector import OutVector
from openwork.layouts.shuffled_block import ShuffledBlock
from openwork.layouts.unstructured import Unstructured

__all__ = ["AtomLayout", "Block", "Layout", "LayoutError", "OutVector", "RefitLayout", "ShuffledBlock", "Unstructured"]
