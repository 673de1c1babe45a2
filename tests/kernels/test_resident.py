"""Activations that stay blocked between sparse convolutions: the same numbers, gradients and statistics as without."""

import copy
import io
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import openwork as ow
from openwork import resident
from openwork.resident import ResidentTensor


def conv(channels_in, channels, height=4, density=0.5, seed=0, bias=False, **window):
    torch.manual_seed(seed)
    dense = nn.Conv2d(channels_in, channels, 3, padding=1, bias=bias, **window)
    mask = torch.rand(channels // height, channels_in * 9) < density
    return ow.nn.SparseConv2d.from_dense(dense, ow.Pattern.from_mask(mask.repeat_interleave(height, 0), height))


def images(batch=16, channels=8, side=6, seed=1):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def both_ways(model, x, loss=lambda out: (out**3 + out).mean()):
    """Outputs, gradients and buffers of the model with and without residence, and its conversions."""
    found = []
    for on in (True, False):
        own, leaf = copy.deepcopy(model), x.clone().requires_grad_()
        with resident.resident(on):
            out = own(leaf)
            loss(out).backward()
        gradients = [leaf.grad, *(p.grad for p in own.parameters())]
        assert all(type(g) is torch.Tensor for g in gradients if g is not None)
        found.append((resident.to_nchw(out.detach()), gradients, [b for b in own.buffers() if b.is_floating_point()]))
        if on:
            conversions = Counter()
            for module in own.modules():
                conversions += getattr(module, "conversions", Counter())
    return *found, conversions


def assert_same(model, x, conversions=None, tolerance=2e-5, **how):
    one, other, counted = both_ways(model, x, **how)
    for a, b in zip((one[0], *one[1], *one[2]), (other[0], *other[1], *other[2]), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max().clamp(min=1e-6)))
    if conversions is not None:
        assert dict(counted) == conversions


@pytest.mark.parametrize("height", [1, 4])
@pytest.mark.parametrize("batch", [16, 30, 32])
def test_a_convolution_hands_on_a_resident_tensor_with_the_same_numbers(height, batch):
    layer, x = conv(8, 12, height, bias=True), images(batch)
    out = layer(x)
    assert type(out) is ResidentTensor
    assert out.shape == (batch, 12, 6, 6)
    assert out.dtype == torch.float32
    assert out.requires_grad
    with resident.resident(False):
        plain = layer(x)
    assert type(plain) is torch.Tensor
    torch.testing.assert_close(resident.to_nchw(out), plain)
    assert not layer.conversions


def normed(height, stride):
    """Two convolutions with batch norm, the first with a ReLU between that both signs of its scale reach."""
    model = nn.Sequential(
        conv(8, 12, height), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 8, height, stride=stride), nn.BatchNorm2d(8)
    )
    nn.init.uniform_(model[1].weight, -1, 1)
    nn.init.uniform_(model[1].bias, -1, 1)
    return model


@pytest.mark.parametrize("batch", [16, 31])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [1, 4])
def test_batch_norm_relu_and_convolutions_need_no_conversion(batch, stride, height):
    model = normed(height, stride)
    # The gradients of both summands of the loss begin as plain tensors.
    assert_same(model, images(batch), {"from NCHW": 2}, loss=lambda out: (out**3 + out).sum((2, 3)).mean())


class Block(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.first, self.one, self.two = conv(8, 8), conv(8, 8, seed=1), conv(8, 8, seed=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.inplace = inplace

    def forward(self, x):
        x = F.relu(self.norms[0](self.first(x)), inplace=self.inplace)
        out = F.relu(self.norms[1](self.one(x)), inplace=self.inplace)
        out = self.norms[2](self.two(out))
        if self.inplace:
            out += x
        else:
            out = out + x
        return F.relu(out, inplace=self.inplace).mean((2, 3))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_residual_block_needs_no_conversion(inplace):
    # The gradient of the mean begins as a plain tensor.
    assert_same(Block(inplace), images(30), {"from NCHW": 1})


@pytest.mark.parametrize("inplace", [False, True])
def test_a_residual_block_in_eval_mode_and_with_frozen_statistics(inplace):
    model = Block(inplace)
    for norm in model.norms:
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    model.eval()
    assert_same(model, images(30), {"from NCHW": 1})


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.3, "eps": 0.1}], ids=str
)
def test_every_kind_of_batch_norm(options):
    model = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8, **options), nn.ReLU(), conv(8, 4, seed=1))
    assert_same(model, images())
    assert_same(model, images(31))


BETWEEN = [
    nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.ReLU6(), nn.Tanh(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2,
    1), nn.MaxPool2d(2, 1, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, ceil_mode=True),
    nn.Identity(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Dropout(0.0), nn.PixelShuffle(2), nn.GroupNorm(2,
    8), nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1),
    nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid()), nn.InstanceNorm2d(8), nn.LocalResponseNorm(3),
    nn.Softmax2d(), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2),
]  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN, ids=str)
@pytest.mark.parametrize("batch", [16, 29])
def test_whatever_stands_between_two_convolutions(between, batch):
    after = 2 if isinstance(between, nn.PixelShuffle) else 8
    assert_same(nn.Sequential(conv(8, 8), between, conv(after, 4, seed=1)), images(batch))


class Odd(nn.Module):
    """Control flow, views, writes in place, gates, a layer used twice and an output nobody uses."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.gate = conv(8, 8, bias=True), conv(8, 8, seed=1), nn.Linear(8, 8)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.one(x)
        if x.mean() > -100:
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        y = self.two(self.two(F.relu(x)))
        self.two(x)
        y = torch.cat([y[:, :4], x[:, 4:]], 1)
        z = self.norm(self.one(y))
        z[:, 0] = 0.5
        z = z + x.flip(0)
        z[z > 1.5] *= 0.5
        first, second = z.chunk(2, 1)
        return (first - second).flatten(1) @ torch.ones(144, 3).to(x) * x.shape[0] + float(x.numel())


def test_a_model_with_odd_control_flow():
    assert_same(Odd(), images(29), tolerance=1e-4)


def test_writes_in_place_are_seen_by_aliases():
    layer = conv(8, 8)
    with torch.no_grad():
        out = layer(images())
        expected = resident.to_nchw(out)
        alias = out.detach()
        view = out[:, 2:4]
        view.zero_()
        expected[:, 2:4] = 0
        out.relu_()
        torch.testing.assert_close(alias + 0, expected.relu())
        out = layer(images())
        alias = out.detach()
        out.relu_()
        assert float(alias.min()) == 0.0
        copied = layer(images()).clone()
        copied.add_(1.0).mul_(2.0)
        torch.testing.assert_close(resident.to_nchw(copied), 2 * (resident.to_nchw(layer(images())) + 1))


def test_a_write_that_autograd_must_refuse_is_refused():
    one, two = conv(8, 8), conv(8, 8, seed=1)
    hidden = F.relu(one(images()))
    out = two(hidden)
    hidden.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_max_pooling_returns_the_indices_of_torch():
    with torch.no_grad():
        out = conv(8, 8)(images(31))
        pooled, indices = F.max_pool2d(out, 3, 2, 1, return_indices=True)
        expected, expected_indices = F.max_pool2d(resident.to_nchw(out), 3, 2, 1, return_indices=True)
    torch.testing.assert_close(resident.to_nchw(pooled), expected)
    assert torch.equal(indices + 0, expected_indices)
    assert repr(indices) == repr(expected_indices)


def test_nan_and_infinity_come_through():
    model = nn.Sequential(conv(8, 8), nn.ReLU(), nn.MaxPool2d(2))
    x = images()
    x[3, 1, 2, 2], x[5, 0, 1, 1] = torch.nan, torch.inf
    with torch.no_grad():
        found = resident.to_nchw(model(x))
        with resident.resident(False):
            torch.testing.assert_close(found, model(x), equal_nan=True)


def test_hooks_see_tensors_and_may_change_them():
    def run(on):
        model = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, seed=1))
        seen = []
        model[0].register_forward_hook(lambda m, args, out: out * 2)
        model[1].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        model[2].register_full_backward_hook(lambda m, gin, gout: (gin[0] * 3,))
        model[1].register_full_backward_hook(lambda m, gin, gout: seen.append(gout[0].norm().item()))
        model[3].register_full_backward_pre_hook(lambda m, gout: (gout[0] * 0.5,))
        model[2].register_forward_hook(lambda m, args, out: seen.append(float(out.detach().cpu().numpy().sum())))
        x = images().requires_grad_()
        with resident.resident(on):
            out = model(x)
            out.register_hook(lambda g: g + 0.01)
            out.retain_grad()
            out.sum().backward()
        return [*seen, x.grad, model[0].values.grad, resident.to_nchw(out.grad)]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = conv(8, 8), nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8, seed=3))

        def forward(self, x):
            return checkpoint(self.block, F.relu(self.first(x)), use_reentrant=reentrant)

    assert_same(Checkpointed(), images())


def test_offloading_saved_tensors():
    model, x = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, seed=1)), images().requires_grad_()
    model(x).square().sum().backward()
    expected, x.grad = x.grad, None
    with torch.autograd.graph.save_on_cpu():
        out = model(x)
    out.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_compiled_models_and_parts():
    model, x = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, seed=1)), images()
    part = nn.Sequential(model[0], torch.compile(nn.Sequential(*model[1:3]), backend="aot_eager"), model[3])
    whole = torch.compile(model, backend="aot_eager")
    model.eval()
    expected = resident.to_nchw(model(x))
    for other in (part, whole):
        torch.testing.assert_close(resident.to_nchw(other(x)), expected)


def test_what_leaves_pytorch_is_nchw():
    with torch.no_grad():
        out = conv(8, 8)(images())
    expected = resident.to_nchw(out)
    assert (out.numpy() == expected.numpy()).all()
    assert out.tolist() == expected.tolist()
    assert repr(out) == repr(expected)
    copied = copy.deepcopy(out)
    assert type(copied) is torch.Tensor
    assert torch.equal(copied, expected)
    file = io.BytesIO()
    torch.save(out, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), expected)


FUNCTIONS = [
    lambda t: t.data.sum((0, 2, 3)), lambda t: torch.stack(list(t)), lambda t: t[0, 1, 2, 3], lambda t: t.double(),
    lambda t: t.to(torch.bfloat16), lambda t: t.half().float(), lambda t: torch.vmap(torch.sin)(t),
    lambda t: t.std((2, 3)), lambda t: F.unfold(t, 3), lambda t: torch.einsum("nchw,cd->ndhw", t, torch.ones(8, 2)),
    lambda t: torch.equal(t, t.clone()), lambda t: torch.where(t > 0, t, 2 * t), lambda t: t.amax((2, 3)),
    lambda t: t.topk(2).values, lambda t: t != 0, lambda t: t.permute(0, 2, 3, 1).contiguous(),
    lambda t: t.contiguous(memory_format=torch.channels_last), lambda t: 1 - t, lambda t: torch.from_dlpack(t),
    lambda t: torch.empty(0).set_(t), lambda t: t.share_memory_(), lambda t: t.sum(), lambda t: t.mean((1, 2, 3)),
    lambda t: t.mean((2, 3), keepdim=True), lambda t: t.sum((-1, -2)), lambda t: t.mean(2), lambda t: t.add(t, alpha=2),
    lambda t: t.sub_(1), lambda t: t * torch.arange(8.0).view(1, 8, 1, 1), lambda t: t.fill_(2),
    lambda t: t * torch.arange(128.0).view(16, 8, 1, 1), lambda t: t + torch.ones(16, 8, 6, 6),
    lambda t: torch.ones(6) + t, lambda t: torch.ones(16, 8, 6, 6).add_(t), lambda t: t.clamp(0.1, 0.2),
    lambda t: F.threshold(t, 0.2, 7.0), lambda t: t.exp().log(), lambda t: torch.zeros_like(t), lambda t: t.new_ones(3),
    lambda t: torch.cat([t, t], 1), lambda t: t.view(16, -1), lambda t: t.abs_(), lambda t: t.expand(16, 8, 6, 6),
    lambda t: t.reshape(16, 8, 36), lambda t: F.max_pool2d(t.relu(), 2), lambda t: t.relu().relu_(),
    lambda t: (t.relu() + t).relu() + t, lambda t: t.masked_fill(t > 0, 1.0), lambda t: torch.maximum(t, -t),
    lambda t: torch.lerp(t, t + 1, 0.5), lambda t: t.addcmul(t, t, value=2), lambda t: t.clone().zero_() + t,
    lambda t: t.norm(),
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_function_gives_what_it_gives_of_a_plain_tensor(function):
    with torch.no_grad():
        out = conv(8, 8)(images())
        expected = function(resident.to_nchw(out))
        found = function(out)
    if isinstance(found, ResidentTensor):
        found = resident.to_nchw(found)
    torch.testing.assert_close(found, expected)


def test_memory_that_is_not_there_is_refused():
    with torch.no_grad():
        out = conv(8, 8)(images())
    with pytest.raises(RuntimeError, match="data pointer"):
        out.data_ptr()
    with pytest.raises(ValueError, match="tensor must be float32"):
        resident.from_nchw(torch.ones(2, 2))


def test_inference_mode_and_no_grad():
    model = Block(False).eval()
    x = images(30)
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
    assert model(x.requires_grad_()).grad_fn is not None


def test_small_and_ragged_batches_do_without():
    layer = conv(8, 8)
    for batch in (0, 1, 7, 33):
        assert type(layer(images(batch))) is torch.Tensor
    assert type(torch.func.functional_call(layer, dict(layer.named_parameters()), images())) is ResidentTensor
    with pytest.raises(TypeError, match="on='yes'"), resident.resident("yes"):
        pass


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_statistics_do_not_depend_on_the_number_of_threads(threads):
    def run():
        model = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, seed=1))
        out = model(images(48))
        out.square().sum().backward()
        return [resident.to_nchw(out.detach()), model[1].running_var, model[1].weight.grad, model[1].bias.grad]

    before = torch.get_num_threads()
    expected = run()
    try:
        torch.set_num_threads(threads)
        found = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))
    for a, b in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_statistics_survive_a_large_mean(offset):
    norm, twin = nn.BatchNorm2d(8), nn.BatchNorm2d(8).double()
    layer = conv(8, 8, bias=True)
    with torch.no_grad():
        layer.bias.fill_(offset)
        out = layer(images(40))
        found, expected = norm(out), twin(resident.to_nchw(out).double())
    torch.testing.assert_close(resident.to_nchw(found).double(), expected, rtol=1e-3, atol=2e-6 * (1 + offset))
    torch.testing.assert_close(norm.running_var.double(), twin.running_var, rtol=2e-6 * (1 + offset / 100), atol=0)
