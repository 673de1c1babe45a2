"""Any weight may be active."""

from openwork.layouts.tiles import TileLayout


class Unstructured(TileLayout):
    """Single weights, anywhere: a CSR matrix (MEST, App. A).

    The atom is one weight, so every method works on it in its original form.  Kernels gain least from it.
    """

    def __init__(self) -> None:
        super().__init__(1, 1)
