"""Products that nobody wants are not computed: the calls of the native module are counted."""

import pytest
import torch
from problems import random_pattern, random_values
from torch import nn

from openwork import _native, resident
from openwork.nn import SparseConv2d, SparseLinear

HEIGHTS = pytest.mark.parametrize("height", [1, 4])
SCATTER = ("linear_backward", "segments_backward", "conv_backward")
GATHER = ("linear_forward", "segments_forward", "conv_forward")


@pytest.fixture
def products(monkeypatch):
    """The input and weight gradients that the native module has been asked for, as "dx" and "dw"."""
    asked = []

    def watch(name):
        plain = getattr(_native, name)

        def call(*args):
            if name in SCATTER:
                dx, dw = args[2:4]
                asked.extend(["dx"] * bool(any(dx) if isinstance(dx, tuple) else dx) + ["dw"] * bool(dw))
            else:
                asked.append("dx")  # backward, what gathers is the transposed product
            return plain(*args)

        monkeypatch.setattr(_native, name, call)

    for name in (*SCATTER, *GATHER):
        watch(name)
    return asked


def linear(height):
    patterns = random_pattern(20, 200, height, 0.3), random_pattern(200, 20, height, 0.3, seed=1)
    layers = [SparseLinear(p, random_values(p), torch.zeros(p.shape[0]), kernel="cpu") for p in patterns]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]), torch.randn(16, 200)


def convolutional(height):
    patterns = random_pattern(8, 36, height, 0.5), random_pattern(8, 72, height, 0.5, seed=1)
    layers = [
        SparseConv2d(p, random_values(p), torch.zeros(p.shape[0]), kernel_size=(3, 3), padding=(1, 1), kernel="cpu")
        for p in patterns
    ]
    return nn.Sequential(layers[0], nn.BatchNorm2d(8), nn.ReLU(), layers[1]), torch.randn(16, 4, 5, 5)


@HEIGHTS
@pytest.mark.parametrize("on", [True, False], ids=["resident", "plain"])
@pytest.mark.parametrize("make", [linear, convolutional])
def test_only_what_is_wanted_is_computed(make, height, on, products):
    def backward(input_wanted=False, frozen=()):
        model, x = make(height)
        x.requires_grad_(input_wanted)
        for i in frozen:
            model[i].requires_grad_(False)
        with resident.resident(on):
            out = model(x)
            products.clear()
            out.square().sum().backward()
        assert (x.grad is not None) == input_wanted
        return sorted(products)

    last = 3 if make is convolutional else 2
    assert backward() == ["dw", "dw", "dx"]
    assert backward(input_wanted=True) == ["dw", "dw", "dx", "dx"]
    assert backward(frozen=(last,)) == ["dw", "dx"]
    assert backward(input_wanted=True, frozen=(0, last)) == ["dx", "dx"]
    first = range(last)
    assert backward(frozen=first) == ["dw"]


@pytest.mark.parametrize("make", [linear, convolutional])
def test_nothing_is_kept_where_no_gradient_can_be_wanted(make, products):
    for context in (torch.no_grad, torch.inference_mode):
        model, x = make(4)
        with context():
            out = model(x)
        assert out.grad_fn is None
        assert not out.requires_grad
    assert products == ["dx"] * 4  # the four forward products
