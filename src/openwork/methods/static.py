"""No topology update at all."""

from collections.abc import Mapping

from openwork.methods.base import Layer, Method
from openwork.scores import Proposal


class Static(Method):
    """The random initial topology, kept.  With a shuffled layout this is SSB (DSB, sec. 6)."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def propose(self, step: int, layers: Mapping[str, Layer]) -> Mapping[str, Proposal]:
        """Nothing."""
        return {}
