"""RigL and SET against simulations that hold every weight and a 0/1 mask, step by step."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from simulation import assert_agree, begin, train_step
from torch import nn

import openwork as ow

STEPS, INTERVAL, END, ALPHA = 200, 10, 170, 0.3


def is_update(step: int) -> bool:
    return 0 < step < END and step % INTERVAL == 0


def n_drop(simulation, step, layer):
    share = ALPHA / 2 * (1 + math.cos(math.pi * step / END))
    return int(share * int(simulation.masks[layer].sum()))


def test_rigl_is_the_masked_simulation_step_by_step():
    model, sparsity, optimizer, simulation = begin(ow.methods.RigL(interval=INTERVAL, end=END, drop_fraction=ALPHA))
    moved = 0
    for step in range(STEPS):
        gradients = simulation.gradients(step)
        if is_update(step):
            for layer in simulation.masks:
                mask = simulation.without_lowest(layer, n_drop(simulation, step, layer)).flatten()
                candidates = (~mask).nonzero().flatten()
                size = gradients[f"{layer}.weight"].abs().flatten()[candidates]
                grown = candidates[size.argsort(descending=True, stable=True)[: n_drop(simulation, step, layer)]]
                mask[grown] = True
                mask = mask.view(simulation.masks[layer].shape)
                moved += int((mask & ~simulation.masks[layer]).sum())
                simulation.move(layer, mask)
        else:
            simulation.sgd(gradients)
        train_step(model, optimizer, step)
        assert_agree(sparsity, optimizer, simulation)
    assert moved > 200, "the comparison saw many moves"


def test_set_is_the_masked_simulation_step_by_step():
    model, sparsity, optimizer, simulation = begin(ow.methods.SET(interval=INTERVAL, end=END, drop_fraction=ALPHA))
    moved = 0
    for step in range(STEPS):
        simulation.sgd(simulation.gradients(step))
        train_step(model, optimizer, step)
        if is_update(step):
            for layer, module in sparsity.layers.items():
                before, kept = simulation.masks[layer], simulation.without_lowest(layer, n_drop(simulation, step, layer))
                mask = module.pattern.mask().view(before.shape)
                grown = mask & ~kept
                assert (mask & kept).equal(kept), "only the smallest fall"
                assert int(grown.sum()) == n_drop(simulation, step, layer), "exactly as many grow, none of them twice"
                # Erdos-Renyi-Kernel leaves the convolution with fewer free places than are dropped at first.
                room = int((~before).sum())
                assert int((grown & ~before).sum()) == min(room, n_drop(simulation, step, layer)), "what is free grows first"
                moved += int(grown.sum())
                simulation.move(layer, mask)
        assert_agree(sparsity, optimizer, simulation)
    assert moved > 200


def test_set_grows_uniformly():
    """Over many seeds each inactive place grows as often as the others (chi-square, 39 degrees of freedom)."""
    seen: Counter[int] = Counter()
    trials, grown_each = 300, 0
    for seed in range(trials):
        model = nn.Sequential(nn.Linear(8, 8, bias=False))
        pattern = ow.layouts.Unstructured()
        sparsity = ow.sparsify(
            model, sparsity=40 / 64, layout=pattern, method=ow.methods.SET(interval=1, end=100), seed=seed, kernel="reference"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sparsity.attach(optimizer)
        before = model[0].pattern.mask().flatten()
        for _ in range(2):
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
        new = (model[0].pattern.mask().flatten() & ~before).nonzero().flatten()
        # The rank of the grown place among the inactive ones, so that runs with other topologies can be added up.
        ranks = (~before).cumsum(0)[new] - 1
        seen.update(ranks.tolist())
        grown_each = len(new)
    expected = trials * grown_each / 40
    statistic = sum((seen[rank] - expected) ** 2 / expected for rank in range(40))
    assert statistic < 80, "99.99 % of uniform draws lie below"


@pytest.mark.parametrize("height", [1, 4])
def test_rigl_on_blocks_ranks_whole_blocks_by_their_mean_gradient(height):
    """One update on 4 x 2 blocks (or 1 x 2), with the dense gradient from a dense twin."""
    model = nn.Sequential(nn.Linear(12, 16, bias=False)).double()
    layout = ow.layouts.Block(height, 2)
    sparsity = ow.sparsify(model, sparsity=0.5, layout=layout, method=ow.methods.RigL(interval=1, end=10), kernel="reference")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsity.attach(optimizer)
    x, y = torch.randn(5, 12).double(), torch.randn(5, 16).double()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    tiles = lambda dense: dense.view(16 // height, height, 6, 2).abs().mean((1, 3)).flatten()  # noqa: E731
    mask = tiles(model[0].pattern.mask().double()) > 0
    weight = model[0].dense_weight().detach().clone().requires_grad_()
    F.mse_loss(x @ weight.T, y).backward()
    k = int(0.15 * (1 + math.cos(math.pi / 10)) * int(mask.sum()))
    active = mask.nonzero().flatten()
    mask[active[tiles(weight.detach())[active].argsort()[:k]]] = False
    candidates = (~mask).nonzero().flatten()
    mask[candidates[tiles(weight.grad)[candidates].argsort(descending=True)[:k]]] = True
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    assert torch.equal(tiles(model[0].pattern.mask().double()) > 0, mask)
    assert k >= 3
