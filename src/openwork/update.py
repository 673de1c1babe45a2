"""One topology update of one layer: what the method sees, and how the layer moves from one pattern to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from openwork.layouts import Layout, Unstructured
from openwork.layouts.base import TOPOLOGY_BUDGET
from openwork.layouts.stage import Stage
from openwork.nn import SparseModule
from openwork.nn.master import resize
from openwork.pattern import Pattern, carried, carry, consecutive_rows, row_chunks, same_pattern
from openwork.scores import Proposal, Scores, lowest, member


class Change(NamedTuple):
    """What a topology update did to a layer.

    Attributes:
        dropped: weights that were active and are no more.
        grown: weights that are new.
        evicted: weights (atoms times their size) that fell although the method wanted to keep them, as re-blocking may do.
        evicted_mass: their share of the layer's ``sum |w|`` before the update.
    """

    dropped: int
    grown: int
    evicted: int
    evicted_mass: float


class Gradients(NamedTuple):
    """Gradients of the values, summed over optimizer steps.

    Attributes:
        total: their sum, shaped like the values.
        steps: how many.
    """

    total: Tensor
    steps: int


@dataclass(eq=False)
class SparseLayer:
    """A sparse module, the layout that its patterns come from and the number of units it holds."""

    name: str
    module: SparseModule
    layout: Layout
    count: int
    density: float
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.selected: float | None = None
        self._now: Pattern | None = None
        self.gradients: Gradients | None = None

    @property
    def now(self) -> Pattern:
        """The pattern at present, on the CPU, where topology is decided."""
        if self._now is None or self._now.cols is not self.module.cols:
            self._now = self.module.pattern.to("cpu")
        return self._now

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""
        return self.module.shape

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a unit."""
        return self.layout.block

    def magnitudes(self) -> Tensor:
        """The mean ``|w|`` of every active atom."""
        return self.layout.pool(self.now, self._absolute())

    def units(self, density: float) -> int:
        """The units that make up ``density``."""
        return self.layout.fit(self.module.dense_dims, density)

    def importances(self, gradient_weight: float) -> Tensor:
        """The mean ``|w| + |gradient_weight * dL/dw|`` of every active atom."""
        gradient = self.module.values.grad if self.gradients is None else self.gradients.total / self.gradients.steps
        if gradient is None or not gradient_weight:
            return self.magnitudes()
        return self.layout.pool(self.now, self._absolute() + (gradient_weight * gradient.detach()).abs().cpu())

    def add_gradient(self) -> None:
        """Take the gradient of this step in the sum that ``importances`` looks at."""
        gradient = self.module.values.grad
        if gradient is None:
            return
        held = self.gradients
        self.gradients = Gradients(gradient.clone(), 1) if held is None else Gradients(held.total + gradient, held.steps + 1)

    def weights(self) -> Tensor:
        """``|w|`` of every active weight."""
        size = self._absolute()
        return size.flatten() if size.numel() == self.now.nnz else size[self._stored()]

    def positions(self) -> Tensor:
        """Flat positions of the active weights."""
        at = self.now.positions
        return at.flatten() if at.numel() == self.now.nnz else at[at >= 0]

    def sample_inactive(self, n: int) -> Scores:
        """``n`` random inactive atoms."""
        return self.layout.sample_inactive(self.now, n, self.generator)

    def largest_gradients(self, keep: Tensor, n: int, *, single: bool = False) -> Scores:
        """The best of what is inactive and of the ``n`` of lowest ``keep``, by dense gradient."""
        ids = self.positions() if single else self.layout.atoms(self.now)
        kept = torch.from_numpy(np.delete(ids.numpy(), lowest(keep.numpy(), n)))
        layout, now = self.layout, self.now
        if single:
            layout = Unstructured()
            rows = consecutive_rows(self.shape[0], 1)
            now = Pattern(self.shape, rows, torch.zeros(len(rows) + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
        assert self.module.collector is not None
        chunks = self.module.collector.gradient_chunks(layout.ground(now), TOPOLOGY_BUDGET // 48)
        return layout.best_inactive(now, kept, ((first, chunk.cpu()) for first, chunk in chunks), n)

    @property
    def resizable(self) -> bool:
        """Whether ``count`` may change by any number of atoms."""
        return self.layout.resizable

    def gradients_at(self, positions: Tensor) -> Scores:
        """Exact gradients of the inactive atoms at ``positions``, on a temporary pattern of these alone."""
        assert self.module.collector is not None
        pattern, ids = self.layout.candidates(self.now, positions.numpy())
        gradient = self.module.collector.gradient_at(pattern.to(self.module.values.device)).abs().cpu()
        return Scores(self.layout.pool(pattern, gradient), ids)

    def norms(self) -> tuple[Tensor, Tensor]:
        """Norms of the output gradient's and the input's rows."""
        assert self.module.collector is not None
        return self.module.collector.norms()

    def revise(self, proposal: Proposal, state: dict[str, Tensor]) -> Change:
        """Move to the pattern that the proposal leads to.

        Values and every tensor of ``state`` (the optimizer's, changed in place of the dict's entries) that is shaped like them
        are carried: survivors bit for bit, new entries 0.
        """
        old = self.now
        swap = self.layout.swapped(old, proposal)
        if swap is not None and swap.moves is not None:
            # Only the lowest went, as the proposal wanted, and none came back.
            moved = swap.moves.to(self.module.values.device)
            self._move(proposal, moved.new, moved.carried, state)
            grown = len(moved.new_at)
            return Change(old.nnz - (swap.new.nnz - grown), grown, 0, 0.0)
        new = swap.new if swap is not None else self.layout.revise(old, proposal)
        source, target = carry(old, new)
        change = self._change(proposal, old, new, source)
        device = self.module.values.device
        new, moves = new.to(device), (source.to(device), target.to(device))
        self._move(proposal, new, lambda tensor: carried(tensor, old, new, moves), state)
        return change

    def _move(self, proposal: Proposal, new: Pattern, move: Callable[[Tensor], Tensor], state: dict[str, Tensor]) -> None:
        """Go to the pattern ``new``; ``move`` makes of old values the ones that go with it."""
        shape = self.module.values.shape
        for key, tensor in list(state.items()):
            if isinstance(tensor, Tensor) and tensor.shape == shape:
                state[key] = move(tensor)
        self.module.replace(new, move(self.module.values.detach()))
        self.count = proposal.count
        self.gradients = None

    def keep_all(self, weight: nn.Parameter, density: float) -> None:
        """Train all of ``weight`` from now on, and compute with its best at ``density``.

        Raises:
            LayoutError: the layout cannot be had at this density.
        """
        self.module.master = weight
        self._take(density)

    def select(self, density: float) -> Change:
        """Compute with the largest of all weights at ``density``."""
        old = self.now
        self._take(density)
        survivors = len(carry(old, self.now)[0])
        return Change(old.nnz - survivors, self.now.nnz - survivors, 0, 0.0)

    def _take(self, density: float) -> None:
        master = self.module.master
        assert master is not None
        stage = Stage(self.layout, self.module.dense_dims, density)
        weight = master.detach().reshape(self.shape)
        new = stage.select(self.now, self._chunks(weight)).to(weight.device)
        if same_pattern(new, self.module.pattern):
            self.module.gather()
        else:
            self.module.replace(new, new.pack(weight))
        self.count, self.selected = stage.count, density

    def _chunks(self, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """``|weight|`` by row groups, as layouts take it."""
        rows = self.layout.ground(self.now)
        for first, ids in row_chunks(rows, self.shape[1] * weight.element_size(), TOPOLOGY_BUDGET // 48):
            yield first, weight[ids.to(weight.device)].abs().view(-1, rows.shape[1], self.shape[1]).cpu()

    def settle(self, optimizer: torch.optim.Optimizer) -> None:
        """Train only the active weights from now on; their optimizer state is kept, that of all others is let go."""
        module = self.module
        assert module.master is not None
        state = optimizer.state.pop(module.master, {})
        for key, entry in state.items():
            whole = isinstance(entry, Tensor) and entry.shape == module.master.shape
            optimizer.state[module.values][key] = module.pattern.pack(entry) if whole else entry
        resize(module.master, module.master.new_empty(0))
        module.master.grad = None
        self.selected = None

    def _absolute(self) -> Tensor:
        return self.module.values.detach().abs().cpu()

    def _stored(self) -> Tensor:
        return (self.now.rows >= 0)[self.now.group_of_column]

    def _judged(self, pattern: Pattern, proposal: Proposal) -> np.ndarray:
        """What ``proposal.keep`` has a score for: active weights or active atoms."""
        if proposal.refit is None:
            return self.layout.atoms(pattern).numpy()
        at = pattern.positions.numpy()
        return at[at >= 0]

    def _change(self, proposal: Proposal, old: Pattern, new: Pattern, source: Tensor) -> Change:
        keep = proposal.keep.numpy()
        if len(keep) == old.nnz == self.module.values.numel():
            # Single weights: what is carried over has not fallen.
            fell = np.ones(len(keep), dtype=bool)
            fell[source.numpy()] = False
        else:
            after = self._judged(new, proposal)
            after.sort()
            fell = ~member(self._judged(old, proposal), after)
            del after
        evicted = np.flatnonzero(fell)
        # What fell was meant to, where it is the lowest of all; only a tie or a true eviction has to be looked at more closely.
        rest = keep.copy()
        rest[evicted] = np.inf
        if len(evicted) <= proposal.n_drop and keep[evicted].max(initial=-np.inf) < rest.min(initial=np.inf):
            evicted = evicted[:0]
        else:
            evicted = evicted[~member(evicted, lowest(keep, proposal.n_drop))]
        size = 1 if proposal.refit is not None or not len(keep) else round(old.nnz / len(keep))
        mass = float(keep.sum(dtype=np.float64)) if len(evicted) else 0.0
        evicted_mass = float(keep[evicted].sum(dtype=np.float64)) / mass if mass > 0 else 0.0
        return Change(old.nnz - len(source), new.nnz - len(source), len(evicted) * size, evicted_mass)
