"""What training does to models of resident tensors: frozen and synchronised batch norm, compiled and checkpointed parts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_resident import assert_same, conv, images
from torch import nn
from torch.utils.checkpoint import checkpoint

import openwork as ow
from openwork import resident


def normed(height=4, track=True):
    """Two convolutions with batch norm and ReLU, whose norms have statistics and weights of their own."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        conv(8, 12, height), nn.BatchNorm2d(12, track_running_stats=track), nn.ReLU(),
        conv(12, 8, height, seed=1), nn.BatchNorm2d(8, track_running_stats=track), nn.ReLU(), conv(8, 4, height, seed=2),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, -1, 1, generator=draw)
        nn.init.uniform_(norm.bias, -1, 1, generator=draw)
        if track:
            norm.running_mean.normal_(generator=draw)
            norm.running_var.uniform_(0.5, 2, generator=draw)
    return model


def gradients(model, x):
    out = model(x)
    (out**3 + out).mean().backward()
    return [resident.to_nchw(out.detach()), x.grad, *(p.grad for p in model.parameters())]


def assert_like_float64(model, x):
    """Output, gradients and statistics against the dense model in double precision, which is never resident."""
    exact = ow.densify(copy.deepcopy(model)).double()
    x, exact_x = x.clone().requires_grad_(), x.double().requires_grad_()
    found, right = gradients(model, x), gradients(exact, exact_x)
    pairs = [(found[0], right[0]), (found[1], right[1])]
    norms = [(a, b) for a, b in zip(model, exact, strict=True) if isinstance(a, nn.BatchNorm2d)]
    for one, other in norms:
        pairs += [(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
        pairs += [(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True)]
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5 * float(b.abs().max().clamp(min=1e-6)))


@pytest.mark.parametrize("batch", [16, 30])
@pytest.mark.parametrize("frozen", [(1,), (4,), (1, 4)], ids=str)
@pytest.mark.parametrize("height", [1, 4])
def test_frozen_norms_inside_a_training_model(height, frozen, batch):
    model = normed(height).train()
    for i in frozen:
        model[i].eval()
    before = [b.clone() for i in frozen for b in model[i].buffers()]
    assert_like_float64(model, images(batch))
    assert all(torch.equal(a, b) for a, b in zip(before, [b for i in frozen for b in model[i].buffers()], strict=True))
    model.zero_grad()
    assert_same(model, images(batch))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fixed", ["weight", "bias", "both"])
def test_norms_of_which_something_wants_no_gradient(fixed, training):
    model = normed()
    for norm in (model[1], model[4]):
        norm.train(training)
        norm.weight.requires_grad_(fixed == "bias")
        norm.bias.requires_grad_(fixed == "weight")
    assert_like_float64(model, images())


def test_an_evaluated_norm_without_statistics_takes_the_batch():
    model = normed(track=False).eval()
    assert_like_float64(model, images(30))


@pytest.mark.parametrize("training", [True, False])
def test_synchronised_norms_of_one_process_are_batch_norms(training):
    """Without a process group; tests/test_distributed.py has groups."""
    model = normed()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted[1]) is nn.SyncBatchNorm
    for one in (model, converted):
        one.train(training)
    found = [gradients(one, images(30).requires_grad_()) for one in (model, converted)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), converted.buffers(), strict=True))
    assert not model[3].conversions
    assert converted[3].conversions == model[3].conversions


def test_compiled_models_and_parts_train():
    torch._dynamo.reset()
    model = normed()
    part, whole = copy.deepcopy(model), copy.deepcopy(model)
    eager = gradients(model, images().requires_grad_())
    compiled = nn.Sequential(part[0], torch.compile(nn.Sequential(*part[1:3]), backend="aot_eager"), *part[3:])
    for other in (compiled, torch.compile(whole, backend="aot_eager")):
        for a, b in zip(gradients(other, images().requires_grad_()), eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max().clamp(min=1e-6)))
    for other in (part, whole):
        for a, b in zip(other.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(a, b)


class Reused(nn.Module):
    """Blocks with frozen norms, one of them used twice, computed again in the backward pass or not."""

    def __init__(self, again):
        super().__init__()
        self.first, self.block, self.again = conv(8, 8), nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU()), again
        self.block[1].running_mean.fill_(0.1)
        self.block.eval()

    def forward(self, x):
        call = self.block if self.again is None else lambda t: checkpoint(self.block, t, use_reentrant=self.again)
        hidden = call(self.first(x))
        return call(F.relu(hidden)) + hidden


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_that_are_used_twice(reentrant):
    plain, again = Reused(None), Reused(reentrant)
    found = [gradients(model, images(30).requires_grad_()) for model in (plain, again)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert_same(again, images(30))
