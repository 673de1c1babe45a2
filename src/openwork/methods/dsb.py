"""Dynamic shuffled blocks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from openwork.methods.base import Layer
from openwork.methods.drop_grow import DropGrow
from openwork.methods.frontier import grow_blocks
from openwork.scores import Evidence, Proposal, Refit, Scores


class DSB(DropGrow):
    """Drop small weights that crowd a row or column of a block, grow blocks where norms are large, block anew (DSB, sec. 4).

    At an update, which takes the place of the optimizer's step: the ``k`` of eq. (1) smallest weights are marked; those go
    whose row or column in the block is at least half marked; blocks of new weights are taken in the order of
    ``|dOut| |In|``, found by a frontier search and never by a dense gradient, until they make up for what was dropped; new
    weights are lifted for the re-blocking and then set to 0.  On ``Block`` the same rules give DNSB.

    Args:
        interval: as in ``DropGrow``, like ``end``, ``total_steps``, ``drop_fraction`` and ``schedule``.
        end: see above.
        total_steps: see above.
        drop_fraction: see above.
        schedule: see above.
        lift: what a new weight counts in the re-blocking: the ``"max"`` of the active magnitudes (paper) or the ``"mean"``
            (public code).  The maximum makes sure of new weights at the price of strong old ones; ``last_update`` says how
            many.
        grow: by ``"norms"`` (paper) or by the dense ``"gradient"``, taken in row chunks (public code).
        regroup: rows may change their group at ``True`` every update (paper), every n-th update, or ``False`` never.
        norm: ``"l1"`` (paper) or ``"l2"``, a tighter bound of the gradient.
        block_aware: the drop rule above (paper), or all ``k``.
        regrow: whether a weight just dropped may be grown.

    Raises:
        ValueError: a value outside its range, named in the message.
    """

    replaces_step = True

    def __init__(
        self,
        interval: int = 100,
        end: int | float | None = None,
        total_steps: int | None = None,
        drop_fraction: float = 0.3,
        schedule: str = "cosine",
        lift: Literal["max", "mean"] = "max",
        grow: Literal["norms", "gradient"] = "norms",
        regroup: bool | int = True,
        norm: Literal["l1", "l2"] = "l1",
        block_aware: bool = True,
        regrow: bool = True,
    ) -> None:
        super().__init__(interval, end, total_steps, drop_fraction, schedule)
        choices = {"lift": (lift, ("max", "mean")), "grow": (grow, ("norms", "gradient")), "norm": (norm, ("l1", "l2"))}
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(allowed)}")
        if not isinstance(regroup, int) or regroup < 0:
            raise ValueError(f"regroup={regroup!r} must be True, False or a positive number of updates")
        for name, switch in {"block_aware": block_aware, "regrow": regrow}.items():
            if not isinstance(switch, bool):
                raise ValueError(f"{name}={switch!r} must be True or False")
        self.lift, self.grow, self.regroup, self.norm = lift, grow, regroup, norm
        self.block_aware, self.regrow = block_aware, regrow
        norms = Evidence.L1_NORMS if norm == "l1" else Evidence.L2_NORMS
        self.needs = frozenset({norms if grow == "norms" else Evidence.DENSE_GRAD})

    def propose_layer(self, step: int, layer: Layer, share: float) -> Proposal:
        """Single weights to drop, and candidates to grow in their order."""
        keep = layer.weights()
        n_drop = int(share * len(keep))
        m, n = layer.block
        batch = 1
        if n_drop == 0:
            grow = Scores(torch.empty(0), torch.empty(0, dtype=torch.int64))
        elif self.grow == "gradient":
            grow = layer.largest_gradients(keep, n_drop, single=True)
        else:
            batch = m * n
            rows, cols = (norm.double().cpu().numpy() for norm in layer.norms())
            active = np.sort(layer.positions().numpy())
            flat = torch.from_numpy(grow_blocks(rows, cols, (m, n), active, n_drop).ravel())
            grow = Scores(torch.arange(len(flat), 0, -1), flat)
        regroup = bool(self.regroup) and step // self.interval % self.regroup == 0
        refit = Refit(self.lift, regroup, self.block_aware, batch, self.regrow)
        return Proposal(keep, n_drop, grow, layer.count, refit)
