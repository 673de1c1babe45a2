"""GSE against the definitions: a masked simulation step by step, the marginals, the bound, and the unbiased product."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from simulation import assert_agree, begin, train_step
from torch import nn

import openwork as ow
from openwork.evidence import Collector
from openwork.methods import GSE
from openwork.methods.draws import draw, first_above
from openwork.pattern import Pattern
from openwork.scores import Evidence

STEPS, INTERVAL, END, ALPHA = 120, 10, 100, 0.3


@pytest.mark.parametrize("sampling", ["uniform", "grabo", "graest"])
def test_gse_is_the_masked_simulation_step_by_step(sampling, monkeypatch):
    """The simulation takes over which positions were drawn, and nothing else."""
    drawn: dict[str, torch.Tensor] = {}
    layers = {}

    def spy(layer, positions):
        drawn[layer.name] = positions
        return original(layer, positions)

    original = ow.update.SparseLayer.gradients_at
    monkeypatch.setattr(ow.update.SparseLayer, "gradients_at", spy)
    method = GSE(sampling, subset=1.5, interval=INTERVAL, end=END, drop_fraction=ALPHA)
    model, sparsity, optimizer, simulation = begin(method)
    layers.update(sparsity.layers)
    moved = 0
    for step in range(STEPS):
        gradients = simulation.gradients(step)
        before = {name: mask.clone() for name, mask in simulation.masks.items()}
        train_step(model, optimizer, step)
        if 0 < step < END and step % INTERVAL == 0:
            share = ALPHA / 2 * (1 + math.cos(math.pi * step / END))
            for name in layers:
                mask = before[name].flatten()
                n_active = int(mask.sum())
                assert len(drawn[name]) == math.ceil(1.5 * n_active)
                chosen = drawn[name].unique()
                chosen = chosen[~mask[chosen]]
                k = min(math.ceil(share * n_active), len(chosen))
                size = gradients[f"{name}.weight"].abs().flatten()[chosen]
                mask = simulation.without_lowest(name, k).flatten()
                mask[chosen[size.argsort(descending=True, stable=True)[:k]]] = True
                simulation.move(name, mask.view(before[name].shape))
                moved += k
        else:
            simulation.sgd(gradients)
        assert_agree(sparsity, optimizer, simulation)
    assert moved > 200


def test_pairs_follow_their_weights():
    """Chi-square against the two marginals, and for their independence."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([0.0, 1.0, -3.0, 0.5, 0.0, 5.5, 0.0])
    n = 20_000
    counts = torch.bincount(draw(7, weight, n, generator), minlength=7)
    assert counts[[0, 4, 6]].tolist() == [0, 0, 0], "what has no weight is never drawn"
    expected = weight.abs() / weight.abs().sum() * n
    real = expected > 0
    assert float(((counts - expected)[real] ** 2 / expected[real]).sum()) < 16.3, "3 degrees of freedom, 0.1 %"
    uniform = torch.bincount(draw(5, torch.zeros(5), n, generator), minlength=5)
    assert float(((uniform - n / 5) ** 2 / (n / 5)).sum()) < 18.5, "without any weight: uniform; 4 degrees of freedom"


@pytest.mark.parametrize("shape", ["even", "skewed", "with gaps"])
def test_places_are_found_as_by_a_search(shape):
    """At the sums themselves, just below them and between; weights of 0 leave runs of equal sums."""
    random = np.random.default_rng(0)
    for size in (1, 2, 9, 500):
        weight = random.random(size)
        if shape == "skewed":
            weight = weight**40
        elif shape == "with gaps":
            weight *= random.random(size) < 0.1
            weight[random.integers(size)] = 1.0
        sums = weight.cumsum()
        at = np.concatenate([random.random(2000) * sums[-1], sums, np.nextafter(sums, 0), [0.0]])
        assert np.array_equal(first_above(sums, at), np.searchsorted(sums, at, side="right"))


def layer(kind):
    """A sparse module in double precision, an input and an output gradient for it."""
    torch.manual_seed(1)
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(7, 5)).double(), torch.randn(6, 7).double()
    else:
        model = nn.Sequential(nn.Conv2d(2, 5, (2, 3), stride=2, padding=1, dilation=(1, 2))).double()
        x = torch.randn(3, 2, 7, 8).double()
    sparsity = ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static", kernel="reference")
    module = sparsity.layers["0"]
    g = torch.randn_like(module(x)).detach()
    weight = module.dense_weight().detach().requires_grad_()
    if kind == "linear":
        F.linear(x, weight).backward(g)
    else:
        F.conv2d(x, weight, None, module.stride, module.padding, module.dilation).backward(g)
    return module, x, g, weight.grad.reshape(module.shape)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_marginals_bound_the_gradient(kind):
    module, x, g, dense = layer(kind)
    collector = Collector(frozenset({Evidence.L1_NORMS}), module, torch.Generator())
    collector.record(x, g)
    rows, cols = collector.norms()
    assert bool((dense.abs() <= torch.outer(rows, cols) + 1e-12).all())


def test_the_bound_is_met_by_a_single_sample():
    module, x, g, _ = layer("linear")
    collector = Collector(frozenset({Evidence.L1_NORMS}), module, torch.Generator())
    collector.record(x[:1], g[:1])
    rows, cols = collector.norms()
    torch.testing.assert_close(torch.outer(rows, cols), (g[:1].T @ x[:1]).abs())


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("passes", [1, 2])
def test_the_product_of_signed_sums_is_the_gradient_in_the_mean(kind, passes):
    """Within five standard errors at every position, over many draws; with two backward passes, of their sum."""
    module, x, g, dense = layer(kind)
    generator, trials = torch.Generator().manual_seed(3), 4000
    total, squares = torch.zeros_like(dense), torch.zeros_like(dense)
    for _ in range(trials):
        collector = Collector(frozenset({Evidence.SIGNED_SUMS}), module, generator)
        for _ in range(passes):
            collector.record(x, g)
        product = torch.outer(*collector.norms())
        total += product
        squares += product.square()
    mean = total / trials
    error = ((squares / trials - mean.square()) / trials).sqrt()
    assert bool(((mean - passes * dense).abs() < 5 * error).all())
    assert float(error.max()) < 0.2 * float(dense.abs().max()), "the test sees a gradient, not its noise"


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_are_exact_at_the_positions_asked_for(kind):
    module, x, g, dense = layer(kind)
    collector = Collector(frozenset({Evidence.GRAD_AT}), module, torch.Generator())
    collector.record(x, g)
    collector.record(x, 2 * g)
    at = Pattern.from_mask(torch.rand(module.shape, generator=torch.Generator().manual_seed(5)) < 0.3)
    torch.testing.assert_close(collector.gradient_at(at), at.pack(3 * dense))


def test_the_global_scope_moves_density_between_layers_and_keeps_the_sum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30))
    sparsity = ow.sparsify(
        model, sparsity=0.8, layout="unstructured", method=GSE(scope="global", interval=2, end=20, drop_fraction=0.5)
    )
    with torch.no_grad():
        model[0].values *= 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsity.attach(optimizer)
    before = [model[i].pattern.nnz for i in (0, 2)]
    for _ in range(3):
        model(torch.randn(8, 30)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [model[i].pattern.nnz for i in (0, 2)]
    assert sum(after) == sum(before) == 480
    assert before[0] == 240
    # A hundred times smaller, nearly all that is dropped lies in the first layer.
    first, second = sparsity.last_update["0"], sparsity.last_update["2"]
    assert first.dropped > 20 * second.dropped
    assert first.dropped + second.dropped == first.grown + second.grown
    assert after[1] - 240 == second.grown - second.dropped > 50
    other = nn.Sequential(nn.Linear(32, 32))
    sparsity = ow.sparsify(other, sparsity=0.5, layout="nm(2, 4)", method=GSE(scope="global", interval=1, end=5))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    sparsity.attach(optimizer)
    other(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    other(torch.randn(4, 32)).sum().backward()
    with pytest.raises(ValueError, match=r"scope='global'.*layout of 0"):
        optimizer.step()


def test_what_cannot_be_is_refused():
    for options, name in [
        ({"sampling": "random"}, "sampling='random'"), ({"subset": 0}, "subset=0"), ({"subset": math.inf}, "subset=inf"),
        ({"scope": 1}, "scope=1"), ({"drop_fraction": 1.0}, r"drop_fraction=1\.0"), ({"schedule": "up"}, "schedule='up'"),
        ({"interval": 0}, "interval=0"), ({"end": -1}, "end=-1"), ({"total_steps": 0.5}, r"total_steps=0\.5"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            GSE(**options)
