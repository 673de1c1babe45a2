"""What armed layers collect in the backward pass of a topology step, and drop right after it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from openwork.pattern import Pattern, row_chunks
from openwork.scores import Evidence


class Products(Protocol):
    """How a module's inputs and output gradients make up the dense gradient of its weight."""

    shape: tuple[int, int]

    def dense_rows(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        """The rows ``rows`` of the dense gradient, ``[len(rows), C]``."""

    def input_sums(self, x: Tensor) -> Tensor:
        """``x`` summed over batch and positions for each column of the weight, ``[C]``."""

    def output_sums(self, g: Tensor) -> Tensor:
        """``g`` summed over batch and positions for each row of the weight, ``[R]``."""

    def signed_sums(self, x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of ``g`` and columns of ``x`` summed with one random sign for each sample or patch, shared."""

    def gradient_at(self, x: Tensor, g: Tensor, pattern: Pattern) -> Tensor:
        """The weight gradient at the positions of ``pattern``, ``[K, h]``."""


@dataclass
class Collector:
    """Evidence of one layer, from all backward passes since it was armed.

    Norms are added up at once and cost ``R + C`` numbers.  For a dense gradient the inputs and output gradients themselves are
    kept until the update, because only the sum over all passes (gradient accumulation, a layer used twice) may be ranked; the
    gradient is then formed in row chunks and never held whole.
    """

    needs: frozenset[Evidence]
    products: Products
    generator: torch.Generator
    row_sums: Tensor | None = None
    col_sums: Tensor | None = None
    passes: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def record(self, x: Tensor, g: Tensor) -> None:
        """Take in one backward pass: the layer's input and the gradient of its output."""
        # A loss scaler skips the step of an overflow; what such a pass saw must not rank the next update.
        # A finite sum says that all of it is finite in a fraction of the time; one that is not may have overflowed itself.
        if not (math.isfinite(g.sum()) or bool(torch.isfinite(g).all())):
            return
        if self.needs & {Evidence.DENSE_GRAD, Evidence.GRAD_AT}:
            self.passes.append((x, g))
        for need, power in ((Evidence.L1_NORMS, torch.abs), (Evidence.L2_NORMS, torch.square)):
            if need in self.needs:
                self._add(self.products.output_sums(power(g)), self.products.input_sums(power(x)))
        if Evidence.SIGNED_SUMS in self.needs:
            # Signs of different passes are independent, so that their products vanish in the mean.
            self._add(*self.products.signed_sums(x, g, self.generator))

    def _add(self, rows: Tensor, cols: Tensor) -> None:
        self.row_sums = rows if self.row_sums is None else self.row_sums + rows
        self.col_sums = cols if self.col_sums is None else self.col_sums + cols

    @property
    def empty(self) -> bool:
        """Whether no backward pass came through the layer."""
        return self.row_sums is None and not self.passes

    def norms(self) -> tuple[Tensor, Tensor]:
        """``(|dOut| [R], |In| [C])``, or what was summed in place of norms."""
        if self.row_sums is None or self.col_sums is None:
            raise RuntimeError("norms were not collected: the method has to name them in `needs`")
        if Evidence.L2_NORMS in self.needs:
            return self.row_sums.sqrt(), self.col_sums.sqrt()
        return self.row_sums, self.col_sums

    @torch.no_grad()
    def gradient_at(self, pattern: Pattern) -> Tensor:
        """The gradient at the positions of ``pattern`` alone, ``[K, h]``, over all passes."""
        if not self.passes:
            raise RuntimeError("inputs were not kept: the method has to name Evidence.GRAD_AT in `needs`")
        total = self.products.gradient_at(*self.passes[0], pattern)
        for x, g in self.passes[1:]:
            total += self.products.gradient_at(x, g, pattern)
        return total

    @torch.no_grad()
    def gradient_chunks(self, rows: Tensor, budget: int) -> Iterator[tuple[int, Tensor]]:
        """The magnitude of the dense gradient by row groups.

        Args:
            rows: int32 ``[G, h]``, -1 for padding.
            budget: bytes that a chunk may take (one row group at the least).

        Yields:
            (first row group, ``|dL/dW|`` ``[g, h, C]``); entries of padded rows are those of row 0 and to be ignored.
        """
        if not self.passes:
            raise RuntimeError("the dense gradient was not collected: the method has to name it in `needs`")
        for first, ids in row_chunks(rows, self.products.shape[1] * self.passes[0][0].element_size(), budget):
            total = self.products.dense_rows(*self.passes[0], ids)
            for x, g in self.passes[1:]:
                total += self.products.dense_rows(x, g, ids)
            yield first, total.abs_().view(-1, rows.shape[1], total.shape[1])
