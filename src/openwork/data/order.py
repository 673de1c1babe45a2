"""Random orders and random streams that are functions of seed, epoch and stream alone."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_of(seed: int, epoch: int, stream: int) -> torch.Generator:
    """A generator of its own for every (seed, epoch, stream)."""
    # Multiplying by odd constants keeps the keys apart; the generator scrambles its seed itself.
    key = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(key)


def shuffled(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """``ids`` in the random order of an epoch, drawn from stream 0."""
    return ids[torch.randperm(len(ids), generator=generator_of(seed, epoch, 0))]
