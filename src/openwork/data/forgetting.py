"""Forgetting events: how often each training example was classified right and then wrong (Toneva et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LARGEST = 255
"""Where a count stops: 255 stands for 255 or more."""


class ForgettingEvents:
    """Learning and forgetting events of every training example, counted from the training forward pass (MEST, section 4).

    A *learning event* is a presentation classified right after one that was not (or the first), a *forgetting event* one
    classified wrong after one that was right.  An example is *unforgettable* if it was learned and never forgotten.  One that
    was never learned tells nothing about being easy: its :attr:`difficulty` is infinite.

    The scores of the training step itself are used: no forward pass is added, but they are those of augmented images, of a
    model in training mode, just before the step.

    An example takes a byte for its forgetting events, which stop at 255, and a bit for whether it was right last time, packed
    by eight.  The procedure's second bit, whether it was ever learned, follows: it was forgotten, or it is right.

    Args:
        n_examples: size of the training set; ids are ``0..n_examples - 1``.

    Example::

        events = ForgettingEvents(len(dataset))
        for x, y, ids in loader:
            scores = model(x)
            events.record(ids, scores, y)

    Raises:
        ValueError: ``n_examples`` is no positive number.
    """

    def __init__(self, n_examples: int) -> None:
        if isinstance(n_examples, bool) or not isinstance(n_examples, int) or n_examples < 1:
            raise ValueError(f"n_examples={n_examples!r} must be a whole number of at least 1")
        self.n_examples = n_examples
        self._counts = torch.zeros(n_examples, dtype=torch.uint8)
        self._right = torch.zeros((n_examples + 7) // 8, dtype=torch.uint8)

    def record(self, ids: Tensor, scores: Tensor, targets: Tensor) -> None:
        """Count one batch from its class scores; with smoothed labels ``targets`` are still the classes.

        Args:
            ids: ``[N]``, which examples; each at most once.
            scores: ``[N, classes]``, for instance logits; the largest is the model's answer.
            targets: ``[N]``, the right classes.

        Raises:
            ValueError: shapes that do not fit each other, or ids as in :meth:`record_correct`; nothing is counted then.
        """
        if scores.dim() != 2 or targets.shape != scores.shape[:1]:
            found = f"{tuple(scores.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"scores and targets must have shapes [N, classes] and [N], got {found}")
        self.record_correct(ids, scores.detach().argmax(1) == targets)

    def record_correct(self, ids: Tensor, correct: Tensor) -> None:
        """Count one batch from what was right.

        Args:
            ids: integers ``[N]``, which examples; each at most once.
            correct: bool ``[N]``, whether each was classified right.

        Raises:
            ValueError: wrong shapes or types, or an id out of range or twice; nothing is counted then.
        """
        ids = self._checked(ids, correct)
        byte, shift = ids >> 3, (ids & 7).to(torch.uint8)
        now, before = correct.cpu().to(torch.uint8), self._right[byte] >> shift & 1
        counts = self._counts[ids]
        self._counts[ids] = counts + (before & (1 - now) & (counts < LARGEST))
        # An example occurs once, so that each bit of a byte changes by its own amount and sums modulo 256 never carry.
        self._right.index_add_(0, byte, (now - before) << shift)

    def _checked(self, ids: Tensor, correct: Tensor) -> Tensor:
        if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers [N], got {ids.dtype} {tuple(ids.shape)}")
        if correct.dtype != torch.bool or correct.shape != ids.shape:
            raise ValueError(f"correct must be bool [{len(ids)}] as ids are, got {correct.dtype} {tuple(correct.shape)}")
        ids = ids.detach().cpu().long()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.n_examples:
            raise ValueError(f"ids lie in {int(ids.min())}..{int(ids.max())}, allowed are 0..{self.n_examples - 1}")
        once, times = ids.unique(return_counts=True)
        if len(once) < len(ids):
            raise ValueError(f"ids names example {int(once[times > 1][0])} twice; a call counts one presentation of an example")
        return ids

    @property
    def right(self) -> Tensor:
        """bool ``[n_examples]``, whether each was right at its last presentation; False before the first."""
        bits = self._right[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return bits.flatten()[: self.n_examples].bool()

    @property
    def forgetting(self) -> Tensor:
        """uint8 ``[n_examples]``, forgetting events; 255 stands for 255 or more."""
        return self._counts.clone()

    @property
    def learning(self) -> Tensor:
        """int16 ``[n_examples]``, learning events: one more than forgetting events where the example is right now."""
        return self._counts.to(torch.int16) + self.right

    @property
    def learned(self) -> Tensor:
        """bool ``[n_examples]``, whether each was right at least once."""
        return self.right | (self._counts > 0)

    @property
    def difficulty(self) -> Tensor:
        """float32 ``[n_examples]``, forgetting events, infinite where the example was never learned."""
        return torch.where(self.learned, self._counts.float(), torch.inf)

    @property
    def n_unforgettable(self) -> int:
        """Examples learned and never forgotten."""
        return int((self.right & (self._counts == 0)).sum())

    @property
    def n_never_learned(self) -> int:
        """Examples never right, those never presented among them."""
        return self.n_examples - int(self.learned.sum())

    @property
    def histogram(self) -> Tensor:
        """int64 ``[256]``: how many of the learned examples were forgotten 0, 1, ... times; the last is 255 or more."""
        return torch.bincount(self._counts[self.learned].long(), minlength=LARGEST + 1)

    def state_dict(self) -> dict[str, Tensor]:
        """``{"counts": uint8 [n_examples], "right": uint8 [n_examples / 8]}``."""
        return {"counts": self._counts.clone(), "right": self._right.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            ValueError: the state is incomplete or of another number of examples; nothing is changed then.
        """
        for name, own in (("counts", self._counts), ("right", self._right)):
            found = state.get(name)
            if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.shape != own.shape:
                what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
                raise ValueError(
                    f"{name} of the state must be uint8 {tuple(own.shape)} for {self.n_examples} examples, got {what}"
                )
        self._counts, self._right = state["counts"].cpu().clone(), state["right"].cpu().clone()
