"""Sparse evolutionary training."""

from openwork.methods.base import Layer
from openwork.methods.drop_grow import DropGrow
from openwork.scores import Proposal


class SET(DropGrow):
    """Drop the smallest magnitudes, grow at random (Mocanu et al. 2018), with exact counts and new weights at 0.

    The update follows the optimizer's step.  The original drops a constant 0.3 once an epoch: ``interval`` = steps per epoch
    and ``schedule="constant"``; the default is the cosine that later work compares with.
    """

    def propose_layer(self, step: int, layer: Layer, share: float) -> Proposal:
        """The smallest go, random ones come."""
        keep = layer.magnitudes()
        n_drop = int(share * len(keep))
        return Proposal(keep, n_drop, layer.sample_inactive(n_drop), layer.count)
