"""Linear layers under autocast to bfloat16, against float64 on the same rounded operands.

bfloat16 has 8 significant bits.  Operands that are rounded already make products exact in float32, so what is left is the
float32 sum and, of results that are bfloat16, one rounding of half a unit in the last place, 2^-9.
"""

import pytest
import torch
from builds import assert_runs
from problems import random_pattern, random_values

import openwork
from openwork import _native
from openwork.kernels import ops
from openwork.nn import SparseLinear

ROUNDED = 2**-8  # of the largest entry; half of it is the rounding itself
SUMMED = 1e-5
SHAPES = [(10, 27), (37, 130), (64, 48), (5, 3)]


def problem(shape, height, batch, density=0.5):
    pattern = random_pattern(*shape, height, density, drop_rows=True)
    torch.manual_seed(batch)
    values = random_values(pattern).bfloat16().float()
    x, g = torch.randn(batch, shape[1]).bfloat16(), torch.randn(batch, shape[0]).bfloat16()
    return pattern, x, g, values, torch.randn(shape[0])


def products(pattern, x, g, values, bias, kernel="cpu"):
    x, values, bias = (t.clone().requires_grad_() for t in (x, values, bias))
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(x, values, pattern, bias, kernel)
    return out, *torch.autograd.grad(out, (x, values, bias), g)


def expected(pattern, x, g, values, bias):
    x, g, weight = x.double(), g.double(), pattern.unpack(values.double())
    return x @ weight.t() + bias.double(), g @ weight, pattern.pack(g.t() @ x), g.sum(0)


def assert_near(found, right, bound):
    assert found.shape == right.shape
    if right.numel():
        assert (found.double() - right).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 12, 16, 17, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_like_float64(shape, height):
    for batch in (0, 1, 15, 33, 100):
        arguments = problem(shape, height, batch)
        found, right = products(*arguments), expected(*arguments)
        assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
        for one, other, bound in zip(found, right, (ROUNDED, ROUNDED, SUMMED, ROUNDED), strict=True):
            assert_near(one, other, bound)


def test_values_are_rounded_on_the_fly_only():
    pattern, x, g, _, bias = problem((64, 48), 4, 33)
    values = random_values(pattern)
    before = values.clone()
    found, right = products(pattern, x, g, values, bias), expected(pattern, x, g, values, bias)
    for one, other in zip(found, right, strict=True):
        assert_near(one, other, 4 * ROUNDED)
    assert torch.equal(values, before)


@pytest.mark.parametrize("height", [1, 4, 16])
def test_the_number_of_threads_changes_nothing(height):
    before = torch.get_num_threads()
    try:
        for batch in (1, 40, 100):
            arguments, results = problem((37, 130), height, batch), []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                results.append(products(*arguments)[:3])
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("height", [1, 3, 16])
@pytest.mark.parametrize("batch", [257, 600, 2100])
def test_windows_of_samples(height, batch):
    """Several sums over the batch, each of one thread or shared by some, and more of them than are taken at once."""
    assert_same_with_threads(problem((37, 130), height, batch))


@pytest.mark.parametrize("batch", [40, 520])
def test_weights_too_many_for_sums_of_their_own(batch):
    assert_same_with_threads(problem((1100, 1000), 16, batch, density=1))


def assert_same_with_threads(arguments):
    before, right, results = torch.get_num_threads(), expected(*arguments), []
    try:
        for threads in (1, 2, 3, 5, 12):
            torch.set_num_threads(threads)
            results.append(products(*arguments))
    finally:
        torch.set_num_threads(before)
    for one, other, bound in zip(results[0], right, (ROUNDED, ROUNDED, SUMMED, SUMMED), strict=True):
        assert_near(one, other, bound)
    ours = 4 if _native.has_bf16() else 3  # without the instructions torch adds up the bias gradient, each thread a part
    for several in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0][:ours], several[:ours], strict=True))


@pytest.mark.parametrize("height", [3, 4, 16])
def test_padding_never_counts(height):
    pattern = random_pattern(31, 27, height, 1)
    padding = pattern.positions < 0
    assert padding.any()
    x, g, values, bias = torch.randn(20, 27).bfloat16(), torch.randn(20, 31).bfloat16(), random_values(pattern), torch.randn(31)
    found = products(pattern, x, g, values.masked_fill(padding, float("nan")), bias)
    for one, other in zip(found, products(pattern, x, g, values, bias), strict=True):
        assert torch.equal(one, other)
    assert (found[2][padding] == 0).all()


def test_infinite_inputs_stay_with_their_columns():
    """An odd number of columns is filled up to pairs; what fills it multiplies nothing that is there."""
    mask = torch.zeros(4, 27, dtype=torch.bool)
    mask[:, [3, 7, 9]] = True
    pattern = openwork.Pattern.from_mask(mask, 4)
    x = torch.ones(2, 27).bfloat16()
    x[:, 0] = float("inf")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            ops.linear(x, torch.ones(pattern.value_shape), pattern, None, "cpu"), torch.full((2, 4), 3.0).bfloat16()
        )


@pytest.mark.parametrize("wanted", ["x", "values", "bias", "none"])
def test_only_what_is_wanted(wanted):
    pattern, x, g, values, bias = problem((37, 130), 4, 33)
    inputs = {"x": x, "values": values, "bias": bias}
    if wanted != "none":
        inputs[wanted].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(inputs["x"], inputs["values"], pattern, inputs["bias"], "cpu")
    assert out.requires_grad == (wanted != "none")
    if wanted != "none":
        out.backward(g)
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [w for w in (wanted,) if w != "none"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.linear(inputs["x"], inputs["values"], pattern, inputs["bias"], "cpu"), out)


@pytest.mark.parametrize("height", [1, 4])
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=str)
def test_bias_gradient_beside_others(wanted, height):
    pattern, *operands = problem((37, 130), height, 300)
    right = expected(pattern, *operands)
    x, g, values, bias = operands
    inputs = [*([x, values][i].requires_grad_() for i in wanted), bias.requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(x, values, pattern, bias, "cpu")
    *found, dbias = torch.autograd.grad(out, inputs, g)
    assert dbias.dtype == torch.float32
    assert_near(dbias, right[3], SUMMED)
    for i, one in zip(wanted, found, strict=True):
        assert_near(one, right[1 + i], (ROUNDED, SUMMED)[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_dtypes_are_those_of_a_dense_layer(dtype, inside, kernel):
    layer = SparseLinear(random_pattern(10, 27, 4, 0.5), random_values(random_pattern(10, 27, 4, 0.5)), torch.randn(10), kernel)
    dtypes = []
    for module in (layer, torch.nn.Linear(27, 10)):
        x = torch.randn(2, 3, 27, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
            if inside:
                out.sum().backward()
        if not inside:
            out.sum().backward()
        dtypes.append([out.dtype, x.grad.dtype, *(p.grad.dtype for p in module.parameters())])
        assert out.shape == (2, 3, 10)
    assert dtypes[0] == dtypes[1]


def test_operator_and_direct_call_agree():
    pattern, x, g, values, bias = problem((37, 130), 4, 33)
    parts = (pattern.rows, pattern.offsets, pattern.cols, pattern.shape, "cpu")
    x.requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.ops.openwork.linear(x.float(), values, bias, *parts)
    found = (out, *torch.autograd.grad(out, (x, values, bias), g))
    for one, other in zip(found, products(pattern, x, g, values, bias), strict=True):
        assert torch.equal(one, other)


def test_compiled():
    pattern, x, g, values, bias = problem((37, 130), 4, 33)
    layer = SparseLinear(pattern, values, bias, "cpu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for module in (layer, compiled):
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(own)
        results.append((out, *torch.autograd.grad(out, (own, layer.values, layer.bias), g)))
    for one, other, right in zip(*results, expected(pattern, x, g, values, bias), strict=True):
        assert one.dtype == other.dtype
        assert_near(other, right, ROUNDED)


def test_float64_is_left_alone():
    pattern = random_pattern(10, 27, 4, 0.5)
    values, x = random_values(pattern).double(), torch.randn(4, 27).double()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(x, values, pattern, None, "reference")
    assert out.dtype == torch.float64


def test_mixed_without_autocast_is_refused():
    pattern, x, _, values, _ = problem((10, 27), 4, 4)
    with pytest.raises(ValueError, match=r"values is torch.float32 .* x is torch.bfloat16"):
        ops.linear(x, values, pattern, None, "cpu")


SCRIPT = """
import torch
from test_bf16 import ROUNDED, SUMMED, assert_near, expected, problem, products
from openwork import _native
assert _native.isa() == {isa!r}, _native.isa()
assert _native.has_bf16() == ({isa!r} == "avx512_bf16")
_native.poison_scratch(True)
for height in (1, 4, 5, 16):
    for batch in (0, 1, 33, 100):
        arguments = problem((37, 130), height, batch)
        for one, right, bound in zip(products(*arguments), expected(*arguments), (ROUNDED, ROUNDED, SUMMED, ROUNDED)):
            assert_near(one, right, bound)
"""


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_every_build(isa):
    assert_runs(SCRIPT, isa)
