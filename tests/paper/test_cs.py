"""CS training: the schedule by hand, stages by brute force, and a straight-through simulation step by step."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.analysis import active_parameters, compare_memory, memory
from openwork.layouts import NM, Complementary, LayoutError
from openwork.layouts.stage import Stage
from openwork.methods import CSTraining


def test_the_density_halves_in_equal_parts_along_cubics():
    method = CSTraining(end=300, ramp=2 / 3)
    # To a quarter in two parts of 100 steps.
    assert [method.density_at(step, 0.25) for step in (0, 50, 100, 150, 200, 299)] == pytest.approx(
        [1.0, 0.5 + 0.5 / 8, 0.5, 0.25 + 0.25 / 8, 0.25, 0.25]
    )
    # To a fifth in three, the last of them from a quarter.
    assert [method.density_at(step, 0.2) for step in (200 / 3, 400 / 3, 500 / 3, 200)] == pytest.approx(
        [0.5, 0.25, 0.2 + 0.05 / 8, 0.2]
    )
    assert CSTraining(total_steps=1000).last_step == 500, "two phases of equal length"
    assert [step for step in range(20) if CSTraining(interval=4, end=10).due(step)] == [4, 8, 10]


def held(pattern):
    return set(pattern.mask().flatten().nonzero().flatten().tolist())


def complementary_ways(count, low, high):
    """Every choice of ``count`` of 8 positions with at most one of each of ``low`` and at least one of each of ``high``."""
    for chosen in combinations(range(8), count):
        if all(len(part & set(chosen)) <= 1 for part in low) and all(part & set(chosen) for part in high):
            yield chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", range(2, 9))
def test_a_stage_of_complementary_sparsity_is_the_best_there_is(count, seed):
    """k = 4, distance 2, on a row of 8: sets {0, 2, 4, 6} and {1, 3, 5, 7}, and pairs {0, 2}, {4, 6}, {1, 3}, {5, 7} before."""
    rungs = [[{i} for i in range(8)], [{0, 2}, {4, 6}, {1, 3}, {5, 7}], [{0, 2, 4, 6}, {1, 3, 5, 7}]]
    low, high = rungs[:2] if count >= 4 else rungs[1:]
    scores = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed))
    layout = Complementary(4, 2).for_layer("", (1, 8))
    stage = Stage(layout, (1, 8), count / 8)
    assert stage.count == count
    empty = layout.build((1, 8), np.empty(0, dtype=np.int64), layout.rows((1, 8)))
    pattern = stage.select(empty, [(0, scores[None])])
    best = max(complementary_ways(count, low, high), key=lambda chosen: float(scores[0, list(chosen)].sum()))
    assert held(pattern) == set(best)
    stage.check(pattern)


@pytest.mark.parametrize("count", range(4, 9))
def test_a_stage_of_n_of_m_keeps_groups_level(count):
    """1:4 on a row of 8 by way of 3:4 and 2:4: no group holds two more than the other."""
    scores = torch.rand(1, 8, generator=torch.Generator().manual_seed(count))
    layout = NM(1, 4).for_layer("", (1, 8))
    stage = Stage(layout, (1, 8), count / 8)
    empty = layout.build((1, 8), np.empty(0, dtype=np.int64), layout.rows((1, 8)))
    pattern = stage.select(empty, [(0, scores[None])])
    level = [chosen for chosen in combinations(range(8), count) if abs(len([c for c in chosen if c < 4]) - count / 2) <= 0.5]
    assert held(pattern) == set(max(level, key=lambda chosen: float(scores[0, list(chosen)].sum())))


def test_the_last_stage_is_the_layout_itself():
    for rule in (NM(2, 4), Complementary(4, 3), Complementary(3, 2, "out")):
        own = rule.for_layer("", (12, 10))
        stage = Stage(own, (12, 10), own.density)
        assert stage.count == own.fit((12, 10), own.density)
        rungs = own.rungs((12, 10))
        assert [int(rung.room((12, 10)).sum()) for rung in rungs] == sorted(
            (int(rung.room((12, 10)).sum()) for rung in rungs), reverse=True
        )
        assert int(rungs[0].room((12, 10)).sum()) == 120, "the way begins dense"
        assert np.array_equal(rungs[-1].classes((12, 10), np.arange(120)), own.classes((12, 10), np.arange(120)))


def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 6, 3, stride=2, groups=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 4, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_training_is_the_straight_through_simulation_step_by_step(kernel):
    if kernel not in ow.kernels.available():
        pytest.skip("not built")
    method = CSTraining(interval=3, end=12)
    model, masked = net().double(), net().double()
    if kernel == "cpu":
        model, masked = net(), net()
    sparsity = ow.sparsify(
        model, sparsity=0.75, layout=Complementary(4, 1), method=method, budget="uniform", kernel=kernel, exclude=["5"]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsity.attach(optimizer)
    assert all(module.pattern.density == 1 for module in sparsity.layers.values())
    masks = {name: torch.ones_like(masked.get_submodule(name).weight) for name in sparsity.layers}
    momentum = {name: torch.zeros_like(value) for name, value in masked.named_parameters()}
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if kernel == "reference" else {"rtol": 1e-4, "atol": 1e-5}
    densities = []
    for step in range(20):
        x, y = data(step)
        x = x.to(next(model.parameters()).dtype)
        params = dict(masked.named_parameters())
        # Straight through: the forward pass sees masked weights, the gradient goes to all, after the end to the active.
        computed = {
            f"{name}.weight": params[f"{name}.weight"] + (params[f"{name}.weight"] * (mask - 1)).detach()
            for name, mask in masks.items()
        }
        F.cross_entropy(torch.func.functional_call(masked, computed, (x,)), y).backward()
        with torch.no_grad():
            for name, value in params.items():
                gradient = value.grad + 0.01 * value
                momentum[name] = 0.9 * momentum[name] + gradient if step else gradient
                layer = name.removesuffix(".weight")
                if layer in masks and name.endswith("weight") and step > 12:
                    momentum[name] *= masks[layer]
                value -= 0.1 * momentum[name]
                value.grad = None
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, module in sparsity.layers.items():
            weight = masked.get_submodule(name).weight.detach()
            if step in (3, 6, 9, 12):
                masks[name] = module.pattern.mask().view(weight.shape).to(weight)
                kept = weight[masks[name].bool()].abs()
                assert module.pattern.density == pytest.approx(method.density_at(step, 0.25), abs=2 / weight.numel())
                if step >= 9:  # one of each four input channels, the largest
                    sets = weight.abs().view(weight.shape[0], -1, 4, *weight.shape[2:])
                    assert torch.equal(kept.sort().values, sets.amax(2).flatten().sort().values)
            torch.testing.assert_close(module.dense_weight(), weight * masks[name], **tolerance)
            if step < 12:
                torch.testing.assert_close(module.master, weight, **tolerance)
            else:
                assert not module.has_master
                state = optimizer.state[module.values]["momentum_buffer"]
                buffer = momentum[f"{name}.weight"] * masks[name]
                torch.testing.assert_close(module.pattern.unpack(state).view(weight.shape), buffer, **tolerance)
                if step == 12:
                    with torch.no_grad():  # what was left out ceases to exist
                        masked.get_submodule(name).weight *= masks[name]
                        momentum[f"{name}.weight"] *= masks[name]
        densities.append(sparsity.layers["0"].pattern.density)
    assert densities[-1] == 0.25
    assert len(set(densities)) == 4, "dense, on the way twice, and at the end"


def test_after_the_end_nothing_dense_is_left():
    model = nn.Sequential(nn.Linear(64, 64))
    sparsity = ow.sparsify(model, sparsity=0.75, layout="complementary(4, 8)", method=CSTraining(interval=2, end=4))
    optimizer = torch.optim.Adam(model.parameters())
    sparsity.attach(optimizer)
    assert "all weights are trained" in str(sparsity.report())
    assert sparsity.report().rows[0].stored_bytes > 4 * 64 * 64
    assert active_parameters(model) == 64 * 64 + 64
    model(torch.randn(8, 64)).sum().backward()
    row = compare_memory(sparsity).rows[0].held
    assert (row.weights, row.gradients) == (32 * 2 * 64 * 64, 32 * 64 * 64), "dense weights beside the copies; one gradient"
    optimizer.zero_grad()
    for step in range(6):
        model(torch.randn(8, 64)).square().sum().backward()
        if step < 5:
            assert memory(model).gradients == 4 * (64 * 64 + 64)
        optimizer.step()
        if step < 5:
            optimizer.zero_grad()
    # Weights, gradients and both moments of 1,024 active weights and 64 biases; Adam counts its steps in a float each.
    held = memory(model, optimizer)
    assert (held.weights, held.gradients) == (4 * (1024 + 64), 4 * (1024 + 64))
    assert held.optimizer_state == 2 * 4 * (1024 + 64) + 2 * 4
    assert active_parameters(model) == 1024 + 64
    assert "all weights are trained" not in str(sparsity.report())


def test_a_weight_that_was_left_out_may_come_back():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.9]]))
    sparsity = ow.sparsify(model, sparsity=0.5, layout="nm(1, 2)", method=CSTraining(interval=1, end=100, ramp=0.01))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity.attach(optimizer)
    kept = []
    for _ in range(4):
        loss = model(torch.tensor([[1.0, 1.0]])) - model(torch.tensor([[0.0, 2.0]]))  # the gradient is 1, -1
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append(held(sparsity.layers["0"].pattern))
    assert kept[0] == {0, 1}, "dense at first"
    assert kept[1:] == [{1}] * 3, "its gradient made the second the larger, straight through"


def test_frozen_layers_and_densified_models_compute_the_same():
    model = net()
    model[2].weight.requires_grad_(False)
    sparsity = ow.sparsify(
        model, sparsity=0.75, layout=Complementary(4, 1), method=CSTraining(interval=1, end=9), exclude=["5"]
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparsity.attach(optimizer)
    before = sparsity.layers["2"].dense_weight().clone()
    for step in range(4):
        F.cross_entropy(model(data(step)[0]), data(step)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sparsity.layers["2"].master.grad is None
    assert torch.equal(sparsity.layers["2"].dense_weight(), before)
    assert 0.25 < sparsity.layers["0"].pattern.density < 1
    with torch.no_grad():
        out = model(data(9)[0])
        torch.testing.assert_close(ow.densify(model)(data(9)[0]), out)


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_activations_may_work_in_place_and_inputs_may_have_any_shape(kernel):
    if kernel not in ow.kernels.available():
        pytest.skip("not built")
    torch.manual_seed(0)
    made = [
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=inplace), nn.Linear(16, 8), nn.ReLU(inplace=inplace))
        for inplace in (True, False)
    ]
    made[1].load_state_dict(made[0].state_dict())
    losses = []
    for model in made:
        sparsity = ow.sparsify(model, sparsity=0.5, layout="nm(2, 4)", method=CSTraining(interval=1, end=6), kernel=kernel)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsity.attach(optimizer)
        for step in range(8):
            x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(step))
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:8] == losses[8:]


def test_what_cannot_be_is_refused():
    for options, name in [
        ({"ramp": 0.0}, "ramp="),
        ({"ramp": 1.5}, "ramp="),
        ({"ramp": 1}, "ramp=1"),
        ({"interval": 0}, "interval"),
    ]:
        with pytest.raises(ValueError, match=name):
            CSTraining(**options)
    model = net()
    weight = model[0].weight
    for layout, reason in (("kernel_pattern", "at most 4/9"), ("transposable_nm(2, 4)", "density of 0.5; 1 was asked for")):
        with pytest.raises(LayoutError, match=reason):
            ow.sparsify(model, sparsity=0.5, layout=layout, method=CSTraining(end=9), exclude=["5"])
    assert model[0].weight is weight
    sparsity = ow.sparsify(model, sparsity=0.75, layout="unstructured", method=CSTraining(end=9))
    with pytest.raises(ValueError, match="does not own the weights of 0"):
        sparsity.attach(torch.optim.SGD([p for n, p in model.named_parameters() if n != "0.master"], lr=0.1))


@pytest.mark.parametrize("density", ["half", 0.0, 1.5, 0.9])
def test_a_state_of_an_impossible_density_is_refused(density):
    model = net()
    sparsity = ow.sparsify(model, sparsity=0.75, layout=Complementary(4, 1), method=CSTraining(end=9), exclude=["5"])
    state = sparsity.state_dict()
    state["layers"]["0"]["density"] = density
    with pytest.raises(ValueError, match="'0' is damaged"):
        sparsity.load_state_dict(state)
