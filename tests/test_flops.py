"""FLOPs counted by hand, recounted by arithmetic, and the formulas of the papers."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.analysis import dsb_update, flops, gse_update, training_flops


def test_a_dense_model_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    found = flops(model, torch.zeros(2, 3, 8, 8))
    # 4 x 4 output pixels of 8 x 27 weights, 10 x 128 weights, for 2 images; 2 FLOPs each.
    assert [row.forward for row in found.layers] == [2 * 2 * 16 * 8 * 27, 2 * 2 * 1280]
    assert found.forward == found.dense_forward == 2 * 2 * (16 * 8 * 27 + 1280)
    assert (found.training, found.dense_training, found.ratio) == (3 * found.forward, 3 * found.forward, 1.0)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_recounted_by_its_own_arithmetic(groups, stride):
    """With ones everywhere and no padding, the sum of the outputs is the number of multiply-accumulates."""
    conv = nn.Conv2d(6, 12, (3, 2), stride=stride, dilation=(1, 2), groups=groups, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(2, 6, 9, 7)
    assert flops(nn.Sequential(conv), x).forward == 2 * int(conv(x).sum().item())


def test_transposed_and_one_dimensional_convolutions():
    up = nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False, groups=2)
    line = nn.Conv1d(3, 5, 3, bias=False)
    nn.init.ones_(up.weight)
    nn.init.ones_(line.weight)
    for layer, x in ((up, torch.ones(2, 4, 5, 5)), (line, torch.ones(2, 3, 11))):
        assert flops(layer, x).forward == 2 * int(layer(x).sum().item())


@pytest.mark.parametrize("layout", ["unstructured", "out_vector(4)", "shuffled_block(4, 4)", "block(5, 3)"])
def test_sparse_layers_count_active_weights(layout):
    model = nn.Sequential(nn.Conv2d(4, 18, 3, bias=False), nn.Flatten(), nn.Linear(18 * 16, 22, bias=False))
    dense = flops(model, torch.zeros(3, 4, 6, 6))
    sparsity = ow.sparsify(model, sparsity=0.75, layout=layout, method="static", kernel="reference")
    found = flops(model, torch.zeros(3, 4, 6, 6))
    active = {name: int(module.pattern.mask().sum()) for name, module in sparsity.layers.items()}
    assert found.layers[0].forward == 2 * 3 * 16 * active["0"]
    assert found.layers[1].forward == 2 * 3 * active["2"]
    assert found.dense_forward == dense.forward
    assert found.ratio == found.forward / dense.forward
    assert "of dense" in str(found)


def test_a_grouped_sparse_convolution():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4, bias=False))
    sparsity = ow.sparsify(
        model, sparsity=0.5, layout="unstructured", method="static", budget="uniform", force=["0"], kernel="reference"
    )
    layer = sparsity.layers["0"]
    x = torch.ones(1, 8, 5, 5)
    with torch.no_grad():
        layer.values.fill_(1.0)
    assert flops(model, x).forward == 2 * int(model(x).sum().item()) == 2 * 9 * 16 * 18 // 2


def test_layers_used_twice_or_never():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, *, scale):
            return self.used(self.used(x)) * scale

    found = flops(Twice(), {"x": torch.zeros(3, 5, 4), "scale": 2.0})
    assert [row.positions for row in found.layers] == [30, 0]
    assert flops(nn.Sequential(nn.Linear(2, 3)), (torch.zeros(2),)).forward == 12


def test_a_transformer_is_not_counted_on_a_fast_path_and_says_what_is_missing():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = flops(model, torch.zeros(2, 5, 16))
    assert {row.layer: row.positions for row in found.layers} == {"self_attn.out_proj": 0, "linear1": 10, "linear2": 10}
    assert "not counted: self_attn.out_proj" in str(found)


class Restless(nn.Module):
    """Whatever a forward pass may leave behind."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(0)
        return nn.functional.dropout(self.linear(self.norm(x)), 0.5, training=True)


def test_the_model_is_left_as_it_was():
    model = Restless()
    model.norm.eval()
    model(torch.randn(5, 4)).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    found = flops(model, torch.randn(5, 4, generator=torch.Generator()))
    assert found.forward == 2 * 5 * 16
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        flops(model, torch.zeros(5, 3))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.calls, before["calls"])
    assert not any(module._forward_hooks for module in model.modules())


def test_an_armed_layer_sees_nothing():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    sparsity = ow.sparsify(model, sparsity=0.5, layout="unstructured", method=ow.methods.RigL(interval=1), kernel="reference")
    sparsity.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    sparsity.step_count = 1
    sparsity._arm()
    flops(model, torch.zeros(2, 8))
    assert sparsity.layers["0"].collector.empty


def test_models_without_a_layer_are_refused():
    with pytest.raises(ValueError, match="model=Flatten"):
        flops(nn.Flatten(), torch.zeros(1))


@pytest.mark.parametrize(("sparse", "ratio"), [(0.23, "0.233"), (0.10, "0.103")])
def test_rigl_as_the_literature_quotes_it(sparse, ratio):
    assert f"{training_flops('rigl', (sparse, 1.0), interval=100) / 3:.3f}" == ratio


def test_formulas_of_the_methods():
    cost = (0.1, 1.0)
    expected = {
        "dense": 3.0, "static": 0.3, "set": 0.3, "mest": 0.3, "snfs": 1.2, "srste": 2.1, "srste_transposable": 1.2,
    }  # fmt: skip
    for method, flops_of_a_step in expected.items():
        assert training_flops(method, cost) == pytest.approx(flops_of_a_step), method
    assert training_flops("topkast", cost, wide=0.2) == pytest.approx(0.4)
    # MEST, Table 2: EM&S at 80 % with p = .05 for 90, .025 for 30 and 0 for 30 of 150 epochs: .235 of dense.
    mean = (90 * 0.25 + 30 * 0.225 + 30 * 0.2) / 150
    assert training_flops("mest_soft", cost, wide=mean) / 3 == pytest.approx(0.235)
    # Forward pass and input gradient at a mean density of 0.4, the weight gradient dense.
    assert training_flops(ow.methods.CSTraining(), cost, wide=0.4) == pytest.approx(1.8)
    assert training_flops("acdc", cost, dense_share=0.5) == pytest.approx(1.65)
    assert training_flops("gse", cost, interval=1000, update=0.1) == pytest.approx(0.3001)


def test_mest_is_asked_for_its_soft_bound():
    cost = (0.1, 1.0)
    assert training_flops(ow.methods.MEST("elastic"), cost) == training_flops("mest", cost)
    assert training_flops(ow.methods.MEST("soft"), cost, wide=0.15) == training_flops("mest_soft", cost, wide=0.15)
    with pytest.raises(ValueError, match="wide=None"):
        training_flops(ow.methods.MEST("soft"), cost)


def test_topology_updates_of_dsb_and_gse_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 8))
    ow.sparsify(
        model, sparsity=0.5, layout="unstructured", method="static", budget="uniform", exclude=["2"], kernel="reference"
    )
    cost = flops(model, torch.zeros(3, 2, 4, 4))
    # 3 x 4 positions; 4 rows, 18 columns, 36 active weights of 72.
    assert dsb_update(cost, 0.25) == 2 * 12 * (4 + 18 + 9)
    assert gse_update(cost, 2.0) == 2 * (2 * 12 * 36)
    assert gse_update(cost, 1.0, norms=True) == 2 * 12 * 36 + 2 * 12 * 22
    method = ow.methods.GSE("grabo", interval=10, subset=2.0)
    assert training_flops(method, cost) == 3 * cost.forward + (2 * 12 * 72 + 2 * 12 * 22) / 10
    method = ow.methods.DSB(interval=10, drop_fraction=0.25)
    assert training_flops(method, cost) == 3 * cost.forward + 2 * 12 * 31 / 10
    by_gradient = ow.methods.DSB(interval=10, grow="gradient")
    assert training_flops(by_gradient, cost) == training_flops("rigl", cost, interval=10)
    assert training_flops(ow.methods.RigL(interval=10), cost) == training_flops("rigl", cost, interval=10)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("nothing", {}, "method='nothing'"),
        ("rigl", {}, "interval=None"),
        ("rigl", {"interval": 0}, "interval=0"),
        ("topkast", {}, "wide=None"),
        ("dsb", {"interval": 100}, "update=None"),
        ("acdc", {"dense_share": 1.5}, "dense_share=1.5"),
    ],
)
def test_training_flops_refuses(method, given, message):
    with pytest.raises(ValueError, match=message):
        training_flops(method, (0.1, 1.0), **given)
