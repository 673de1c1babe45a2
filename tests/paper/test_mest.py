"""MEST against the definitions: counts by hand, and a masked simulation step by step."""

from __future__ import annotations

import contextlib
import math
import warnings

import pytest
import torch
from simulation import assert_agree, begin, train_step
from torch import nn

import openwork as ow
from openwork.methods import MEST

STEPS, INTERVAL, END = 120, 10, 100


def active(total, density):
    """``N - floor((1 - density) N)``."""
    return total - math.floor((1 - density) * total + 1e-9)


@pytest.mark.parametrize(("gradient_weight", "gradient_steps"), [(0.0, 1), (3.0, 1), (3.0, 4)])
def test_elastic_mutation_is_the_masked_simulation_step_by_step(gradient_weight, gradient_steps):
    method = MEST(
        interval=INTERVAL, end=END, mutation=0.25, milestones=[60], gradient_weight=gradient_weight, total_steps=STEPS,
        gradient_steps=gradient_steps,
    )  # fmt: skip
    model, sparsity, optimizer, simulation = begin(method)
    densities = {row.layer: row.asked for row in sparsity.report().rows}
    moved, by_gradient, past = 0, 0, []
    for step in range(STEPS):
        gradients = simulation.gradients(step)
        past = [*past, gradients][-gradient_steps:]
        simulation.sgd(gradients)
        train_step(model, optimizer, step)
        if 0 < step < END and step % INTERVAL == 0:
            p = 0.25 if step < 60 else 0.125
            for layer, module in sparsity.layers.items():
                size, density = simulation.masks[layer].numel(), densities[layer]
                n = active(size, density) - active(size, density * (1 - p))
                weight = simulation.params[f"{layer}.weight"].abs()
                mean = sum(seen[f"{layer}.weight"] for seen in past) / len(past)
                score = weight + (gradient_weight * mean).abs()
                before, kept = simulation.masks[layer], simulation.without_lowest(layer, n, score)
                by_gradient += int((kept ^ simulation.without_lowest(layer, n)).sum())
                mask = module.pattern.mask().view(before.shape)
                grown = mask & ~kept
                assert (mask & kept).equal(kept), "only the least important go"
                assert int(grown.sum()) == n, "exactly as many grow"
                assert int((grown & ~before).sum()) == min(int((~before).sum()), n), "none of those just removed"
                moved += n
                simulation.move(layer, mask)
        assert_agree(sparsity, optimizer, simulation)
    assert moved > 200
    assert (by_gradient > 20) == (gradient_weight > 0), "the gradient decides where it should"


def test_the_constant_mode_never_mutates_less():
    method = MEST("constant", interval=2, total_steps=1000, end=900, mutation=0.2)
    elastic = MEST("elastic", interval=2, total_steps=1000, end=900, mutation=0.2)
    assert [method._share(step) for step in (2, 620, 630, 898)] == [0.2] * 4
    assert [elastic._share(step) for step in (2, 624, 625, 898)] == [0.2, 0.2, 0.1, 0.1]


def linear(rows=20, cols=50):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(cols, rows))


@pytest.mark.parametrize(("relative", "mutation", "counts"), [
    # 1,000 weights at 0.9: 100 stay.  p of the active: 120, then 110.
    (True, 0.2, [120, 110, 110, 100]),
    # p of all: 150, then 125.
    (False, 0.05, [150, 125, 125, 100]),
])  # fmt: skip
def test_the_soft_bound_begins_at_its_peak_and_ends_at_the_asked_sparsity(relative, mutation, counts):
    model = linear()
    method = MEST("soft", interval=4, end=16, mutation=mutation, relative=relative, milestones=[4])
    sparsity = ow.sparsify(model, sparsity=0.9, layout="unstructured", method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    seen = [model[0].pattern.nnz]
    for _ in range(24):
        model(torch.randn(4, 50)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        held = model[0].pattern.nnz
        assert model[0].values.numel() == held, "storage is that of the present density"
        assert optimizer.state[model[0].values]["momentum_buffer"].numel() == held
        if held != seen[-1]:
            seen.append(held)
    assert seen == list(dict.fromkeys(counts))
    assert sparsity.report().sparsity == 0.9


def test_soft_removes_the_least_important_of_the_peak():
    model = linear()
    method = MEST("soft", interval=3, end=3, mutation=0.5, milestones=[])
    sparsity = ow.sparsify(model, sparsity=0.9, layout="unstructured", method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsity.attach(optimizer)
    weight = model[0].dense_weight().detach().abs()
    for _ in range(4):
        model(torch.ones(1, 50)).sum().backward()
        optimizer.step()
    best = torch.zeros(1000, dtype=torch.bool)
    # Every active weight has the same gradient, 1, so magnitude decides.
    best[weight.flatten().topk(100).indices] = True
    assert torch.equal(model[0].pattern.mask().flatten(), best)


@pytest.mark.parametrize("layout", ["shuffled_block(4, 4)", "block(4, 1)", "channel", "filter", "out_vector(4)"])
def test_soft_meets_its_counts_on_every_kind_of_unit(layout):
    model = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False))
    method = MEST("soft", interval=2, end=8, mutation=0.5, milestones=[])
    sparsity = ow.sparsify(model, sparsity=0.75, layout=layout, method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsity.attach(optimizer)
    # 4,608 weights: a quarter and half as many again; every unit here divides both.
    assert model[0].pattern.nnz == 1728
    for step in range(10):
        model(torch.randn(2, 16, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert model[0].pattern.nnz == (1728 if step < 8 else 1152)


def test_a_mutation_of_all_that_there_is_leaves_one_weight():
    """The paper's p = 0.05 of all weights is more than a sparsity of 0.98 leaves."""
    model = linear()
    sparsity = ow.sparsify(
        model, sparsity=0.98, layout="unstructured", method=MEST(interval=1, end=9, mutation=0.05, relative=False)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsity.attach(optimizer)
    strongest = int(model[0].dense_weight().detach().abs().argmax())
    for _ in range(2):
        model(torch.ones(1, 50)).sum().backward()
        # The first update is the one after step 1; the warning names the layer.
        with pytest.warns(UserWarning, match=r"density 0\.02 of '0'") if _ else contextlib.nullcontext():
            optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # said once
    assert model[0].pattern.nnz == 20
    assert bool(model[0].pattern.mask().flatten()[strongest])
    assert sparsity.last_update["0"].dropped == 19


@pytest.mark.parametrize(("name", "mode", "updates", "rates"), [
    # One step an epoch: the table's own numbers, by epoch.
    ("paper-cifar", "elastic", range(5, 130, 5), {95: (0.05, False), 100: (0.025, False)}),
    ("paper-cifar", "soft", [*range(5, 130, 5), 130], {95: (0.05, False), 100: (0.025, False)}),
    ("paper-cifar", "constant", range(5, 130, 5), {95: (0.05, False), 129: (0.05, False)}),
    ("paper-imagenet", "elastic", range(2, 120, 2), {89: (0.05, False), 90: (0.025, False)}),
    ("release", "elastic", range(5, 120, 5), {89: (0.2, True), 90: (0.1, True)}),
    ("release", "soft", [*range(5, 120, 5), 120], {89: (0.05, False), 90: (0.025, False)}),
])  # fmt: skip
def test_presets_are_the_published_schedules(name, mode, updates, rates):
    epochs = 150 if name == "paper-imagenet" else 160
    method = MEST.preset(name, mode, total_steps=epochs)
    assert [step for step in range(epochs + 1) if method.due(step)] == list(updates)
    assert {step: (method._share(step), method.relative) for step in rates} == rates
    assert method.gradient_weight == {"paper-cifar": 0.01, "paper-imagenet": 0.001, "release": 0.0}[name]
    stretched = MEST.preset(name, mode, total_steps=100 * epochs)
    assert [step for step in range(100 * epochs + 1) if stretched.due(step)] == [100 * step for step in updates]


def test_the_released_bounds_at_a_sparsity_of_nine_tenths():
    """The scripts name them: EM 0.92 and 0.91 are removed at most, EM&S keeps 0.85 and 0.875 at least."""
    elastic, soft = (MEST.preset("release", mode, total_steps=160) for mode in ("elastic", "soft"))
    removed = [1 - 0.1 + elastic._surplus(0.1, step) for step in (5, 95)]
    assert removed == pytest.approx([0.92, 0.91])
    assert [1 - soft._peak(0.1, step) for step in (5, 95)] == pytest.approx([0.85, 0.875])


def test_what_cannot_be_is_refused():
    for options, name in [
        ({"mode": "hard"}, "mode='hard'"), ({"mutation": 1.0}, r"mutation=1\.0"), ({"mutation": 1}, "mutation=1"),
        ({"milestones": [1.5]}, r"milestones=\[1\.5\]"), ({"milestones": 0.5}, "milestones"),
        ({"mode": "constant", "milestones": [10]}, "constant"), ({"gradient_weight": -1}, "gradient_weight=-1"),
        ({"relative": 1}, "relative=1"), ({"gradient_steps": 0}, "gradient_steps=0"),
        ({"gradient_steps": 5, "interval": 4}, "from 1 to interval=4"), ({"interval": 0}, "interval=0"),
        ({"end": 1.5}, r"end=1\.5"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            MEST(**options)
    with pytest.raises(ValueError, match="name='paper' is unknown; known: paper-cifar"):
        MEST.preset("paper", total_steps=10)
    with pytest.raises(ValueError, match="total_steps=0"):
        MEST.preset("release", total_steps=0)
    model = linear()
    sparsity = ow.sparsify(model, sparsity=0.9, layout="unstructured", method=MEST(milestones=[0.5], end=100))
    with pytest.raises(ValueError, match=r"milestones=0\.5 is a share of total_steps"):
        sparsity.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ow.layouts.LayoutError, match=r"density of 0\.5; 0\.6"):
        ow.sparsify(linear(), sparsity=0.5, layout="nm(2, 4)", method=MEST("soft", total_steps=100))


def test_a_graph_that_is_still_alive_does_not_hinder_a_change_of_storage():
    """Plain loops keep the last loss while the next one is computed; PyTorch then keeps the values' gradient node too."""
    model = linear()
    sparsity = ow.sparsify(model, sparsity=0.9, layout="unstructured", method=MEST("soft", interval=1, end=2, milestones=[]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsity.attach(optimizer)
    sizes = []
    for _ in range(4):
        loss = model(torch.randn(4, 50)).square().sum()
        loss.backward()
        sizes.append(model[0].values.grad.numel())
        optimizer.step()
        optimizer.zero_grad()
    assert sizes == [120, 120, 120, 100]
