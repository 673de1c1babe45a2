"""Which layers become sparse, that the model stays the user's own, and that it computes the same afterwards."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork.nn import dense_view


def sparse(model, *, sparsity=0.6, layout="block(2, 2)", method="static", kernel="reference", **options):
    return ow.sparsify(model, sparsity=sparsity, layout=layout, method=method, kernel=kernel, **options)


def reasons(sparsity):
    return {row.layer: row.kernel for row in sparsity.report().rows if row.layout == "dense"}


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "stride, padding, dilation": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "same, even": lambda: nn.Conv2d(4, 6, (4, 2), padding="same", dilation=(1, 3)),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=2, stride=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "reflect, same": lambda: nn.Conv2d(4, 6, (2, 3), padding="same", padding_mode="reflect"),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
}
LINEARS = {"linear": lambda: nn.Linear(9, 7), "linear without bias": lambda: nn.Linear(9, 7, bias=False)}
LAYERS = {**CONVOLUTIONS, **LINEARS}


def inputs(layer, dtype=torch.float64):
    shape = (3, 4, 9, 8) if "Conv" in type(layer).__name__ else (5, 9)
    return torch.randn(shape, dtype=dtype)


def pattern_for(layer, height):
    """A random pattern whose row groups stay within channel groups."""
    rows, cols = layer.weight.shape[0], layer.weight[0].numel()
    mask = (torch.rand(-(-rows // height), cols) < 0.5).repeat_interleave(height, 0)[:rows]
    return ow.Pattern.from_mask(mask, height)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("height", [1, 2, 3])
def test_a_sparse_layer_computes_what_its_masked_dense_one_does(name, height):
    dense = LAYERS[name]().double()
    if name == "grouped" and height == 2:
        height = 3
    if name == "depthwise" and height == 3:
        height = 1
    pattern = pattern_for(dense, height)
    kind = ow.nn.SparseLinear if isinstance(dense, nn.Linear) else ow.nn.SparseConv2d
    module = kind.from_dense(dense, pattern, "reference")
    masked = copy.deepcopy(dense)
    mask = pattern.mask().view(dense.weight.shape)
    with torch.no_grad():
        masked.weight *= mask
    x = inputs(dense).requires_grad_()
    x2 = x.detach().clone().requires_grad_()
    out, expected = module(x), masked(x2)
    torch.testing.assert_close(out, expected)
    g = torch.randn_like(out)
    out.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(module.values.grad, pattern.pack(masked.weight.grad))
    if dense.bias is not None:
        assert module.bias is dense.bias
        torch.testing.assert_close(module.bias.grad, masked.bias.grad)
    again = module.to_dense()
    assert type(again) is type(dense)
    assert torch.equal(again.weight, masked.weight)
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    for attribute in ("stride", "dilation", "groups", "padding_mode", "kernel_size", "in_channels", "out_channels"):
        assert getattr(again, attribute, None) == getattr(dense, attribute, None)


@pytest.mark.parametrize("name", ["plain", "linear"])
def test_inputs_without_a_batch_and_with_more_dimensions(name):
    dense = LAYERS[name]().double()
    sparse_ = (ow.nn.SparseLinear if name == "linear" else ow.nn.SparseConv2d).from_dense(
        dense, pattern_for(dense, 1), "reference"
    )
    masked = sparse_.to_dense()
    x = inputs(dense)
    torch.testing.assert_close(sparse_(x[0]), masked(x[0]))
    torch.testing.assert_close(sparse_(x[:0]), masked(x[:0]))
    if name == "linear":
        y = torch.randn(2, 3, 4, 9).double().transpose(0, 2)
        torch.testing.assert_close(sparse_(y), masked(y))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(), (3,), (5, 8), (3, 5, 9, 8), (2, 3, 4, 9, 8)])
def test_inputs_of_a_wrong_shape_are_refused(name, shape):
    dense = LAYERS[name]()
    module = (ow.nn.SparseLinear if "linear" in name else ow.nn.SparseConv2d).from_dense(
        dense, pattern_for(dense, 1), "reference"
    )
    if "linear" in name and shape and shape[-1] == 9:
        pytest.skip("fits")
    if "linear" not in name and len(shape) in (3, 4) and shape[-3] == 4:
        pytest.skip("fits")
    with pytest.raises(ValueError, match="x has shape"):
        module(torch.zeros(shape))


def test_a_pattern_of_another_shape_is_refused():
    dense = nn.Linear(4, 8)
    transposed = ow.Pattern.from_mask(torch.ones(4, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(4, 8\)"):
        ow.nn.SparseLinear.from_dense(dense, transposed)
    convolution = nn.Conv2d(2, 6, 3)
    wrong = ow.Pattern.from_mask(torch.ones(18, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(18, 6\)"):
        ow.nn.SparseConv2d.from_dense(convolution, wrong)


def test_values_of_another_shape_are_refused():
    pattern = ow.Pattern.from_mask(torch.ones(4, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(32, 1\)"):
        ow.nn.SparseLinear(pattern, torch.zeros(3, 1))


class Zoo(nn.Module):
    """A layer of every kind that is left dense, and some that are not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.embedding = nn.Embedding(20, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.tiny = nn.Linear(8, 1)
        self.tied = nn.Linear(8, 20, bias=False)
        self.tied.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.lazy = nn.LazyLinear(8)
        self.upper = nn.ConvTranspose2d(8, 8, 2)

    def forward(self, x):
        return x


def test_layers_left_dense_are_named_with_their_reason():
    model = Zoo()
    sparsity = sparse(model)
    assert set(sparsity.layers) == {"stem", "body.0", "body.2"}
    said = reasons(sparsity)
    for name, word in {
        "grouped": "grouped convolution, groups=2",
        "depthwise": "depthwise",
        "tiny": "1 x 8",
        "tied": "tied",
        "attention.out_proj": "subclass",
        "normed": "subclass",
        "lazy": "subclass",
    }.items():
        assert word in said[name]
        assert f"{name} stays dense" in str(sparsity.report()).replace("\n", " ")
    assert type(model.grouped) is nn.Conv2d
    assert model.tied.weight is model.embedding.weight


def test_two_layers_that_share_a_weight_stay_dense():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    sparsity = sparse(model)
    assert set(sparsity.layers) == {"1"}
    assert set(reasons(sparsity)) == {"0", "2"}


def test_exclude_and_force_take_names_and_globs():
    sparsity = sparse(Zoo(), exclude=["stem", "body.?"], force=["tiny", "*wise", "grouped"], layout="unstructured")
    assert set(sparsity.layers) == {"grouped", "depthwise", "tiny"}
    assert reasons(sparsity)["body.0"] == "excluded"
    assert set(sparse(Zoo(), exclude=["*d*"]).layers) == {"stem"}


def test_forced_grouped_convolutions_train():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=8)).double()
    sparsity = sparse(model, layout="unstructured", force=["*"], method=ow.methods.RigL(interval=1, end=100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity.attach(optimizer)
    for _ in range(3):
        model(torch.randn(2, 4, 6, 6).double()).square().sum().backward()
        optimizer.step()
    assert all(change.grown for change in sparsity.last_update.values())


def test_forced_small_layers_hold_their_one_unit():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 30))
    sparsity = sparse(model, layout="block(4, 4)", force=["0"], budget="uniform", sparsity=0.5, exclude=["1"])
    assert sparsity.layers["0"].pattern.nnz == 6
    assert model(torch.ones(1, 3)).shape == (1, 30)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exclude": ["nothing.*"]}, ValueError, r"exclude names 'nothing\.\*'.*stem"),
        ({"force": ["nope"]}, ValueError, "force names 'nope'.*stem"),
        ({"exclude": "stem"}, TypeError, "exclude='stem'.*sequence"),
        ({"force": "stem"}, TypeError, "force='stem'.*sequence"),
        ({"force": ["tied"]}, ValueError, "force names 'tied'.*tied"),
        ({"force": ["attention.out_proj"]}, ValueError, "force names 'attention.out_proj'.*subclass"),
        ({"exclude": ["*"]}, ValueError, "no layer to make sparse"),
    ],
)
def test_names_that_cannot_be_met(options, error, message):
    model = Zoo()
    with pytest.raises(error, match=message):
        sparse(model, **options)
    assert not any(isinstance(module, ow.nn.SparseModule) for module in model.modules())


def test_models_without_a_layer_to_make_sparse():
    with pytest.raises(ValueError, match=r"no layer to make sparse.*no nn.Linear or nn.Conv2d"):
        sparse(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"single Linear.*nn.Sequential"):
        sparse(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(8, 8))
    sparse(model)
    with pytest.raises(ValueError, match=r"sparse layers already.*densify"):
        sparse(model)


@pytest.mark.parametrize("layout", ["unstructured", "block(3, 2)", "shuffled_block(4, 4)", "out_vector(4)"])
def test_densify_gives_the_same_function_back(layout):
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3, padding="same"), nn.ReLU(), nn.Conv2d(10, 9, 2, stride=2), nn.Flatten(), nn.Linear(9 * 16, 13)
    ).double()
    model[2].train(False)
    names = [type(module) for module in model]
    bias = model[4].bias
    sparse(model, layout=layout)
    x = torch.randn(4, 3, 8, 8).double()
    out = model(x)
    keys = [name for name, _ in model.named_parameters()]
    assert "4.values" in keys
    assert "4.weight" not in keys
    assert ow.densify(model) is model
    torch.testing.assert_close(model(x), out)
    assert [type(module) for module in model] == names
    assert model[4].bias is bias
    assert (model[0].training, model[2].training) == (True, False)
    assert set(dict(model.named_parameters())) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}
    assert (model[4].weight == 0).double().mean() > 0.4


def test_a_sparse_module_alone_densifies_to_its_dense_one():
    module = ow.nn.SparseLinear.from_dense(nn.Linear(4, 4), ow.Pattern.from_mask(torch.eye(4, dtype=torch.bool)), "reference")
    dense = ow.densify(module)
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight * (1 - torch.eye(4)), torch.zeros(4, 4))


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    sparsity = sparse(model, method=ow.methods.SET(interval=1, end=100))
    assert not model[0].values.requires_grad
    assert not model[0].bias.requires_grad
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparsity.attach(optimizer)
    before = model[0].pattern.mask()
    for _ in range(3):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    assert set(sparsity.last_update) == {"1"}
    assert torch.equal(model[0].pattern.mask(), before)
    ow.densify(model)
    assert not model[0].weight.requires_grad


def test_modules_at_two_places_stay_one_module():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Tanh(), nn.ModuleDict({"again": shared})["again"], nn.Sequential(shared)).double()
    sparsity = sparse(model, method=ow.methods.RigL(interval=1, end=10), layout="unstructured")
    assert list(sparsity.layers) == ["0"]
    assert model[0] is model[2] is model[3][0]
    assert len([name for name, _ in model.named_parameters()]) == 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity.attach(optimizer)
    for step in range(2):
        optimizer.zero_grad()
        x = torch.randn(5, 8).double()
        if step:
            # The gradient that is ranked is the sum over all three uses.
            weight = model[0].dense_weight().detach().requires_grad_()
            h = torch.tanh(F.linear(x, weight, model[0].bias.detach()))
            for _ in range(2):
                h = F.linear(h, weight, model[0].bias.detach())
            h.square().sum().backward()
            old = model[0].pattern.mask()
            keep = weight.detach().abs()[old].sort().values
        model(x).square().sum().backward()
        optimizer.step()
    n_drop = int(0.15 * (1 + math.cos(math.pi / 10)) * int(old.sum()))
    kept = old & (weight.detach().abs() > keep[n_drop - 1])
    grown = torch.zeros(64, dtype=torch.bool)
    grown[weight.grad.abs().masked_fill(kept, -1).flatten().topk(n_drop).indices] = True
    assert torch.equal(model[0].pattern.mask(), kept | grown.view(8, 8))
    ow.densify(model)
    assert model[0] is model[2] is model[3][0]


def test_hooks_are_kept():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append("forward"))
    model[0].register_forward_pre_hook(lambda module, args: seen.append("pre"))
    model[0].register_forward_hook(lambda module, args, kwargs, out: seen.append("kwargs"), with_kwargs=True)
    model[0].register_full_backward_hook(lambda module, gin, gout: seen.append("backward"))
    model[0].register_full_backward_pre_hook(lambda module, gout: seen.append("backward pre"))
    model[0].register_forward_hook(lambda module, args, out: seen.append("always"), always_call=True)
    x = torch.randn(2, 6, requires_grad=True)
    model(x).sum().backward()
    expected = list(seen)
    assert len(expected) == 6
    handle = model[0].register_forward_hook(lambda module, args, out: seen.append("later"))
    for change in (sparse, ow.densify):
        change(model)
        seen.clear()
        model(x).sum().backward()
        assert [word for word in seen if word != "later"] == expected
        assert "later" in seen
    handle.remove()
    seen.clear()
    model(x).sum().backward()
    assert seen == expected


def test_devices_and_dtypes_follow_the_module():
    model = nn.Sequential(nn.Linear(8, 8))
    sparse(model)
    model.double()
    assert model[0].values.dtype == torch.float64
    assert model[0].cols.dtype == torch.int32
    assert model(torch.ones(1, 8).double()).dtype == torch.float64
    meta = copy.deepcopy(model).to("meta")
    assert meta[0].values.device.type == "meta"


def test_copies_and_pickles_compute_the_same_and_share_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.Flatten(), nn.Linear(8 * 16, 8))
    sparsity = sparse(model, method=ow.methods.RigL(interval=1, end=10))
    sparsity.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(2, 3, 4, 4)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in (twin, loaded):
        torch.testing.assert_close(other(x), expected)
        other(x).sum().backward()
        assert model[0].values.grad is None


def test_a_whole_run_can_be_copied():
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).double()
    sparsity = sparse(model, method=ow.methods.SET(interval=2, end=100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)

    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            model(torch.full((2, 12), float(step)).double()).square().sum().backward()
            optimizer.step()

    train(model, optimizer, range(3))
    twin = copy.deepcopy(model)
    fresh = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).double()
    other = sparse(fresh, method=ow.methods.SET(interval=2, end=100), seed=5)
    fresh.load_state_dict(twin.state_dict())
    second = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(sparsity.state_dict())
    other.attach(second)
    train(model, optimizer, range(3, 8))
    train(fresh, second, range(3, 8))
    for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_weight_is_free_to_look_at_and_dense_to_compute_with():
    dense_view._warn_dense.cache_clear()
    model = nn.Sequential(nn.Linear(8, 6))
    sparse(model)
    weight = model[0].weight
    assert (weight.shape, weight.dtype, weight.device) == ((6, 8), torch.float32, torch.device("cpu"))
    assert (weight.size(1), weight.dim(), weight.numel(), len(weight), weight.requires_grad) == (8, 2, 48, 6, True)
    with pytest.warns(UserWarning, match="SparseLinear.weight unpacks"):
        doubled = weight * 2
    expected = model[0].dense_weight()
    assert torch.equal(doubled, expected * 2)
    assert torch.equal(weight, expected)
    assert type(weight.detach()) is torch.Tensor
    x = torch.randn(3, 8)
    torch.testing.assert_close(F.linear(x, weight, model[0].bias), model(x))
    weight.sum().backward()
    assert torch.equal(model[0].values.grad, torch.ones_like(model[0].values))
