"""A training that holds every weight and a 0/1 mask, written from the papers alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow

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

    def without_lowest(self, layer: str, n: int, score: Tensor | None = None) -> Tensor:
        """The mask without the ``n`` active weights of lowest score, their magnitude where none is given."""
        mask = self.masks[layer].flatten().clone()
        score = (self.params[f"{layer}.weight"].abs() if score is None else score).flatten()
        active = mask.nonzero().flatten()
        order = active[score[active].argsort(stable=True)]
        mask[order[:n]] = False
        return mask.view(self.masks[layer].shape)

    def move(self, layer: str, mask: Tensor) -> None:
        """Survivors as they are; what is new or gone is 0 in weight and momentum."""
        survivors = mask & self.masks[layer]
        self.params[f"{layer}.weight"] *= survivors
        self.velocity[f"{layer}.weight"] *= survivors
        self.masks[layer] = mask


def begin(method: ow.methods.Method):
    """A sparse run and its simulation."""
    model = Net().double()
    dense = Net().double()
    dense.load_state_dict(model.state_dict())
    sparsity = ow.sparsify(model, sparsity=0.7, layout="unstructured", method=method, kernel="reference")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    sparsity.attach(optimizer)
    masks = {name: m.pattern.mask().view(m.dense_dims) for name, m in sparsity.layers.items()}
    return model, sparsity, optimizer, Simulation(dense, masks)


def train_step(model, optimizer, step):
    """One step of an ordinary loop."""
    x, y = batch(step)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_agree(sparsity, optimizer, simulation):
    """Masks, weights, momenta and biases are the same."""
    close = {"rtol": 0, "atol": 1e-10}
    for name, module in sparsity.layers.items():
        mask = simulation.masks[name]
        assert torch.equal(module.pattern.mask().view(mask.shape), mask)
        torch.testing.assert_close(module.dense_weight().detach(), simulation.params[f"{name}.weight"], **close)
        velocity = optimizer.state[module.values]["momentum_buffer"]
        dense = module.pattern.unpack(velocity).view(mask.shape)
        torch.testing.assert_close(dense, simulation.velocity[f"{name}.weight"], **close)
        torch.testing.assert_close(module.bias.detach(), simulation.params[f"{name}.bias"], **close)
