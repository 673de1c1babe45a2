"""Rigging the lottery."""

from openwork.methods.base import Layer
from openwork.methods.drop_grow import DropGrow
from openwork.scores import Evidence, Proposal


class RigL(DropGrow):
    """Drop the smallest magnitudes, grow the largest gradients of the current batch (Evci et al. 2020).

    The update takes the place of the optimizer's step.  What was just dropped may grow again and then counts as never dropped.
    The dense gradient is taken in row chunks with a running top-k, so that no ``R x C`` tensor is held; inputs and output
    gradients of the sparse layers stay in memory until the update.
    """

    needs = frozenset({Evidence.DENSE_GRAD})
    replaces_step = True

    def propose_layer(self, step: int, layer: Layer, share: float) -> Proposal:
        """The smallest go, those of largest gradient come."""
        keep = layer.magnitudes()
        n_drop = int(share * len(keep))
        return Proposal(keep, n_drop, layer.largest_gradients(keep, n_drop), layer.count)
