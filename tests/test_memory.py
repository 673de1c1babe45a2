"""Measured bytes, counted by hand, and the papers' formulas beside them."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.analysis import active_parameters, compare_memory, footprint, memory
from openwork.analysis.footprint import Layer, Widths
from openwork.analysis.memory import KINDS
from openwork.models import MLP


def test_memory_counts_every_tensor_once():
    model = MLP(8, (16,), 4, batch_norm=True)
    parameters = 8 * 16 + 16 + 2 * 16 + 16 * 4 + 4
    optimizer = torch.optim.Adam(model.parameters())
    empty = memory(model, optimizer)
    assert (empty.weights, empty.gradients, empty.optimizer_state, empty.indices) == (4 * parameters, 0, 0, 0)
    assert empty.buffers == 2 * 16 * 4 + 8
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    full = memory(model, optimizer)
    steps = 4 * len(list(model.parameters()))
    assert (full.gradients, full.optimizer_state) == (4 * parameters, 2 * 4 * parameters + steps)
    assert full.total == full.trained + full.buffers
    model.classifier.weight = nn.Parameter(torch.zeros(4, 16))
    tied = nn.ModuleList([model.classifier, nn.Linear(16, 4)])
    tied[1].weight = tied[0].weight
    assert memory(tied).weights == 4 * (4 * 16 + 4 + 4)


def test_memory_of_a_sparse_model_separates_indices():
    model = nn.Sequential(nn.Linear(10, 6, bias=False))
    sparsity = ow.sparsify(model, sparsity=0.5, layout=ow.layouts.OutVector(4), method="static", kernel="reference")
    layer = next(iter(sparsity.layers.values()))
    held = memory(model)
    assert held.weights == 4 * layer.values.numel()
    assert held.indices == 4 * (layer.rows.numel() + layer.offsets.numel() + layer.cols.numel())
    assert held.buffers == 0
    assert active_parameters(model) == layer.pattern.nnz == int(layer.pattern.mask().sum())


def test_layers_add_up_and_print():
    model = MLP(8, (16,), 4, batch_norm=True)
    ow.sparsify(model, sparsity=0.5, layout="out_vector(4)", method="static", kernel="reference", exclude=["classifier"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    held = memory(model, optimizer)
    for kind in KINDS:
        assert sum(getattr(row, kind) for row in held.layers) == getattr(held, kind)
    assert sum(row.total for row in held.layers) == held.total
    by_name = {row.layer: row for row in held.layers}
    dense, norm = by_name["classifier"], next(row for row in held.layers if row.module == "BatchNorm1d")
    assert (dense.weights, dense.gradients, dense.optimizer_state, dense.indices, dense.buffers) == (272, 272, 272, 0, 0)
    assert (norm.weights, norm.buffers) == (2 * 16 * 4, 2 * 16 * 4 + 8)
    (sparse,) = (row for row in held.layers if row.module == "SparseLinear")
    # 64 of 128 weights as 16 columns of 4, 16 biases; 16 columns, 4 + 1 offsets, 16 rows.
    assert (sparse.weights, sparse.gradients, sparse.optimizer_state) == (4 * 80, 4 * 80, 4 * 80)
    assert (sparse.indices, sparse.buffers) == (4 * (16 + 5 + 16), 0)
    printed = str(held)
    assert "SparseLinear" in printed
    assert "optimizer" in printed


def test_optimizer_state_of_other_models_and_index_copies_are_counted():
    model, other = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False)), nn.Linear(3, 3, bias=False)
    ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static", force=["0"], kernel="reference")
    assert memory(model).indices == 4 * (36 + 36 + 5 + 4)  # columns within and across channel groups
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1, momentum=0.9)
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert memory(model, optimizer).layers[-1].layer == "(elsewhere)"
    assert memory(model, optimizer).optimizer_state == 4 * 9


LAYERS = [Layer(8, 16, 32), Layer(4, 8, 8)]
"""160 weights, 40 of them active: s = 0.75."""


def test_table_a1_of_mest_by_hand():
    n, s, b_w, b_i = 160, 0.75, 16, 8
    widths = Widths(b_w, b_i)
    pointers = ((8 + 1) + (4 + 1)) * b_i
    expected = [
        (footprint.dense(LAYERS, widths), 2 * n * b_w),
        (footprint.structured(LAYERS, widths), (1 - s) * 2 * n * b_w),
        (footprint.unstructured(LAYERS, widths), (1 - s) * (2 * n * b_w + n * b_i) + pointers),
        (footprint.pattern(LAYERS, widths), (1 - s) * (2 * n * b_w + n * b_i / 4) + pointers),
        (footprint.block(LAYERS, 4, 2, widths), (1 - s) * (2 * n * b_w + n * b_i / 8) + ((8 / 4 + 1) + (4 / 4 + 1)) * b_i),
        (footprint.dense_gradients(LAYERS, widths), (2 - s) * n * b_w + (1 - s) * n * b_i),
        (footprint.n_of_m(LAYERS, 4, widths), 1 / 4 * n * (2 * b_w + 2)),
        (footprint.complementary(LAYERS, 4, widths), 1 / 4 * n * (2 * b_w + 2)),
        (
            footprint.shuffled_block(LAYERS, 4, 2, widths),
            (1 - s) * 2 * n * b_w + ((8 + 4 * 2 + 2 + 1) + (4 + 1 * 2 + 1 + 1)) * b_i,
        ),
    ]
    for bits, formula in expected:
        assert bits.total == formula
    assert footprint.n_of_m(LAYERS, 5, Widths(0)).indices == 40 * 3


def test_table_3_of_dsb():
    assert footprint.dsb_table_3("dsb", 100, 10) == (10, 10, 10, 10)
    assert footprint.dsb_table_3("rigl", 100, 10) == (10, 10, 10, 100)
    assert footprint.dsb_table_3("topkast", 100, 10, extra=5) == (100, 15, None, None)
    with pytest.raises(ValueError, match="method='set'"):
        footprint.dsb_table_3("set", 100, 10)


def test_appendix_j_of_mest_in_mib():
    # ResNet-32 of 1.86 M weights: dense 462, EM 46, EM&S 69; VGG-19 of 20.04 M: 4964, 494, 744.
    for weights, densities, printed in ((1.86e6, (1, 0.1, 0.15), (462, 46, 69)), (20.04e6, (1, 0.1, 0.15), (4964, 494, 744))):
        for density, mib in zip(densities, printed, strict=True):
            assert footprint.appendix_j(weights, density) / 2**20 == pytest.approx(mib, rel=0.007)


def compared(layout, sparsity=0.75):
    model = nn.Sequential(nn.Linear(32, 16, bias=False), nn.Linear(16, 32, bias=False))
    held = ow.sparsify(model, sparsity=sparsity, layout=layout, method="static", budget="uniform", kernel="reference")
    assert compare_memory(held).held.gradients == 0
    model(torch.ones(2, 32)).sum().backward()
    return compare_memory(held)


def test_shuffled_blocks_hold_what_the_formula_says():
    found = compared("shuffled_block(4, 4)")
    assert found.formula == found.held
    assert found.held.weights == 32 * 2 * 16 * 32 // 4
    assert found.held.indices == 32 * ((16 + 32 + 4 + 1) + (32 + 32 + 8 + 1))


def test_what_the_one_format_costs_over_the_formulas():
    # CSR with a row id for each row.
    free = compared("unstructured")
    assert [h - f for f, h in zip(free.formula, free.held, strict=True)] == [0, 0, 32 * (16 + 32)]
    # Blocks: 4 column ids where the formula has one, and row ids.
    block = compared("block(4, 4)")
    assert block.held.indices - block.formula.indices == 32 * (3 * 2 * 128 // 16 + 16 + 32)
    # 2:4 takes 2 bits for a place, here 32 for a column.
    places = compared(ow.layouts.NM(2, 4), 0.5)
    assert places.formula.indices == 2 * 512
    assert places.held.indices == 32 * (512 + (16 + 32) + (17 + 33))
    assert "Block(m=4, n=4)" in str(block)


def test_structured_layers_have_no_indices_by_formula():
    for layout in (ow.layouts.Channel(), ow.layouts.Filter()):
        found = compared(layout)
        assert found.formula.indices == 0
        assert found.formula.weights == 32 * 256
