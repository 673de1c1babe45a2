"""RigL and SET against simulations that hold every weight and a 0/1 mask, written from the papers alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow

STEPS, INTERVAL, END, ALPHA = 200, 10, 170, 0.3
LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.hidden = nn.Linear(6 * 9, 20)
        self.out = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        # tanh leaves no gradient at exactly 0, so that no ranking hangs on a tie.
        return self.out(torch.tanh(self.hidden(torch.tanh(self.conv(x)).flatten(1))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (8,), generator=generator)


class Simulation:
    """Dense tensors, masks, and SGD with momentum and weight decay on what the masks leave."""

    def __init__(self, model: Net, masks: dict[str, Tensor]) -> None:
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.params = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name in masks:
            self.params[f"{name}.weight"] *= masks[name]
        self.velocity = {name: torch.zeros_like(p) for name, p in self.params.items()}

    def gradients(self, step: int) -> dict[str, Tensor]:
        """The dense gradients, at inactive positions too."""
        p = {name: tensor.clone().requires_grad_() for name, tensor in self.params.items()}
        x, y = batch(step)
        h = torch.tanh(F.conv2d(x, p["conv.weight"], p["conv.bias"], stride=2, padding=1)).flatten(1)
        h = torch.tanh(h @ p["hidden.weight"].T + p["hidden.bias"])
        F.cross_entropy(h @ p["out.weight"].T + p["out.bias"], y).backward()
        return {name: tensor.grad for name, tensor in p.items()}

    def sgd(self, gradients: dict[str, Tensor]) -> None:
        for name, p in self.params.items():
            layer = name.removesuffix(".weight")
            g = gradients[name] + DECAY * p
            self.velocity[name] = MOMENTUM * self.velocity[name] + g
            if layer in self.masks and name.endswith(".weight"):
                self.velocity[name] *= self.masks[layer]
            p -= LR * self.velocity[name]

    def n_drop(self, step: int, layer: str) -> int:
        share = ALPHA / 2 * (1 + math.cos(math.pi * step / END))
        return int(share * int(self.masks[layer].sum()))

    def kept(self, step: int, layer: str) -> Tensor:
        """The mask without the smallest magnitudes."""
        mask = self.masks[layer].flatten().clone()
        magnitude = self.params[f"{layer}.weight"].abs().flatten()
        active = mask.nonzero().flatten()
        order = active[magnitude[active].argsort(stable=True)]
        mask[order[: self.n_drop(step, layer)]] = False
        return mask.view(self.masks[layer].shape)

    def move(self, layer: str, mask: Tensor) -> None:
        """Survivors as they are; what is new or gone is 0 in weight and momentum."""
        survivors = mask & self.masks[layer]
        self.params[f"{layer}.weight"] *= survivors
        self.velocity[f"{layer}.weight"] *= survivors
        self.masks[layer] = mask


def is_update(step: int) -> bool:
    return 0 < step < END and step % INTERVAL == 0


def begin(method: str):
    model = Net().double()
    dense = Net().double()
    dense.load_state_dict(model.state_dict())
    sparsity = ow.sparsify(
        model,
        sparsity=0.7,
        layout="unstructured",
        method=getattr(ow.methods, method)(interval=INTERVAL, end=END, drop_fraction=ALPHA),
        kernel="reference",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    sparsity.attach(optimizer)
    masks = {name: m.pattern.mask().view(m.dense_dims) for name, m in sparsity.layers.items()}
    return model, sparsity, optimizer, Simulation(dense, masks)


def train_step(model, optimizer, step):
    x, y = batch(step)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_agree(model, sparsity, optimizer, simulation):
    close = {"rtol": 0, "atol": 1e-10}
    for name, module in sparsity.layers.items():
        mask = simulation.masks[name]
        assert torch.equal(module.pattern.mask().view(mask.shape), mask)
        torch.testing.assert_close(module.dense_weight().detach(), simulation.params[f"{name}.weight"], **close)
        velocity = optimizer.state[module.values]["momentum_buffer"]
        dense = module.pattern.unpack(velocity).view(mask.shape)
        torch.testing.assert_close(dense, simulation.velocity[f"{name}.weight"], **close)
        torch.testing.assert_close(module.bias.detach(), simulation.params[f"{name}.bias"], **close)


def test_rigl_is_the_masked_simulation_step_by_step():
    model, sparsity, optimizer, simulation = begin("RigL")
    moved = 0
    for step in range(STEPS):
        gradients = simulation.gradients(step)
        if is_update(step):
            for layer in simulation.masks:
                mask = simulation.kept(step, layer).flatten()
                candidates = (~mask).nonzero().flatten()
                size = gradients[f"{layer}.weight"].abs().flatten()[candidates]
                grown = candidates[size.argsort(descending=True, stable=True)[: simulation.n_drop(step, layer)]]
                mask[grown] = True
                mask = mask.view(simulation.masks[layer].shape)
                moved += int((mask & ~simulation.masks[layer]).sum())
                simulation.move(layer, mask)
        else:
            simulation.sgd(gradients)
        train_step(model, optimizer, step)
        assert_agree(model, sparsity, optimizer, simulation)
    assert moved > 200, "the comparison saw many moves"


def test_set_is_the_masked_simulation_step_by_step():
    model, sparsity, optimizer, simulation = begin("SET")
    moved = 0
    for step in range(STEPS):
        simulation.sgd(simulation.gradients(step))
        train_step(model, optimizer, step)
        if is_update(step):
            for layer, module in sparsity.layers.items():
                before, kept = simulation.masks[layer], simulation.kept(step, layer)
                mask = module.pattern.mask().view(before.shape)
                grown = mask & ~kept
                assert (mask & kept).equal(kept), "only the smallest fall"
                assert int(grown.sum()) == simulation.n_drop(step, layer), "exactly as many grow, none of them twice"
                # Erdos-Renyi-Kernel leaves the convolution with fewer free places than are dropped at first.
                room = int((~before).sum())
                assert int((grown & ~before).sum()) == min(room, simulation.n_drop(step, layer)), "what is free grows first"
                moved += int(grown.sum())
                simulation.move(layer, mask)
        assert_agree(model, sparsity, optimizer, simulation)
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
