"""What the papers say a sparse model should hold, as formulas.

MEST (Table A.1) counts ``b_w`` bits for every weight and every gradient and ``b_i`` bits for every index of the format that a
scheme is stored in; optimizers and activations are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Layer(NamedTuple):
    """The numbers of a layer that the formulas speak of: ``R`` (filters ``F_l``), ``C`` and active weights ``(1 - s) R C``."""

    rows: int
    cols: int
    active: int


@dataclass(frozen=True)
class Widths:
    """Bits of a weight or gradient (``b_w``) and of an index (``b_i``)."""

    weight: int = 32
    index: int = 32


FLOAT32 = Widths()
"""What this library stores: float32 values, int32 indices."""


class Bits(NamedTuple):
    """Bits of weights, gradients and indices."""

    weights: int
    gradients: int
    indices: int

    @property
    def total(self) -> int:
        """All three."""
        return sum(self)


Layers = Sequence[Layer]


def dense(layers: Layers, widths: Widths = FLOAT32) -> Bits:
    """``2 N b_w``."""
    total = sum(layer.rows * layer.cols for layer in layers)
    return Bits(total * widths.weight, total * widths.weight, 0)


def structured(layers: Layers, widths: Widths = FLOAT32) -> Bits:
    """``(1 - s) 2 N b_w``: whole filters or channels, so that what is left is a smaller dense model."""
    return _indexed(layers, widths, 0)


def unstructured(layers: Layers, widths: Widths = FLOAT32) -> Bits:
    """``(1 - s) (2 N b_w + N b_i) + sum_l (F_l + 1) b_i``: CSR."""
    return _indexed(layers, widths, sum(layer.active + layer.rows + 1 for layer in layers))


def pattern(layers: Layers, widths: Widths = FLOAT32) -> Bits:
    """``(1 - s) (2 N b_w + N b_i / 4) + sum_l (F_l + 1) b_i``: an index for each kernel of 4 weights, none for its pattern."""
    return _indexed(layers, widths, sum(_up(layer.active, 4) + layer.rows + 1 for layer in layers))


def block(layers: Layers, m: int, n: int, widths: Widths = FLOAT32) -> Bits:
    """``(1 - s) (2 N b_w + N b_i / B) + sum_l (F_l / m + 1) b_i``: an index for each block of ``B = m n`` weights."""
    return _indexed(layers, widths, sum(_up(layer.active, m * n) + _up(layer.rows, m) + 1 for layer in layers))


def dense_gradients(layers: Layers, widths: Widths = FLOAT32) -> Bits:
    """``(2 - s) N b_w + (1 - s) N b_i``: SNFS and RigL, with a gradient for every weight.

    DSB (Table 3) lists as many gradients as active weights for RigL in training and all of them in an update only: that is what
    RigL holds most of the time, this is the peak.
    """
    active = sum(layer.active for layer in layers)
    return Bits(active * widths.weight, dense(layers, widths).gradients, active * widths.index)


def n_of_m(layers: Layers, m: int, widths: Widths = FLOAT32) -> Bits:
    """``(n / m) N (2 b_w + ceil(log2 m))``: the place of every kept weight in its group (not in MEST)."""
    return _packed(layers, m, widths)


def complementary(layers: Layers, k: int, widths: Widths = FLOAT32) -> Bits:
    """``(1 / K) N (2 b_w + ceil(log2 K))``: which of its set is kept (not in MEST)."""
    return _packed(layers, k, widths)


def shuffled_block(layers: Layers, m: int, n: int, widths: Widths = FLOAT32) -> Bits:
    """``(1 - s) 2 N b_w + sum_l (R_l + B_l S2 + G_l + 1) b_i``: row ids, columns of ``B_l`` blocks, pointers (not in MEST)."""
    indices = sum(layer.rows + _up(layer.active, m * n) * n + _up(layer.rows, m) + 1 for layer in layers)
    return _indexed(layers, widths, indices)


def appendix_j(total: int, density: float = 1.0, batch: int = 64) -> float:
    """Bytes as in MEST, App. J: ``4 N d (1 + batch)``, a gradient for every sample of the batch, against its own Table A.1.

    Only for comparison with the figures of that appendix.
    """
    return 4 * total * density * (1 + batch)


class Peak(NamedTuple):
    """Numbers (not bytes) of weights and gradients held in a training step and in a topology update; None: no update."""

    train_weights: int
    train_gradients: int
    update_weights: int | None
    update_gradients: int | None


def dsb_table_3(method: Literal["dsb", "rigl", "topkast"], total: int, active: int, extra: int = 0) -> Peak:
    """DSB, Table 3.  Top-KAST computes gradients for ``extra`` weights beyond the active ones and keeps all weights.

    For RigL it is the published algorithm; here its dense gradient is taken in chunks and never held.

    Raises:
        ValueError: ``method`` is not in the table.
    """
    table = {
        "dsb": Peak(active, active, active, active),
        "rigl": Peak(active, active, active, total),
        "topkast": Peak(total, active + extra, None, None),
    }
    if method not in table:
        raise ValueError(f"method={method!r} is not in the table; it has {', '.join(table)}")
    return table[method]


def _indexed(layers: Layers, widths: Widths, indices: int) -> Bits:
    trained = sum(layer.active for layer in layers) * widths.weight
    return Bits(trained, trained, indices * widths.index)


def _packed(layers: Layers, choices: int, widths: Widths) -> Bits:
    active = sum(layer.active for layer in layers)
    return Bits(active * widths.weight, active * widths.weight, active * (choices - 1).bit_length())


def _up(value: int, unit: int) -> int:
    return -(-value // unit)
