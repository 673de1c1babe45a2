"""Models: shapes, and parameter counts as published."""

import pytest
import torch
from torch import nn

from openwork.models import MLP, VGG, CifarResNet, CifarResNet18, DigitsNet, WideResNet


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "millions", "digits"),
    [
        (lambda: CifarResNet(20), 0.27, 2),
        (lambda: CifarResNet(32), 0.46, 2),
        (lambda: CifarResNet(56), 0.85, 2),
        (lambda: CifarResNet(110), 1.7, 1),
        (lambda: CifarResNet(32, width=2, shortcut="projection"), 1.86, 2),
        (lambda: CifarResNet18(), 11.17, 2),
        (lambda: WideResNet(16, 8), 11.0, 1),
        (lambda: WideResNet(28, 10), 36.5, 1),
        (lambda: VGG(16), 14.7, 1),
        (lambda: VGG(19), 20.04, 2),
    ],
    ids=["resnet20", "resnet32", "resnet56", "resnet110", "resnet32x2", "resnet18", "wrn16-8", "wrn28-10", "vgg16", "vgg19"],
)
def test_parameter_counts_are_the_published_ones(model, millions, digits):
    assert round(count(model()) / 1e6, digits) == millions


def test_wrn_22_2_counted_by_hand():
    stage1 = 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32 + 2 * (16 + 32) + 2 * (2 * 32 * 32 * 9 + 4 * 32)
    stage2 = 32 * 64 * 9 + 64 * 64 * 9 + 32 * 64 + 2 * (32 + 64) + 2 * (2 * 64 * 64 * 9 + 4 * 64)
    stage3 = 64 * 128 * 9 + 128 * 128 * 9 + 64 * 128 + 2 * (64 + 128) + 2 * (2 * 128 * 128 * 9 + 4 * 128)
    assert count(WideResNet(22, 2)) == 3 * 16 * 9 + stage1 + stage2 + stage3 + 2 * 128 + 128 * 10 + 10


@pytest.mark.parametrize(
    "model",
    [
        lambda: CifarResNet(8, num_classes=7),
        lambda: CifarResNet(8, width=2, shortcut="projection", num_classes=7),
        lambda: CifarResNet18(num_classes=7),
        lambda: WideResNet(10, 2, dropout=0.1, num_classes=7),
        lambda: VGG(11, num_classes=7),
        lambda: DigitsNet(16, in_channels=3, num_classes=7),
        lambda: MLP(3 * 32 * 32, (20,), num_classes=7, batch_norm=True),
    ],
)
def test_every_parameter_learns_from_a_batch_of_images(model):
    net = model()
    out = net(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_pad_shortcut_keeps_the_pixels_and_adds_empty_channels():
    block = CifarResNet(8).blocks[1]
    x = torch.randn(1, 16, 4, 4)
    out = block.shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarResNet(21), r"depth=21 must be 6 n \+ 2"),
        (lambda: CifarResNet(20, width=0), "width=0 must be at least 1"),
        (lambda: CifarResNet(20, shortcut="b"), "shortcut='b' must be 'pad' or 'projection'"),
        (lambda: WideResNet(20), r"depth=20 must be 6 n \+ 4"),
        (lambda: VGG(17), "depth=17 must be one of"),
    ],
)
def test_impossible_shapes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
