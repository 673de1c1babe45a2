"""``kernel="auto"``: what is measured and when, what it leaves alone, and that either choice computes the same."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from kernels.problems import assert_close, dense_weight, leaf, random_pattern, random_values
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import openwork as ow
from openwork.kernels import choose, kept_bytes
from openwork.nn import SparseConv2d, SparseLinear, auto
from openwork.report import Report
from openwork.train.plain import as_json, decode

SPARSE, DENSE = (0.001, 0.002), (0.002, 0.001)


@pytest.fixture(autouse=True)
def _no_warning_of_float64(monkeypatch):
    """That float64 has no kernel of its own is said once, to whichever test comes first."""
    monkeypatch.setattr("openwork.kernels._warned", {("cpu", torch.float64)})


@pytest.fixture
def timer(monkeypatch):
    """In place of the clock: ``times`` is the answer, ``calls`` counts the questions; both ways are run, as for real."""

    class Timer:
        times = DENSE
        calls = 0

        def __call__(self, sparse, dense, device):
            self.calls += 1
            sparse()
            dense()
            return self.times

    fake = Timer()
    monkeypatch.setattr(auto, "measure", fake)
    return fake


def linear(kernel="auto", height=4, dtype=torch.float32, **options):
    pattern = random_pattern(20, 27, height, 0.4, **options)
    bias = torch.randn(20, generator=torch.Generator().manual_seed(5))
    return SparseLinear(pattern, random_values(pattern).to(dtype), bias.to(dtype), kernel)


def mlp(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 9)).to(dtype)


def sparse(model, *, method="static", layout="unstructured", kernel="auto", sparsity=0.6, **options):
    return ow.sparsify(model, sparsity=sparsity, layout=layout, method=method, kernel=kernel, **options)


def batch(step, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 12, generator=generator).to(dtype), torch.randint(9, (size,), generator=generator)


def train(model, optimizer, steps, dtype=torch.float64):
    for step in steps:
        x, y = batch(step, dtype=dtype)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def results(module, x):
    """Output and gradients of x, values and bias."""
    x = leaf(x, module.values.dtype)
    out = module(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    bias = None if module.bias is None else module.bias.grad
    assert module.values.grad.shape == module.values.shape
    return [out.detach(), x.grad, module.values.grad, bias]


def expected(module, x, product):
    """The same of dense arithmetic in float64, with a weight placed entry by entry."""
    leaves = [leaf(t, torch.float64) for t in (x, module.values, module.bias)]
    out = product(leaves[0], dense_weight(module.pattern, leaves[1]).view(module.dense_dims), leaves[2])
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double())
    return [out.detach(), *(None if t is None else t.grad for t in leaves)]


both_ways = pytest.mark.parametrize("times", [SPARSE, DENSE], ids=["sparse", "dense"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@both_ways
@dtypes
@pytest.mark.parametrize("height", [1, 4, 8])
@pytest.mark.parametrize("drop_rows", [False, True])
def test_a_linear_layer(timer, times, dtype, height, drop_rows):
    timer.times = times
    for bias in (True, False):
        module = linear(height=height, dtype=dtype, drop_rows=drop_rows)
        module.bias = module.bias if bias else None
        x = torch.randn(6, 27)
        found = results(module, x)
        assert_close(found, expected(module, x, F.linear))
        assert timer.calls == 1 + (not bias)
        padded = module.pattern.positions < 0
        assert padded.any() == (height == 8 or (height == 4 and drop_rows))
        assert not found[2][padded].any()


CONVS = [
    {"kernel_size": (3, 3)},
    {"kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": (1, 1), "stride": (2, 2)},
    {"kernel_size": (3, 3), "padding": ((0, 1), (2, 0))},
    {"kernel_size": (3, 3), "groups": 2, "padding": (1, 1)},
]


@both_ways
@dtypes
@pytest.mark.parametrize("window", CONVS, ids=str)
@pytest.mark.parametrize("height", [1, 4])
def test_a_convolution(timer, times, dtype, window, height):
    timer.times = times
    groups, taps = window.get("groups", 1), window["kernel_size"][0] * window["kernel_size"][1]
    if groups > 1:
        # The rows of a row group stand in one channel group.
        pattern = ow.Pattern.from_mask((torch.rand(8 // height, 3 * taps) < 0.4).repeat_interleave(height, 0), height)
    else:
        pattern = random_pattern(10, 3 * taps, height, 0.4, drop_rows=True)
    module = SparseConv2d(
        pattern, random_values(pattern).to(dtype), torch.randn(pattern.shape[0]).to(dtype), kernel="auto", **window
    )
    x = torch.randn(2, 3 * groups, 8, 9)

    def dense(x, weight, bias):
        padding = window.get("padding", (0, 0))
        (top, bottom), (left, right) = (side if isinstance(side, tuple) else (side, side) for side in padding)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, window.get("stride", 1), 0, window.get("dilation", 1), groups)

    assert_close(results(module, x), expected(module, x, dense))
    assert timer.calls == 1


def test_a_dense_choice_takes_the_forms_of_input_that_a_sparse_one_takes(timer):
    module = linear()
    reference = linear("reference")
    for x in (torch.randn(27), torch.randn(2, 3, 27), torch.randn(27, 6).t(), torch.empty(0, 27)):
        torch.testing.assert_close(module(x), reference(x))
    images = random_pattern(10, 27, 1, 0.4)
    layers = [
        SparseConv2d(images, random_values(images), kernel_size=(3, 3), kernel=kernel) for kernel in ("auto", "reference")
    ]
    for x in (torch.randn(3, 5, 5), torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(layers[0](x), layers[1](x))
    assert timer.calls == 4, "nothing is measured of an empty batch"


def test_activations_work_in_place_behind_a_dense_choice(timer):
    gradients = []
    for inplace in (False, True):
        model = nn.Sequential(linear(), nn.ReLU(inplace), linear_of(20))
        model(torch.randn(5, 27, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert timer.calls == 4
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def linear_of(columns):
    pattern = random_pattern(10, columns, 1, 0.4)
    return SparseLinear(pattern, random_values(pattern), None, "auto")


def test_the_faster_one_is_taken(timer, monkeypatch):
    module, x = linear(), torch.randn(6, 27)
    way = {}
    for name in ("product", "unpacked_product"):
        kept = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, kept=kept, name=name: way.setdefault("last", name) and kept(*a))
    for times, taken in ((SPARSE, "product"), (DENSE, "unpacked_product"), ((0.001, 0.001), "product")):
        timer.times = times
        module.timings.clear()
        module(x)
        way.clear()
        module(x)
        assert way["last"] == taken


def test_every_kind_of_input_is_measured_once(timer):
    module, x = linear(), torch.randn(6, 27)

    def measured(function):
        before = timer.calls
        for _ in range(3):
            function()
        return timer.calls - before

    assert measured(lambda: module(x).sum().backward()) == 1
    assert measured(lambda: module(torch.randn(6, 27))) == 0
    assert measured(lambda: module(torch.randn(2, 3, 27))) == 0, "the product sees the same rows"
    assert measured(lambda: module(torch.randn(7, 27))) == 1
    assert measured(lambda: module(x.clone().requires_grad_())) == 1
    module.eval()
    assert measured(lambda: module(x)) == 0, "a gradient is wanted all the same"
    with torch.no_grad():
        assert measured(lambda: module(x)) == 1
    with torch.inference_mode():
        assert measured(lambda: module(x)) == 0
    module.values.requires_grad_(False)
    assert measured(lambda: module(x)) == 1, "the bias alone"
    module.double()
    assert measured(lambda: module(x.double())) == 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert measured(lambda: module(x.double())) == 1
    finally:
        torch.set_num_threads(threads)
    assert [timing.backward for timing in module.timings.values()] == [True, True, True, False, True, True, True]


def test_only_what_wants_a_gradient_is_measured_backward(monkeypatch):
    asked = []
    true_grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, inputs, g: asked.append(len(inputs)) or true_grad(out, inputs, g))
    monkeypatch.setattr(auto, "measure", lambda sparse, dense, device: (sparse(), dense()) and DENSE)
    module, x = linear(), torch.randn(6, 27)
    module(x.clone().requires_grad_())
    module(x)
    module.bias.requires_grad_(False)
    module(x)
    with torch.no_grad():
        module(x)
    assert asked == [3, 3, 2, 2, 1, 1]


def test_the_first_time_is_of_the_sparse_product(monkeypatch):
    order = []

    def measure(sparse, dense, device):
        for name, run in (("sparse", sparse), ("dense", dense)):
            order.append(name)
            run()
        return SPARSE

    monkeypatch.setattr(auto, "measure", measure)
    module = linear()
    for name in ("product", "dense_product"):
        true = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, true=true, name=name: order.append(name) or true(*a))
    module(torch.randn(6, 27))
    # The first product gives the shape of the gradient, the last is the one that counts.
    assert order == ["product", "sparse", "product", "dense", "dense_product", "product"]


@pytest.mark.parametrize(
    ("costs", "rounds", "times"),
    [
        # Two rounds of warm-up, then the median of five.
        ([(9, 9), (9, 9), (1, 2), (5, 2), (1, 8), (2, 2), (1, 2)], 7, (1, 2)),
        # The budget ends it: what was warm-up is not counted for all that.
        ([(60, 60), (30, 30), (40, 2)], 3, (40, 2)),
        ([(900, 900), (3, 4)], 2, (3, 4)),
    ],
)
def test_rounds_are_interleaved_bounded_and_their_median_counts(monkeypatch, costs, rounds, times):
    order = []
    ahead = iter([milliseconds for pair in costs for milliseconds in pair])

    def seconds(run, device):
        run()
        return next(ahead) / 1000

    monkeypatch.setattr(auto, "seconds", seconds)
    found = auto.measure(lambda: order.append("sparse"), lambda: order.append("dense"), torch.device("cpu"))
    assert order == ["sparse", "dense"] * rounds
    assert found == pytest.approx([t / 1000 for t in times])


def test_the_true_clock_times_both():
    module = linear()
    module(torch.randn(6, 27))
    (timing,) = module.timings.values()
    assert timing.sparse > 0
    assert timing.dense > 0
    assert timing.dense_wins == (timing.dense < timing.sparse)


def test_another_number_of_weights_is_measured_again(timer):
    wide = random_pattern(40, 50, 1, 1.0)
    module, x = SparseLinear(wide, random_values(wide), None, "auto"), torch.randn(6, 50)
    module(x)
    module(x[:5])
    timer.calls = 1
    for share, calls in ((0.9, 1), (0.89, 2), (0.82, 2), (0.7, 3), (0.77, 3), (0.8, 4)):
        chosen = torch.zeros(2000, dtype=torch.bool)
        chosen[torch.randperm(2000)[: round(share * 2000)]] = True
        pattern = ow.Pattern.from_mask(chosen.view(40, 50))
        module.replace(pattern, random_values(pattern))
        module(x)
        module(x)
        assert timer.calls == calls, share
    assert [timing.shape for timing in module.timings.values()] == [(5, 50), (6, 50)], "what was measured last stands last"


def test_bad_input_is_refused_as_ever(timer):
    module, plain = linear(), linear("cpu")
    for x in (torch.randn(6, 27).double(), torch.randint(3, (6, 27))):
        with pytest.raises(ValueError, match="x is torch") as refused:
            plain(x)
        with pytest.raises(ValueError, match="x is torch") as refused_too:
            module(x)
        assert str(refused.value) == str(refused_too.value)
    assert not module.timings
    assert timer.calls == 0


def test_an_unknown_kernel():
    with pytest.raises(ValueError, match="kernel='mkl' must be one of reference, cpu, auto"):
        choose("cpu", torch.float32, "mkl")
    with pytest.raises(ValueError, match=r"kernel=\['cpu'\] must be one of reference, cpu, auto"):
        choose("cpu", torch.float32, ["cpu"])
    with pytest.raises(ValueError, match="kernel='mkl' must be one of reference, cpu, auto"):
        sparse(mlp(), kernel="mkl")


def test_measuring_touches_nothing():
    def model():
        torch.manual_seed(1)
        layers = [
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv2d(8, 8, 3),
            nn.Flatten(),
            nn.Linear(128, 9),
        ]
        return nn.Sequential(*layers)

    ends = []
    for kernel in (None, "auto"):
        net = model()
        held = sparse(net, kernel=kernel)
        heard = []
        for name, module in held.layers.items():
            module.values.register_hook(lambda g, heard=heard, name=name: heard.append(f"{name}.values"))
            module.register_forward_hook(lambda *_, heard=heard, name=name: heard.append(name))
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        # Only what is measured is looked at: the sparse way is what is compared, bit for bit.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auto, "seconds", lambda run, device: run() or 0.0)
            out = net(x)
            before = [p.grad for p in net.parameters()]
            out.square().mean().backward()
        assert before == [None] * len(before)
        ends.append([heard, torch.get_rng_state().tolist(), out, *(p.grad for p in net.parameters()), *net.buffers()])
        assert all(len(module.timings) == (kernel == "auto") for module in held.layers.values())
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


METHODS = {
    "RigL": lambda: ow.methods.RigL(interval=2, end=100),
    "DSB": lambda: ow.methods.DSB(interval=2, end=100),
    "GSE": lambda: ow.methods.GSE("graest", interval=2, end=100),
    "SET": lambda: ow.methods.SET(interval=2, end=100),
}


@both_ways
@pytest.mark.parametrize("method", METHODS)
def test_topology_updates_are_those_of_any_other_kernel(timer, times, method):
    timer.times = times
    layout = "shuffled_block(4, 4)" if method == "DSB" else "unstructured"
    ends = []
    for kernel in ("reference", "auto"):
        model = mlp()
        held = sparse(model, method=METHODS[method](), layout=layout, kernel=kernel)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        held.attach(optimizer)
        train(model, optimizer, range(9))
        assert held.last_update_step == 8
        ends.append(([m.pattern for m in held.layers.values()], list(model.parameters())))
    assert timer.calls == 3, "an update that keeps the number of weights keeps the choice"
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(a, b)


@both_ways
def test_a_method_that_trains_all_weights(timer, times):
    timer.times = times
    ends = []
    for kernel in ("reference", "auto"):
        model = mlp()
        held = sparse(
            model, method=ow.methods.CSTraining(interval=2, end=6), layout="complementary(2, 3)", sparsity=0.5, kernel=kernel
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        held.attach(optimizer)
        train(model, optimizer, range(9))
        assert not any(module.has_master for module in held.layers.values())
        ends.append(list(model.parameters()))
    assert timer.calls >= 6, "with and without the master, at every density far from the last"
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


def test_choices_are_no_state(timer):
    model = mlp()
    held = sparse(model)
    names = set(model.state_dict())
    model(batch(0)[0])
    assert set(model.state_dict()) == names
    other = mlp()
    sparse(other, seed=7)
    other.load_state_dict(model.state_dict())
    assert timer.calls == 3
    torch.testing.assert_close(other(batch(0)[0]), model(batch(0)[0]))
    assert timer.calls == 6
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(batch(0)[0]), model(batch(0)[0]))
    assert timer.calls == 6, "a copy knows what the original knew"
    twin(batch(0, size=5)[0])
    assert timer.calls == 9
    assert all(len(module.timings) == 1 for module in held.layers.values()), "and keeps what it learns to itself"


# Where the graph breaks to collect evidence, torch itself looks at the .grad of an activation.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("method", ["static", "RigL"])
def test_a_compiled_model(timer, method):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ends = []
    for kernel in ("cpu", "auto"):
        model = mlp(torch.float32)
        held = sparse(model, method=METHODS[method]() if method in METHODS else method, kernel=kernel)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        held.attach(optimizer)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=method == "static")
        train(compiled, optimizer, range(6), torch.float32)
        ends.append(list(model.parameters()))
    if method == "static":
        assert timer.calls == 0
        assert {row.kernel for row in held.report().rows} == {"cpu (auto, not measured)"}
        assert held.report().notes == ()
    else:
        assert timer.calls == 3, "steps of an update are watched outside the graph"
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_model_takes_the_sparse_product_whatever_was_measured(timer, monkeypatch):
    torch._dynamo.reset()
    model = mlp(torch.float32)
    held = sparse(model)
    x = batch(0, dtype=torch.float32)[0]
    eager = model(x)
    assert {row.kernel for row in held.report().rows} == {"dense (auto)"}
    monkeypatch.setattr(SparseLinear, "unpacked_product", None)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), eager)


def test_autocast_modes_and_traces_take_the_sparse_product(timer):
    model = mlp(torch.float32)
    sparse(model)
    x = batch(0, dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    with FlopCounterMode(display=False):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x, check_trace=False)
    assert timer.calls == 0
    torch.testing.assert_close(traced(x), model(x))
    assert timer.calls == 3


@both_ways
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(timer, times, reentrant):
    """The first forward pass measures, the second does not; what is saved for backward must be the same in both."""
    timer.times = times
    gradients = []
    for wrapped in (False, True):
        model = mlp()
        sparse(model)
        x = batch(0)[0].requires_grad_()
        out = checkpoint(model, x, use_reentrant=reentrant) if wrapped else model(x)
        out.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_on_what_is_saved_see_the_true_pass_alone(timer):
    counts = []
    for known in (False, True):
        module, x, seen = linear(), torch.randn(6, 27), []
        if known:
            module(x)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t) or t, lambda t: t):
            module(x)
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0
    module = linear()
    with torch.autograd.graph.disable_saved_tensors_hooks("forbidden"):
        module(torch.randn(6, 27))
    assert len(module.timings) == 1


def test_the_report(timer):
    model = mlp(torch.float32)
    held = sparse(model, exclude=["4"])
    assert [row.kernel for row in held.report().rows] == ["cpu (auto, not measured)"] * 2 + ["excluded"]
    timer.times = (0.0012344, 0.0105)
    model(batch(0, dtype=torch.float32)[0])
    assert [row.kernel for row in held.report().rows] == ["cpu (auto)"] * 2 + ["excluded"]
    threads = torch.get_num_threads()
    notes = held.report().notes
    text = f"input 8x12, forward and backward, threads {threads}: sparse 1.234 ms, dense 10.500 ms, sparse is taken"
    assert f"0, {text}" in notes
    assert not any("unpacks" in note for note in notes)
    timer.times = DENSE
    with torch.no_grad():
        model(batch(0, dtype=torch.float32)[0])
    report = held.report()
    assert [row.kernel for row in report.rows] == ["cpu or dense (auto)"] * 2 + ["excluded"]
    text = f"2, input 8x24, forward, threads {threads}: sparse 2.000 ms, dense 1.000 ms, dense is taken"
    assert text in report.notes
    assert "kernel 'dense' unpacks the weight to dense at every use: 0, 2" in report.notes
    assert text in str(report)
    assert "cpu or dense (auto)" in str(report)
    assert decode(Report, json.loads(json.dumps(as_json(report))), "report") == report


def test_the_report_shows_the_newest_kinds_of_input(timer):
    model = mlp()
    held = sparse(model)
    for size in range(1, 7):
        model(batch(0, size)[0])
    held.layers["0"].timings.clear()
    row = held.report().rows[1]
    assert row.kernel == "dense (auto)"
    assert [timing.shape for timing in row.timings] == [(4, 24), (5, 24), (6, 24)]
    assert held.report().rows[0].kernel == "reference (auto, not measured)"
    assert "kernel 'reference' unpacks the weight to dense at every use: 0" in held.report().notes


def test_positions_are_kept_for_a_dense_choice_alone_and_counted(timer):
    model = mlp(torch.float32)
    held = sparse(model)

    def counted():
        # Without the turned index that the sparse products keep.
        rows = zip(held.report().rows, held.layers.values(), strict=True)
        return [row.stored_bytes - kept_bytes(module.cols) for row, module in rows]

    stored = counted()
    timer.times = SPARSE
    model(batch(0, dtype=torch.float32)[0])
    assert counted() == stored
    timer.times = DENSE
    model(batch(0, size=5, dtype=torch.float32)[0])
    more = [8 * module.values.numel() for module in held.layers.values()]
    assert counted() == [a + b for a, b in zip(stored, more, strict=True)]
