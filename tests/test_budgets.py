"""Budgets against counts worked out by hand, the published formula and published FLOPs."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from openwork import budgets
from openwork.budgets import BudgetError, active_weights

ALL = [budgets.uniform, budgets.erdos_renyi, budgets.erk]


def total(shapes, densities):
    return sum(densities[name] * math.prod(shape) for name, shape in shapes.items())


@pytest.mark.parametrize(
    ("size", "density", "count"),
    [
        (1000, 0.1, 100), (1000, 1 - 0.9, 100), (10, 0.25, 3), (7, 0.5, 4), (3, 0.1, 1), (100, 0.0, 0), (100, 1.0, 100),
        (4096 * 4096, 1 - 0.95, 16777216 - 15938355), (9, 1 / 3, 3),
    ],
)  # fmt: skip
def test_active_weights_are_what_floor_leaves(size, density, count):
    assert active_weights(size, density) == count


def test_uniform_is_the_same_everywhere():
    shapes = {"a": (10, 27), "b": (13, 60), "c": (7, 22)}
    assert budgets.uniform(shapes, 0.7) == dict.fromkeys(shapes, pytest.approx(0.3, abs=1e-12))


def test_erdos_renyi_by_hand():
    # Raw densities: (10 + 10) / 100 = 0.2, (20 + 10) / 200 = 0.15; raw counts 20 and 30.
    # At sparsity 0.8 there are 60 weights to share, so the scale is 60 / 50 = 1.2.
    densities = budgets.erdos_renyi({"a": (10, 10), "b": (20, 10)}, 0.8)
    assert densities == {"a": pytest.approx(0.24), "b": pytest.approx(0.18)}


def test_erk_by_hand_with_a_layer_that_becomes_dense():
    # a: 4x2x3x3, 72 weights, raw (4+2+3+3)/72 = 1/6, count 12.   b: 8x4x3x3, 288, raw 18/288 = 1/16, count 18.
    # c: 10x32, 320, raw 42/320 = 0.13125, count 42.   Sparsity 0.5: 340 wanted, scale 340/72 = 4.72: 4.72/6 < 1.
    shapes = {"a": (4, 2, 3, 3), "b": (8, 4, 3, 3), "c": (10, 32)}
    densities = budgets.erk(shapes, 0.5)
    assert densities == {
        "a": pytest.approx(340 / 72 / 6),
        "b": pytest.approx(340 / 72 / 16),
        "c": pytest.approx(340 / 72 * 0.13125),
    }
    # Sparsity 0.25: 510 wanted, scale 7.08: a would be 1.18, so it is dense and 438 are left for 60 raw: scale 7.3.
    densities = budgets.erk(shapes, 0.25)
    assert densities == {"a": 1.0, "b": pytest.approx(7.3 / 16), "c": pytest.approx(7.3 * 0.13125)}


def test_capping_goes_on_until_no_layer_exceeds_one():
    # Raw 1.5, 0.5, 0.2 on 2x1, 4x4, 10x10: 118 weights, 59 wanted.  First a alone, then b: (59-2)/(8+20)*0.5 > 1.
    densities = budgets.erk({"a": (2, 1), "b": (4, 4), "c": (10, 10)}, 0.5)
    assert densities == {"a": 1.0, "b": 1.0, "c": pytest.approx(0.41)}


def test_power_zero_is_uniform_and_one_is_erk():
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (10, 32)}
    flat = budgets.erk(shapes, 0.9, power=0.0)
    assert len({round(density, 12) for density in flat.values()}) == 1
    assert budgets.erk(shapes, 0.9, power=1.0) == budgets.erk(shapes, 0.9)


def resnet50():
    """(name, weight shape, output side) of every convolution of ImageNet's ResNet-50 at 224 pixels, and of its last layer."""
    layers = [("stem", (64, 3, 7, 7), 112)]
    width_in, side = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            name = f"{stage}.{block}"
            layers.append((f"{name}.1", (width, width_in, 1, 1), side))
            side //= stride
            layers.append((f"{name}.2", (width, width, 3, 3), side))
            layers.append((f"{name}.3", (4 * width, width, 1, 1), side))
            if not block:
                layers.append((f"{name}.skip", (4 * width, width_in, 1, 1), side))
            width_in = 4 * width
    return [*layers, ("head", (1000, 2048), 1)]


def test_erk_on_resnet50_gives_the_published_flops():
    """RigL, Fig. 2: inference at 0.42 (80 %) and 0.24 (90 %) of the dense FLOPs with ERK, against 0.2 and 0.1 if uniform."""
    layers = resnet50()
    shapes = {name: shape for name, shape, _ in layers}
    assert sum(map(math.prod, shapes.values())) == 25_502_912
    dense = sum(math.prod(shape) * side**2 for _, shape, side in layers)
    assert dense == pytest.approx(4.09e9, rel=0.01)
    for sparsity, share in ((0.8, 0.42), (0.9, 0.24)):
        densities = budgets.erk(shapes, sparsity)
        sparse = sum(densities[name] * math.prod(shape) * side**2 for name, shape, side in layers)
        assert sparse / dense == pytest.approx(share, abs=0.01)
        assert total(shapes, densities) == pytest.approx((1 - sparsity) * 25_502_912, abs=len(shapes))


def reference_erk(shapes, sparsity):
    """The capped iteration as section 0 of the definitions states it."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    zeros = {name: math.floor(sparsity * n + 1e-6) for name, n in size.items()}
    dense = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        rhs = sum(size[name] - zeros[name] for name in rest) - sum(zeros[name] for name in dense)
        eps = rhs / sum(raw[name] * size[name] for name in rest)
        top = max(raw[name] for name in rest)
        if eps * top <= 1 + 1e-12:  # a whole layer, but for rounding
            return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
        dense |= {name for name in rest if raw[name] == top}


dims = st.one_of(
    st.tuples(st.integers(4, 80), st.integers(4, 80)),
    st.tuples(st.integers(4, 40), st.integers(3, 40), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])),
)


@given(st.lists(dims, min_size=1, max_size=7), st.floats(0.05, 0.98))
@settings(max_examples=150, deadline=None)
def test_erk_is_the_capped_iteration(layers, sparsity):
    shapes = {str(i): shape for i, shape in enumerate(layers)}
    densities = budgets.erk(shapes, sparsity)
    assert densities == {name: pytest.approx(d, rel=1e-9) for name, d in reference_erk(shapes, sparsity).items()}


@given(st.lists(dims, min_size=2, max_size=6), st.floats(0.1, 0.95), st.floats(0, 1), st.sampled_from(ALL))
@settings(max_examples=150, deadline=None)
def test_the_others_make_up_for_a_fixed_layer(layers, sparsity, density, budget):
    shapes = {str(i): shape for i, shape in enumerate(layers)}
    asked = (1 - sparsity) * sum(map(math.prod, shapes.values()))
    held = density * math.prod(shapes["0"])
    rest = sum(math.prod(shapes[name]) for name in shapes if name != "0")
    if held >= asked + len(shapes) or held + rest <= asked - len(shapes):
        with pytest.raises(BudgetError, match=f"sparsity={sparsity}"):
            budget(shapes, sparsity, fixed={"0": density})
        return
    assume(held <= asked - 1 and held + rest >= asked + len(shapes))
    densities = budget(shapes, sparsity, fixed={"0": density})
    assert densities["0"] == density
    assert all(0 <= d <= 1 for d in densities.values())
    assert abs(total(shapes, densities) - asked) <= len(shapes)


@pytest.mark.parametrize("budget", ALL)
@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5, 0.0, 1.0, float("nan"), float("inf")])
def test_sparsity_out_of_range(budget, sparsity):
    with pytest.raises(BudgetError, match=r"sparsity=.*between 0 and 1"):
        budget({"a": (4, 4)}, sparsity)


@pytest.mark.parametrize("budget", ALL)
@pytest.mark.parametrize(
    ("shapes", "fixed", "message"),
    [
        ({}, None, "no layer"),
        ({"a": (4,)}, None, "'a'.*two positive"),
        ({"a": (4, 0)}, None, "'a'.*two positive"),
        ({"a": (4, 4)}, {"b": 0.5}, "'b'.*layers: a"),
        ({"a": (4, 4)}, {"a": 1.5}, r"1\.5.*'a'.*\[0, 1\]"),
        ({"a": (4, 4)}, {"a": -0.5}, r"-0\.5.*'a'.*\[0, 1\]"),
        ({"a": (100, 100), "b": (4, 4)}, {"a": 1.0}, "sparsity=0.5 cannot be met.*a=1"),
        ({"a": (100, 100), "b": (4, 4)}, {"a": 0.0}, "sparsity=0.5 cannot be met.*a=0"),
        ({"a": (4, 4)}, {"a": 0.9}, "sparsity=0.5 cannot be met.*a=0.9"),
    ],
)
def test_budgets_that_cannot_be_met(budget, shapes, fixed, message):
    with pytest.raises(BudgetError, match=message):
        budget(shapes, 0.5, fixed=fixed)
