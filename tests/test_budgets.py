"""Budgets against counts worked out by hand, the published formula and published FLOPs."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import openwork as ow
from openwork import budgets
from openwork.budgets import BudgetError, FixedRatio, active_weights

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


@pytest.mark.parametrize("budget", [*ALL, budgets.proportional, budgets.uniform_dense_first, FixedRatio({"a": 2})])
@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5, 0.0, 1.0, float("nan"), float("inf")])
def test_sparsity_out_of_range(budget, sparsity):
    with pytest.raises(BudgetError, match=r"sparsity=.*between 0 and 1"):
        budget({"a": (4, 4)}, sparsity)


@pytest.mark.parametrize("budget", [*ALL, budgets.proportional, FixedRatio({"a": 2})])
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


PAIR = {"wide": (10, 10, 3, 3), "point": (30, 30, 1, 1)}
"""900 weights each."""


def test_sparsities_in_the_ratio_of_the_paper_by_hand():
    # 1,620 zeros of 1,800: 900 * (1.12 + 1) * scale, so the scale is 0.849057.
    densities = FixedRatio({"3x3": 1.12, "1x1": 1.0})(PAIR, 0.9)
    assert densities == {"wide": pytest.approx(1 - 1.12 * 0.8490566), "point": pytest.approx(1 - 0.8490566)}
    # Only the ratio counts, and what no key fits counts as 1.
    assert FixedRatio({"w*": 2.24, "conv": 2})(PAIR, 0.9) == pytest.approx(densities)
    assert FixedRatio({"3x3": 1.12})(PAIR, 0.9) == pytest.approx(densities)


def test_the_ratio_of_the_paper_on_resnet50():
    """MEST, App. K: 1.12 : 1 is 95 % of the 3 x 3 and 85 % of the 1 x 1 convolutions at 90 % overall."""
    shapes = {name: shape for name, shape, _ in resnet50() if name not in ("stem", "head")}
    densities = FixedRatio({"3x3": 1.12, "1x1": 1.0})(shapes, 0.9)
    for name, shape in shapes.items():
        assert 1 - densities[name] == pytest.approx(0.95 if shape[2:] == (3, 3) else 0.85, abs=0.005)
    assert total(shapes, densities) == pytest.approx(0.1 * sum(map(math.prod, shapes.values())), abs=len(shapes))


def test_a_sparsity_stops_where_little_would_be_left_and_a_density_at_one():
    # 1,764 zeros: in the ratio the first would have 932 of its 900, so it keeps 0.1 * 0.02 and the other has 865.8 zeros.
    densities = FixedRatio({"3x3": 1.12, "1x1": 1.0})(PAIR, 0.98)
    assert densities == {"wide": pytest.approx(0.002), "point": pytest.approx(1 - 865.8 / 900)}
    densities = FixedRatio({"3x3": 1.12, "1x1": 1.0}, least=0.5)(PAIR, 0.98)
    assert densities == {"wide": pytest.approx(0.01), "point": pytest.approx(0.03)}
    # 180 weights as 1 to 3; then 1,080 as 1 to 30, which would be 1,045 of 900.
    assert FixedRatio({"1x1": 3}, of="density")(PAIR, 0.9) == {"wide": pytest.approx(0.05), "point": pytest.approx(0.15)}
    assert FixedRatio({"1x1": 30}, of="density")(PAIR, 0.4) == {"wide": pytest.approx(0.2), "point": 1.0}


def test_proportional_by_hand():
    # 100 and 300 weights.  200 zeros: 0.002 * (100^2 + 300^2).
    shapes = {"small": (10, 10), "large": (10, 30)}
    assert budgets.proportional(shapes, 0.5) == {"small": pytest.approx(0.8), "large": pytest.approx(0.4)}
    # 320 zeros: 0.96 of the large one would be more than 1 - 0.2 / 2, so it has 270 and the small one 50.
    assert budgets.proportional(shapes, 0.8) == {"small": pytest.approx(0.5), "large": pytest.approx(0.1)}
    assert budgets.proportional(shapes, 0.8, least=0.1) == {"small": pytest.approx(0.68), "large": pytest.approx(0.04)}
    assert budgets.proportional(shapes, 0.8, least=1) == {"small": pytest.approx(0.2), "large": pytest.approx(0.2)}
    # 140 zeros are with the small one: 180 are left for the large one.
    assert budgets.proportional({**shapes, "own": (20, 10)}, 0.6, fixed={"own": 0.2}) == {
        "small": pytest.approx(0.8), "large": pytest.approx(0.4), "own": 0.2,
    }  # fmt: skip


def filled(sizes, raw, wanted, cap):
    """Shares ``min(cap, scale * raw)`` that add up to ``wanted``, by bisection on the scale alone."""
    low, high = 0.0, cap / min(raw.values())
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(n * min(cap, middle * raw[name]) for name, n in sizes.items())
        low, high = (middle, high) if reached < wanted else (low, middle)
    return {name: min(cap, high * raw[name]) for name in sizes}


@given(
    st.lists(dims, min_size=2, max_size=7),
    st.floats(0.05, 0.98),
    st.one_of(st.none(), st.floats(0, 1)),
    st.lists(st.floats(0.1, 10), min_size=7, max_size=7),
    st.floats(0.01, 1),
    st.sampled_from(["proportional", "sparsity", "density"]),
)
@settings(max_examples=300, deadline=None)
def test_the_capped_iteration_is_the_level_that_meets_the_sum(layers, sparsity, held, ratios, least, kind):
    shapes = {str(i): shape for i, shape in enumerate(layers)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    zeros = sum(n - active_weights(n, 1 - sparsity) for n in sizes.values())
    fixed = {} if held is None else {"0": held}
    free = {name: n for name, n in sizes.items() if name not in fixed}
    left = zeros - sum((1 - density) * sizes[name] for name, density in fixed.items())
    if kind == "proportional":
        raw, cap = dict(sizes), 1 - least * (1 - sparsity)
        made = lambda: budgets.proportional(shapes, sparsity, fixed=fixed, least=least)  # noqa: E731
    else:
        raw = dict(zip(shapes, ratios, strict=False))
        cap = 1 - least * (1 - sparsity) if kind == "sparsity" else 1.0
        made = lambda: FixedRatio(raw, of=kind, least=least)(shapes, sparsity, fixed=fixed)  # noqa: E731
    if kind == "density":
        left = sum(free.values()) - left
    most = cap * sum(free.values())
    assume(abs(left) > 1 and (abs(left - most) > len(shapes) or not fixed))
    if not 0 <= left <= most + len(shapes):
        with pytest.raises(BudgetError, match=f"sparsity={sparsity}"):
            made()
        return
    expected = filled(free, {name: raw[name] for name in free}, min(left, most), cap)
    if kind != "density":
        expected = {name: 1 - share for name, share in expected.items()}
    found = made()
    assert {name: found[name] for name in free} == {name: pytest.approx(d, abs=1e-9) for name, d in expected.items()}
    assert {name: found[name] for name in fixed} == fixed
    assert list(found) == list(shapes)
    assert sum(sizes[name] * (1 - d) for name, d in found.items()) == pytest.approx(zeros, abs=1e-6 * zeros + 1e-6)


def test_the_first_layer_is_dense_and_does_not_count():
    shapes = {"stem": (10, 3, 3, 3), "a": (20, 10, 3, 3), "b": (10, 20)}
    assert budgets.uniform_dense_first(shapes, 0.9) == {"stem": 1.0, "a": pytest.approx(0.1), "b": pytest.approx(0.1)}
    # Of 2,000 weights without the first, 200 stay: 100 in b and 100 in a.
    densities = budgets.uniform_dense_first(shapes, 0.9, fixed={"b": 0.5, "stem": 1.0})
    assert densities == {"stem": 1.0, "a": pytest.approx(100 / 1800), "b": 0.5}
    with pytest.raises(BudgetError, match=r"first layer, 'stem'.*fixed at 0\.5; exclude it"):
        budgets.uniform_dense_first(shapes, 0.9, fixed={"stem": 0.5})
    with pytest.raises(BudgetError, match="no layer besides the first, 'stem'"):
        budgets.uniform_dense_first({"stem": (10, 3, 3, 3)}, 0.9)
    with pytest.raises(BudgetError, match=r"sparsity=0.9 cannot be met.*a=1"):
        budgets.uniform_dense_first(shapes, 0.9, fixed={"a": 1.0})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FixedRatio({}), ValueError, "ratios={}"),
        (lambda: FixedRatio({"3x3": 0.0}), ValueError, r"ratios=.*0\.0.*above 0"),
        (lambda: FixedRatio({"3x3": float("nan")}), ValueError, "ratios=.*nan.*above 0"),
        (lambda: FixedRatio({"3x3": float("inf")}), ValueError, "ratios=.*inf.*above 0"),
        (lambda: FixedRatio({"3x3": "2"}), TypeError, "ratios=.*'2'"),
        (lambda: FixedRatio({"3x3": True}), TypeError, "ratios=.*True"),
        (lambda: FixedRatio({3: 1.0}), TypeError, "ratios={3"),
        (lambda: FixedRatio("3x3"), TypeError, "ratios='3x3'"),
        (lambda: FixedRatio({"3x3": 1}, of="zeros"), ValueError, "of='zeros'.*sparsity, density"),
        (lambda: FixedRatio({"3x3": 1}, least=0), ValueError, r"least=0 .*\(0, 1\]"),
        (lambda: FixedRatio({"3x3": 1}, least="1"), ValueError, "least='1'"),
        (lambda: budgets.proportional(PAIR, 0.9, least=1.5), ValueError, r"least=1\.5"),
        (lambda: FixedRatio({"5x5": 2})(PAIR, 0.9), ValueError, "'5x5', which fits no layer; layers: wide, point"),
        (lambda: FixedRatio({"linear": 2})(PAIR, 0.9), ValueError, "'linear', which fits no layer"),
    ],
)
def test_ratios_that_make_no_sense(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_budgets_by_name_and_as_objects_meet_the_sparsity_of_a_model():
    def held(budget, **more):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(4, 20, 3), torch.nn.Conv2d(20, 50, 1), torch.nn.Conv2d(50, 20, 3))
        rows = ow.sparsify(model, sparsity=0.8, layout="unstructured", method="static", budget=budget, **more).report().rows
        return {row.layer: row.nnz for row in rows}

    # 720, 1,000 and 9,000 weights.
    assert held("uniform_dense_first") == {"0": 720, "1": 200, "2": 1800}
    assert held("uniform", exclude=["0"]) == {"0": 720, "1": 200, "2": 1800}
    # 8,576 zeros: in proportion to the squares the last would have 8,473, more than 0.9 of it; 476 are left for 720 : 1,000.
    scale = 476 / (720**2 + 1000**2)
    expected = {"0": 720 * (1 - 720 * scale), "1": 1000 * (1 - 1000 * scale), "2": 900}
    assert held("proportional") == {name: math.ceil(n - 1e-6) for name, n in expected.items()}
    # 8,576 = scale * (1.1 * 9,720 + 1,000)
    scale = 8576 / (1.1 * 9720 + 1000)
    expected = {"0": 720 * (1 - 1.1 * scale), "1": 1000 * (1 - scale), "2": 9000 * (1 - 1.1 * scale)}
    assert held(FixedRatio({"3x3": 1.1})) == {name: math.ceil(n) for name, n in expected.items()}
    with pytest.raises(ValueError, match=r"first layer, '0'.*fixed at 0\.5"):
        held("uniform_dense_first", densities={"0": 0.5})
    with pytest.raises(ValueError, match="known: uniform, erdos_renyi, erk, proportional, uniform_dense_first"):
        held("flat")
