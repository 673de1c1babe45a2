"""Measured bytes, counted by hand."""

import torch
from torch import nn

import openwork as ow
from openwork.analysis import active_parameters, memory
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
