"""Resident activations in whole models, in reports, measured, and in distributed training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork import resident
from openwork.models import VGG, CifarResNet, CifarResNet18, WideResNet


def images(batch=16, channels=8, side=6):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_the_report_counts_conversions():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3)
    )
    sparsity = ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static")
    model(images())
    rows = {row.layer: dict(row.conversions) for row in sparsity.report().rows}
    assert rows == {"0": {}, "2": {"native_group_norm.default": 1}, "4": {}}
    assert "2, resident output: native_group_norm.default x 1" in str(sparsity.report())


def test_auto_measures_resident_inputs():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static", kernel="auto")
    expected = ow.densify(copy.deepcopy(model))(images())
    torch.testing.assert_close(resident.to_nchw(model(images())), expected, rtol=1e-4, atol=1e-4)
    assert len(model[2].timings) == 1


def test_distributed_data_parallel(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static")
    x = images(30)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        for one in (model, parallel):
            (one(x) ** 3).mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(model.parameters(), parallel.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


MODELS = {
    "resnet20": lambda: CifarResNet(20),
    "resnet18": CifarResNet18,
    "wrn": lambda: WideResNet(10, 1),
    "vgg": lambda: VGG(11),
}


@pytest.mark.parametrize("layout", ["shuffled_block(8,8)", "unstructured"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_against_float64(name, layout):
    """As close to a dense model in double precision as PyTorch's own arithmetic is."""
    torch.manual_seed(1)  # where no rounding error turns a ReLU that matters; with some others PyTorch alone is off by 1e-2
    model = MODELS[name]()
    ow.sparsify(model, sparsity=0.8, layout=layout, method="static")
    exact = ow.densify(copy.deepcopy(model)).double()
    x, labels = images(32, 3, 32), torch.arange(32) % 10
    losses = []
    for one, data in ((model, x), (exact, x.double())):
        loss = F.cross_entropy(one(data), labels)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-5, atol=1e-5)
    found = dict(model.named_parameters())
    for key, parameter in exact.named_parameters():
        if key in found and parameter.grad is not None:
            error = (found[key].grad.double() - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6)
            assert error < 1e-2, key
