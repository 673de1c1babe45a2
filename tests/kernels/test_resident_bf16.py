"""Resident activations in bfloat16: every step against float64, and whole models against dense ones under the same autocast.

Bounds of single steps are those of ``test_bf16.py``.  A model's error is measured against itself in float64, and so is the
dense model's under autocast: they must be alike, more so on average than in one of the gradients, where chance opens ReLUs.
"""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from builds import assert_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import HEIGHTS, convs, dense_weight, random_pattern, random_values
from test_bf16 import ROUNDED, SUMMED, assert_near
from test_conv_bf16 import BOUNDS, CONVS, problem
from test_resident import BETWEEN, FUNCTIONS, Block, Odd, conv, images, normed
from torch import nn
from torch.utils.checkpoint import checkpoint

import openwork as ow
from openwork import _native, resident
from openwork.kernels.window import Window
from openwork.resident import ResidentTensor, native
from openwork.resident.formula import Formula

BF16 = torch.bfloat16
has_bf16 = pytest.mark.skipif(not _native.has_bf16(), reason="no bfloat16 instructions")
BATCHES = [14, 16, 29, 32, 47]


def autocast():
    return torch.autocast("cpu", BF16)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def blocked(x):
    """The numbers and, for images beyond the batch, NaN."""
    formula = native.numbers(x.contiguous())[0]
    formula.x[-1, ..., (x.shape[0] - 1) % 16 + 1 :] = torch.nan
    return formula


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (8, 6, 6), (17, 4, 33), (2, 40, 40)])
def test_conversions_are_exact(batch, size):
    x = numbers(batch, *size)
    narrow, wide = native.numbers(x)[0], native.numbers(x.float())[0]
    assert torch.equal(native.to_nchw(narrow), x)
    assert torch.equal(native.to_nchw(native.numbers(narrow, dtype=torch.float32)[0]), x.float())
    assert torch.equal(native.to_nchw(native.numbers(wide, dtype=BF16)[0]), x)
    assert torch.equal(native.to_nchw(native.numbers(narrow)[0]), x)
    exact = torch.randn(batch, *size)
    assert torch.equal(native.to_nchw(native.numbers(native.numbers(exact)[0], dtype=BF16)[0]), exact.to(BF16))


def test_large_tensors_are_written_past_the_caches():
    x = numbers(32, 96, 36, 41)
    narrow = native.numbers(x)[0]
    assert narrow.x.numel() * 2 >= 8 << 20
    assert torch.equal(native.to_nchw(narrow), x)


def test_rounding_is_to_nearest_even():
    ties = (torch.arange(-300, 300, dtype=torch.int32) * 0x8000 + 0x3F800000).view(torch.float32)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.4e38, -3.4e38, 1.00390625])
    every = torch.cat([ties, odd]).repeat(16, 1)[:, :, None, None]
    found = native.to_nchw(native.numbers(native.numbers(every)[0], dtype=BF16)[0])
    torch.testing.assert_close(found, every.to(BF16), rtol=0, atol=0, equal_nan=True)


def formulas(size):
    """Formulas of every form beside what they are in float64."""
    x, y, gate, keep = (numbers(*size, seed=i) for i in range(4))
    a, b, shift, scale, other = (torch.randn(size[1], generator=torch.Generator().manual_seed(9 + i)) for i in range(5))
    held = {name: blocked(t).x for name, t in {"x": x, "y": y, "gate": gate, "keep": keep}.items()}
    x, y, gate, keep = (t.double() for t in (x, y, gate, keep))
    wide = [t.double()[:, None, None] for t in (a, b, shift, scale, other)]
    base = Formula(size, held["x"])
    opened = torch.where(wide[3] * y + wide[4] > 0, x, 0)
    return [
        (base, x),
        (base.replace(a=a, shift=shift, relu=True), (wide[0] * x + wide[2]).relu()),
        (base.replace(y=held["y"]), x + y),
        (base.replace(y=held["y"], a=a, b=b, shift=shift, relu=True), (wide[0] * x + wide[1] * y + wide[2]).relu()),
        (base.replace(gate=held["gate"], a=a), wide[0] * torch.where(gate > 0, x, 0)),
        (base.replace(keep=held["keep"], y=held["y"]), torch.where(keep > 0, x + y, 0)),
        (base.replace(y=held["y"], open_scale=scale, open_shift=other), opened),
        (base.replace(y=held["y"], open_scale=scale, open_shift=other, a=a, b=b), wide[0] * opened + wide[1] * y),
    ]


@pytest.mark.parametrize("batch", BATCHES)
def test_formulas_their_moments_and_their_pooling(batch):
    size = (batch, 19, 5, 7)
    window = Window((3, 2), (2, 1), (1, 1))
    middle, against = torch.randn(19), numbers(*size, seed=5)
    for formula, right in formulas(size):
        found, moments = native.numbers(formula, moments=True)
        assert found.dtype == BF16
        assert_near(native.to_nchw(found), right, ROUNDED)
        assert_near(native.to_nchw(native.numbers(formula, dtype=torch.float32)[0]), right, SUMMED)
        # The moments are those of the numbers as they are stored, whoever takes them.
        assert torch.equal(moments, native.line_moments(found))
        lines = native.to_nchw(found).double()
        for panel in range(-(-batch // 16)):
            part = lines[16 * panel : 16 * panel + 16]
            assert_near(moments[panel, ..., 0].t(), part.mean((0, 3)), SUMMED)
            assert_near(moments[panel, ..., 1].t(), part.var((0, 3), unbiased=False) * part.shape[0] * 7, 1e-4)
        sums = native._gradient_sums(formula, blocked(against).x, middle).sum((0, 1))
        assert_near(sums[:, 0], right.sum((0, 2, 3)), 1e-4)
        assert_near(sums[:, 1], (right * (against.double() - middle.double()[:, None, None])).sum((0, 2, 3)), 1e-4)
        assert_near(native.channel_sums(formula), right.sum((0, 2, 3)), 1e-4)
        best, _ = native.max_pool(formula, window)
        assert_near(native.to_nchw(best), F.max_pool2d(F.pad(right, (1, 1, 1, 1), value=-torch.inf), (3, 2), (2, 1)), ROUNDED)


@pytest.mark.parametrize("batch", [16, 29])
def test_gradients_of_overlapping_windows_are_summed_before_they_are_rounded(batch):
    x, window = numbers(batch, 11, 9, 8), Window((3, 3), (1, 1), (1, 1))
    best, taps = native.max_pool(blocked(x), window)
    g = numbers(*best.size, seed=1)
    dx = native.max_pool_backward(blocked(g), taps, window, tuple(x.shape))
    leaf = x.double().requires_grad_()
    F.max_pool2d(leaf, 3, 1, 1).backward(g.double())
    # Equal numbers: the first is taken in either precision.
    assert dx.dtype == BF16
    assert_near(native.to_nchw(dx), leaf.grad, ROUNDED)


def compare(c, height, density=0.5):
    """The convolution and its gradients between blocked numbers, of NCHW and of formulas."""
    _, pattern, x, g, values, bias = problem(c, height, density)
    window = Window(**c.window)
    dense = [t.double().requires_grad_() for t in (x, values, bias)]
    weight = dense_weight(pattern, dense[1]).view(c.rows, c.channels, *c.kernel_size)

    def convolution(image):
        return F.conv2d(image, weight, dense[2], c.stride, c.padding, c.dilation)

    right = convolution(dense[0])
    gradients = torch.autograd.grad(right, dense[:2], g.double(), retain_graph=True)
    for plain_x in (True, False):
        image = x if plain_x else blocked(x)
        out, moments = native.conv2d(image, values, pattern, bias, window)
        assert_near(native.to_nchw(out), right, BOUNDS[0])
        assert torch.equal(moments, native.line_moments(out))
        for plain_g in (True, False):
            gradient = g if plain_g else blocked(g)
            dx, dvalues = native.conv2d_backward(gradient, image, values, pattern, window, c.size, plain=plain_x)
            assert_near(dx if plain_x else native.to_nchw(dx), gradients[0], BOUNDS[1])
            assert_near(dvalues, gradients[1], BOUNDS[2])
    # What is computed while it is read is rounded once more.
    a = torch.rand(c.channels, generator=torch.Generator().manual_seed(3)) + 0.5
    out, _ = native.conv2d(blocked(x).replace(a=a, relu=True), values, pattern, bias, window)
    read = (x.double() * a.double()[:, None, None]).relu().to(BF16).double()
    assert_near(native.to_nchw(out), convolution(read), 2 * ROUNDED)


WHOLE = {name: c for name, c in CONVS.items() if c.batch >= 14 and name != "no image"}


@has_bf16
@pytest.mark.parametrize("height", [1, 2, 4, 5, 8, 16, 17])
@pytest.mark.parametrize("name", WHOLE)
def test_convolutions_like_float64(name, height):
    compare(WHOLE[name], height)


@has_bf16
@settings(max_examples=40, deadline=None)
@given(convs(), st.sampled_from(HEIGHTS), st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 4), st.sampled_from(BATCHES))
def test_any_geometry(c, height, density, threads, batch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _native.poison_scratch(True)
    try:
        compare(replace(c, batch=batch), height, density)
    finally:
        _native.poison_scratch(False)
        torch.set_num_threads(before)


def projected(out):
    """A loss that batch norm does not cancel."""
    return (out * numbers(*out.shape, seed=7).to(out.dtype)).sum()


def results(model, x, context=autocast, loss=projected):
    """Output, input gradient, gradients and statistics of a step."""
    own, leaf = copy.deepcopy(model), x.clone().requires_grad_()
    with context():
        out = own(leaf)
    loss(out.double()).backward()
    found = [resident.to_nchw(out.detach()), leaf.grad, *(p.grad for p in own.parameters())]
    assert all(type(t) is torch.Tensor for t in found if t is not None)
    conversions = sum((getattr(module, "conversions", Counter()) for module in own.modules()), Counter())
    return found + [b for b in own.buffers() if b.is_floating_point()], conversions


def masked(model):
    """The dense twin, whose weight gradients are those at the stored positions."""
    twin = ow.densify(copy.deepcopy(model))

    def gather(found):
        names = [name for name, _ in model.named_parameters()]
        modules = dict(model.named_modules())
        for i, name in enumerate(names):
            path = name.rpartition(".")[0]
            if name.endswith("values"):
                layer = modules[path]
                found[2 + i] = layer.pattern.pack(found[2 + i].reshape(layer.shape))
        return found

    return twin, gather


def error(found, right):
    return (found.double() - right.double()).norm() / right.double().norm().clamp(min=1e-12)


def assert_as_near(found, dense, right):
    assert [t is None for t in found] == [t is None for t in right]
    assert [t.dtype for t in found if t is not None] == [t.dtype for t in dense if t is not None]
    there = [three for three in zip(found, dense, right, strict=True) if three[2] is not None]
    errors = torch.stack([torch.stack([error(one, exact), error(other, exact)]) for one, other, exact in there])
    assert (errors[:, 0] <= 3 * errors[:, 1] + 2**-5).all()
    assert errors[:, 0].mean() <= 1.5 * errors[:, 1].mean() + 2**-7


def assert_as_good_as_dense(model, x, conversions=None):
    """Each result's error in float64 against that of the dense model under the same autocast."""
    twin, gather = masked(model)
    order = [n.removesuffix(".values").removesuffix(".weight") for n, _ in model.named_parameters()]
    assert order == [n.removesuffix(".weight") for n, _ in twin.named_parameters()]
    found, counted = results(model, x)
    dense = gather(results(twin, x)[0])
    right = gather(results(copy.deepcopy(twin).double(), x.double(), torch.enable_grad)[0])
    assert_as_near(found, dense, right)
    if conversions is not None and _native.has_bf16():
        assert dict(counted) == conversions


@pytest.mark.parametrize("height", [1, 4])
@pytest.mark.parametrize("batch", [7, 16, 30, 33])
def test_a_convolution_hands_on_bfloat16(height, batch):
    layer, x = conv(8, 12, height, bias=True), images(batch)
    with autocast():
        out = layer(x)
    assert (type(out) is ResidentTensor) == (_native.has_bf16() and batch in (16, 30))
    assert (out.shape, out.dtype, out.requires_grad) == ((batch, 12, 6, 6), BF16, True)
    with resident.resident(False), autocast():
        plain = layer(x)
    assert torch.equal(resident.to_nchw(out), plain)
    lacking = {} if _native.has_bf16() or batch in (7, 33) else {"no bfloat16 instructions": 1}
    assert dict(layer.conversions) == lacking


@pytest.mark.parametrize("batch", [16, 31])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [1, 4])
def test_batch_norm_relu_and_convolutions_need_no_conversion(batch, stride, height):
    assert_as_good_as_dense(normed(height, stride), images(batch), {"_to_copy.default": 1, "from NCHW": 1})


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_needs_no_conversion(inplace, training):
    model = Block(inplace).train(training)
    assert_as_good_as_dense(model, images(30), {"from NCHW": 1})


class Stage(nn.Module):
    """A ResNet's stem, a block that halves the image and one that does not, and its head."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv(3, 8, 1), conv(8, 16, 8, stride=2), conv(16, 16, 16, seed=1)
        self.short, self.three, self.four = conv(8, 16, 4, stride=2, seed=2), conv(16, 16, 16, seed=3), conv(16, 16, 2, seed=4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (8, 16, 16, 16, 16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norms[0](self.stem(x)), inplace=True), 3, 2, 1)
        y = self.norms[2](self.two(F.relu(self.norms[1](self.one(x)))))
        x = F.relu(y + self.norms[3](self.short(x)))
        y = self.norms[5](self.four(F.relu(self.norms[4](self.three(x)))))
        y += x
        return self.head(F.avg_pool2d(F.relu(y), 2).mean((2, 3)))


@pytest.mark.parametrize("batch", [16, 30])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_network(batch, training):
    # The gradient of the mean begins as a plain tensor.
    assert_as_good_as_dense(Stage().train(training), images(batch, 3, 16), {"from NCHW": 1})


def test_frozen_norms_inside_a_training_model():
    model = Stage()
    for norm in (model.norms[0], model.norms[3], model.norms[4]):
        norm.eval()
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    assert_as_good_as_dense(model, images(30, 3, 16))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.3, "eps": 0.1}], ids=str
)
def test_every_kind_of_batch_norm(options):
    model = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8, **options), nn.ReLU(), conv(8, 4, seed=1))
    assert_as_good_as_dense(model, images(31))


@pytest.mark.parametrize("between", BETWEEN, ids=str)
@pytest.mark.parametrize("batch", [16, 29])
def test_whatever_stands_between_two_convolutions(between, batch):
    after = 2 if isinstance(between, nn.PixelShuffle) else 8
    assert_as_good_as_dense(nn.Sequential(conv(8, 8), between, conv(after, 4, seed=1)), images(batch))


def test_a_model_with_odd_control_flow():
    assert_as_good_as_dense(Odd(), images(29))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_function_gives_what_it_gives_of_a_plain_tensor(function):
    def outcome(tensor):
        try:
            result = function(tensor)
        except (RuntimeError, TypeError) as wrong:
            return type(wrong)
        return resident.to_nchw(result) if isinstance(result, torch.Tensor) else result

    x = images().to(BF16)
    expected, found = outcome(x.clone()), outcome(resident.from_nchw(x))
    if isinstance(expected, type):
        assert found is expected
    else:
        torch.testing.assert_close(found, expected)


class Mixed(nn.Module):
    """Into autocast and out of it, with sums of both dtypes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(conv(8, 8, seed=i) for i in range(4))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        wide = F.relu(self.norm(self.layers[0](x)))
        with autocast():
            narrow = self.layers[1](wide)
            both = narrow + wide
            assert (narrow.dtype, both.dtype) == (BF16 if x.dtype == torch.float32 else x.dtype, x.dtype)
            narrow = F.relu(self.layers[2](both))
        return self.layers[3](narrow.to(x.dtype)) + both


@pytest.mark.parametrize("batch", [16, 29])
def test_in_and_out_of_autocast(batch):
    model = Mixed()
    twin, gather = masked(model)
    x = images(batch)
    found, counted = results(model, x, torch.enable_grad)
    dense = gather(results(twin, x, torch.enable_grad)[0])
    right = gather(results(twin.double(), x.double(), torch.enable_grad)[0])
    assert_as_near(found, dense, right)
    if _native.has_bf16():
        # No more than the loss: it is in double precision.
        assert set(counted) <= {"_to_copy.default", "from NCHW"}


@has_bf16
def test_dtypes_change_without_leaving_the_blocked_layout():
    layer = conv(8, 8)
    with torch.no_grad():
        out = layer(images())
        narrow = out.to(BF16)
        assert (type(narrow), narrow.dtype) == (ResidentTensor, BF16)
        assert (type(narrow.float()), narrow.float().dtype) == (ResidentTensor, torch.float32)
        assert torch.equal(resident.to_nchw(narrow), resident.to_nchw(out).to(BF16))
        assert torch.equal(resident.to_nchw(narrow.float()), resident.to_nchw(out).to(BF16).float())
    assert not layer.conversions


@has_bf16
@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda t: t + t, True), (F.relu, True), (lambda t: F.max_pool2d(t, 2), True),
        (lambda t: F.avg_pool2d(t, 3, 2, 1), True),
        (lambda t: t + resident.from_nchw(images()), True), (lambda t: t * torch.rand(16, 8, 1, 1), True), (F.silu, True),
        (lambda t: t.mul_(torch.rand(8, 1, 1)), False), (lambda t: t.add_(resident.from_nchw(images())), True),
        (lambda t: t.mean((2, 3)), False), (lambda t: F.adaptive_avg_pool2d(t, 1), False), (nn.BatchNorm2d(8), True),
        (lambda t: t * 2, True), (lambda t: t * torch.tensor(2.0), True),
        (lambda t: F.batch_norm(t, None, None, None, None, True), True),
    ],
)  # fmt: skip
def test_dtypes_are_those_of_plain_tensors(function, kept):
    x = images().to(BF16)
    with torch.no_grad(), autocast():
        found, plain = function(resident.from_nchw(x)), function(x.clone())
    assert found.dtype == plain.dtype
    assert (type(found) is ResidentTensor and isinstance(found.content.held, Formula)) == kept


def test_bfloat16_beside_float32_weights_is_refused_without_autocast():
    with pytest.raises(ValueError, match=r"values is torch.float32 .* x is torch.bfloat16"):
        conv(8, 8)(resident.from_nchw(images().to(BF16)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.first, self.block = conv(8, 8), nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, seed=3))
            self.again = again

        def forward(self, x):
            x = F.relu(self.first(x))
            return checkpoint(self.block, x, use_reentrant=reentrant) if self.again else self.block(x)

    one, other = (results(Checkpointed(again), images())[0][:-2] for again in (True, False))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_inference_offloading_and_copies():
    model, x = Stage().eval(), images(30, 3, 16)
    with torch.no_grad(), autocast():
        expected = model(x)
        out = model.stem(x)
    with torch.inference_mode(), autocast():
        assert torch.equal(model(x), expected)
    assert not any(getattr(module, "conversions", None) for module in model.modules()) or not _native.has_bf16()
    assert (resident.to_nchw(copy.deepcopy(out)) == resident.to_nchw(out)).all()
    right = results(model, x)[0]
    with torch.autograd.graph.save_on_cpu():
        found = results(model, x)[0]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


@has_bf16
def test_compiled_parts():
    torch._dynamo.reset()
    model, x = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, seed=1)).eval(), images()
    part = nn.Sequential(model[0], torch.compile(nn.Sequential(*model[1:3]), backend="aot_eager"), model[3])
    for other in (part, torch.compile(model, backend="aot_eager")):
        assert error(results(other, x)[0][0], results(model, x)[0][0]) < ROUNDED


def test_training_steps_keep_float32_masters():
    """Some steps of SGD follow those of the model in float32."""
    draw = torch.Generator().manual_seed(0)
    x, labels = torch.randn(32, 3, 16, 16, generator=draw), torch.randint(5, (32,), generator=draw)
    losses = []
    for context in (autocast, torch.enable_grad):
        model = Stage()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(15):
            optimizer.zero_grad()
            with context():
                loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        losses.append(loss.item())
    assert losses[1] < 0.9
    assert abs(losses[0] - losses[1]) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_only_last_bits_of_weight_gradients(threads):
    before, model, x = (
        torch.get_num_threads(),
        nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.MaxPool2d(2), conv(8, 4)),
        images(48),
    )
    right = results(model, x)[0]
    try:
        torch.set_num_threads(threads)
        found = results(model, x)[0]
    finally:
        torch.set_num_threads(before)
    for i, (one, other) in enumerate(zip(found, right, strict=True)):
        if i in (2, 5):
            assert_near(one, other.double(), SUMMED)
        else:
            assert torch.equal(one, other)


def test_formulas_of_several_dtypes_are_refused():
    narrow, wide = blocked(numbers(16, 4, 3, 3)), native.numbers(torch.randn(16, 4, 3, 3))[0]
    with pytest.raises(TypeError, match=r"y must be a plain tensor of torch\.bfloat16"):
        narrow.replace(y=wide.x).parts()
    with pytest.raises(TypeError, match="x must be of one of"):
        Formula(wide.size, wide.x.double()).parts()
    with pytest.raises(TypeError, match="one dtype"):
        native.conv2d_backward(
            narrow, wide, None, random_pattern(4, 36, 4, 1.0), Window((3, 3), padding=(1, 1)), (3, 3), plain=False
        )


@has_bf16
def test_bad_columns_are_refused():
    pattern = random_pattern(8, 36, 4, 0.5)
    pattern.cols[3] = 36
    x, window = blocked(numbers(16, 4, 5, 5)), Window((3, 3), padding=(1, 1))
    with pytest.raises(ValueError, match="columns are out of range"):
        native.conv2d(x, random_values(pattern), pattern, None, window)


SCRIPT = """
import test_resident_bf16 as tests
from openwork import _native
assert _native.isa() == {isa!r}, _native.isa()
_native.poison_scratch(True)
tests.test_rounding_is_to_nearest_even()
for batch in (16, 29):
    tests.test_conversions_are_exact(batch, (17, 4, 33))
    tests.test_formulas_their_moments_and_their_pooling(batch)
    tests.test_gradients_of_overlapping_windows_are_summed_before_they_are_rounded(batch)
    tests.test_a_convolution_hands_on_bfloat16(4, 30)
tests.test_a_residual_network(30, True)
tests.test_in_and_out_of_autocast(16)
"""


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_every_build(isa):
    assert_runs(SCRIPT, isa)
