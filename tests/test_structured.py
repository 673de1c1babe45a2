"""N:M, complementary, channel, filter and kernel-pattern layouts: every projection against brute force, and what they store."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import openwork as ow
from openwork.layouts import NM, Channel, Complementary, Filter, KernelPattern, LayoutError, TransposableNM, tile_masks
from openwork.layouts.settle import Weights
from openwork.pattern import Pattern
from openwork.scores import Proposal, Scores


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def project(layout, dims, density, score):
    """The pattern of highest ``score`` (a dense tensor): everything is dropped and everything may grow."""
    count = layout.fit(dims, density)
    now = layout.initial(dims, count, torch.zeros(dims), generator())
    matrix = score.reshape(dims[0], -1)
    ground = layout.ground(now)
    chunks = [(g, matrix[ground[g].clamp(min=0).long()][None]) for g in range(len(ground))]
    nothing = torch.empty(0, dtype=torch.int64)
    grow = layout.best_inactive(now, nothing, chunks, layout.n_atoms(now))
    keep = torch.zeros(len(layout.atoms(now)), dtype=torch.float64)
    pattern = layout.revise(now, Proposal(keep, len(keep), grow, count))
    layout.check(pattern, count)
    return pattern


def held(pattern: Pattern, score) -> float:
    return float(score.reshape(pattern.shape)[pattern.mask()].sum())


def best_of_sets(score, sets, keep):
    """The most that ``keep`` members of every set can hold, by trying all choices."""
    return sum(max(sum(float(score[i]) for i in chosen) for chosen in itertools.combinations(own, keep)) for own in sets)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 5)])
@pytest.mark.parametrize("dims", [(3, 20), (2, 20, 2, 1)])
def test_nm_keeps_the_best_of_every_group_of_input_channels(n, m, dims):
    score = torch.rand(dims, generator=generator(n), dtype=torch.float64)
    layout = NM(n, m).for_layer("", dims)
    pattern = project(layout, dims, n / m, score)
    assert pattern.nnz == score.numel() * n // m
    full = score.reshape(dims[0], dims[1], -1)
    lines = [full[r, :, t] for r in range(dims[0]) for t in range(full.shape[2])]
    expected = sum(best_of_sets(line, [range(i, i + m) for i in range(0, 20, m)], n) for line in lines)
    assert held(pattern, score) == pytest.approx(expected)


def test_narrow_groups_keep_at_most_n():
    pattern = project(NM(2, 4).for_layer("", (1, 9)), (1, 9), 0.5, torch.arange(9.0)[None])
    assert pattern.cols.tolist() == [2, 3, 6, 7, 8]
    pattern = project(NM(2, 4).for_layer("", (1, 3)), (1, 3), 0.5, torch.tensor([[1.0, 3.0, 2.0]]))
    assert pattern.cols.tolist() == [1, 2]


def test_complementary_sets_by_hand():
    # k = 2, distance 3: {0, 3}, {1, 4}, {2, 5}, then a rest of 3 with lanes 2 apart: {6, 8}, {7}.
    score = torch.tensor([[5.0, 1, 5, 1, 5, 1, 1, 1, 5]])
    pattern = project(Complementary(2, 3).for_layer("", (1, 9)), (1, 9), 0.5, score)
    assert pattern.cols.tolist() == [0, 2, 4, 7, 8]


@pytest.mark.parametrize(("k", "distance"), [(2, 2), (4, 2), (3, 4), (4, 1), (2, 16)])
@pytest.mark.parametrize("axis", ["in", "out"])
def test_complementary_keeps_the_best_of_every_set(k, distance, axis):
    dims = (24, 24)
    score = torch.rand(dims, generator=generator(k), dtype=torch.float64)
    pattern = project(Complementary(k, distance, axis).for_layer("", dims), dims, 1 / k, score)
    apart = distance if k * distance <= 24 else -(-24 // k)
    sets = [
        [start + j + i * apart for i in range(k) if start + j + i * apart < 24]
        for start in range(0, 24, k * apart)
        for j in range(apart)
    ]
    assert sorted(itertools.chain(*sets)) == list(range(24))
    lines = score if axis == "in" else score.t()
    assert pattern.nnz == 24 * len(sets)
    assert held(pattern, score) == pytest.approx(sum(best_of_sets(line, sets, 1) for line in lines))
    if k == 2 and distance == 2 and axis == "in":
        mask = pattern.mask().view(24, 6, 2, 2)
        assert torch.equal(mask[:, :, 0], ~mask[:, :, 1]), "the halves of a segment have complementary masks"


@pytest.mark.parametrize("dims", [(18, 6), (5, 6, 2, 3)])
def test_channels_are_the_best_and_leave_a_smaller_dense_layer(dims):
    score = torch.rand(dims, generator=generator(1), dtype=torch.float64)
    pattern = project(Channel().for_layer("", dims), dims, 0.5, score)
    sums = score.transpose(0, 1).reshape(6, -1).sum(1)
    best = max(itertools.combinations(range(6), 3), key=lambda chosen: float(sums[list(chosen)].sum()))
    expected = torch.zeros(dims, dtype=torch.bool)
    expected[:, list(best)] = True
    assert torch.equal(pattern.mask(), expected.reshape(pattern.shape))
    # 18 rows make two groups of 9: nothing is padded.
    assert pattern.value_shape[0] * pattern.height == pattern.nnz == score.numel() // 2


@pytest.mark.parametrize("dims", [(40, 3), (6, 4, 2, 2)])
def test_filters_are_the_best_and_the_others_are_not_stored(dims):
    score = torch.rand(dims, generator=generator(2), dtype=torch.float64)
    pattern = project(Filter().for_layer("", dims), dims, 0.5, score)
    best = score.reshape(dims[0], -1).sum(1).topk(dims[0] // 2).indices.sort().values
    assert pattern.rows[pattern.rows >= 0].tolist() == best.tolist()
    expected = torch.zeros(pattern.shape, dtype=torch.bool)
    expected[best] = True
    assert torch.equal(pattern.mask(), expected)


def kernel_masks(patterns):
    """The eight masks, drawn."""
    drawn = {
        "corners": ["... .xx .xx", "... xx. xx.", ".xx .xx ...", "xx. xx. ..."],
        "symmetric": [".x. xxx ...", "... xxx .x.", ".x. .xx .x.", ".x. xx. .x."],
        "mest-release": ["... ..x xxx", "... xxx .x.", ".x. .xx .x.", ".x. xx. .x."],
    }
    return [torch.tensor([c == "x" for c in line.replace(" ", "")]) for line in drawn["corners"] + drawn[patterns]]


@pytest.mark.parametrize("patterns", ["symmetric", "mest-release"])
def test_kernel_patterns_are_the_best_in_every_filter(patterns):
    dims = (3, 4, 3, 3)
    masks = kernel_masks(patterns)
    for seed in range(5):
        score = torch.rand(dims, generator=generator(seed), dtype=torch.float64)
        pattern = project(KernelPattern(patterns).for_layer("", dims), dims, 2 * 4 / 36, score)
        expected = 0.0
        for own in score.reshape(3, 4, 9):
            best = [max(float(kernel[mask].sum()) for mask in masks) for kernel in own]
            expected += max(sum(chosen) for chosen in itertools.combinations(best, 2))
        assert held(pattern, score) == pytest.approx(expected)
        for kernel in pattern.mask().view(-1, 9):
            assert not kernel.any() or any(torch.equal(kernel, mask) for mask in masks)
        assert pattern.mask().view(3, -1).sum(1).tolist() == [8, 8, 8]


def test_random_kernels_draw_every_pattern():
    dims = (32, 64, 3, 3)
    layout = KernelPattern().for_layer("", dims)
    pattern = layout.initial(dims, layout.fit(dims, 0.3), torch.zeros(dims), generator())
    kinds = np.bincount(layout.atoms(pattern).numpy() % 8, minlength=8)
    expected = kinds.sum() / 8
    assert ((kinds - expected) ** 2 / expected).sum() < 24.3, "chi-square, 7 degrees of freedom, 0.1 %"


def test_a_dropped_kernel_may_come_back_with_another_pattern():
    dims = (1, 2, 3, 3)
    layout = KernelPattern().for_layer("", dims)
    now = layout.build((1, 18), np.array([0 * 8 + 1, 1 * 8 + 2]), layout.rows((1, 18)))
    grow = Scores(torch.tensor([3.0, 2.0]), torch.tensor([8 + 5, 7]))
    # Kernel 0 is kept, so that its rival 7 cannot come; kernel 1 goes and returns as pattern 5.
    pattern = layout.revise(now, Proposal(torch.tensor([2.0, 1.0]), 1, grow, 2))
    assert layout.atoms(pattern).tolist() == [1, 13]


def score_of(masks, score):
    return (masks * score).sum((1, 2))


def assert_regular(masks, n):
    assert (masks.sum(1) == n).all()
    assert (masks.sum(2) == n).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 3), (1, 2)])
def test_transposable_masks_are_the_best_of_all(n, m):
    masks = tile_masks.all_masks(m, n)
    if (n, m) == (2, 4):
        assert len(masks) == 90
    score = np.random.default_rng(n).random((40, m, m))
    score[:5] = np.random.default_rng(n).integers(0, 3, (5, m, m))  # ties
    score[5] = 0.0
    best = [max(float((mask * one).sum()) for mask in masks) for one in score]
    flow = tile_masks._augmented(np.zeros(score.shape, dtype=bool), score, n)
    for found in (tile_masks.exact(score, n), flow):
        assert_regular(found, n)
        np.testing.assert_allclose(score_of(found, score), best)
    greedy = tile_masks.greedy(score, n)
    assert_regular(greedy, n)
    assert (score_of(greedy, score) >= 0.5 * np.array(best) - 1e-12).all()


@pytest.mark.parametrize(("n", "m"), [(4, 8), (3, 9)])
def test_flow_masks_meet_the_linear_program(n, m):
    """The polytope of regular masks has whole corners, so a linear program gives the best sum too."""
    optimize = pytest.importorskip("scipy.optimize")
    score = np.random.default_rng(0).random((6, m, m))
    found = tile_masks.exact(score, n)
    assert_regular(found, n)
    rows = np.kron(np.eye(m), np.ones(m))
    cols = np.kron(np.ones(m), np.eye(m))
    for one, mask in zip(score, found, strict=True):
        best = optimize.linprog(-one.ravel(), A_eq=np.vstack([rows, cols]), b_eq=np.full(2 * m, n), bounds=(0, 1))
        assert (one * mask).sum() == pytest.approx(-best.fun)


@pytest.mark.parametrize("dims", [(8, 12), (4, 8, 2, 3)])
def test_transposable_patterns_are_nm_both_ways_and_the_best(dims):
    score = torch.rand(dims, generator=generator(4), dtype=torch.float64)
    layout = TransposableNM(2, 4).for_layer("", dims)
    count = layout.fit(dims, 0.5)
    now = layout.initial(dims, count, torch.zeros(dims), generator())
    layout.check(now, count)
    every = Weights(np.arange(score.numel()), score.flatten().numpy())
    pattern = layout.project(now, every, count, regroup=False)
    layout.check(pattern, count)
    # [output tile, row, input tile, column, tap], by the layout's own words.
    shape = (dims[0] // 4, 4, dims[1] // 4, 4, -1)
    mask, own = pattern.mask().view(shape), score.view(shape)
    assert (mask.sum(1) == 2).all()
    assert (mask.sum(3) == 2).all()
    tiles = own.permute(0, 2, 4, 1, 3).reshape(-1, 4, 4).numpy()
    best = sum(max(float((m * tile).sum()) for m in tile_masks.all_masks(4, 2)) for tile in tiles)
    assert held(pattern, score) == pytest.approx(best)


def test_what_cannot_be_is_refused():
    for wrong, name in [
        (lambda: NM(4, 4), "n=4"), (lambda: NM(0, 4), "n=0"), (lambda: Complementary(1), "k=1"),
        (lambda: Complementary(2, 0), "distance=0"), (lambda: Complementary(2, 4, "up"), "axis='up'"),
        (lambda: KernelPattern("round"), "patterns='round'"), (lambda: TransposableNM(5, 4), "n=5"),
        (lambda: TransposableNM(1, 4, "quick"), "solver='quick'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            wrong()
    with pytest.raises(LayoutError, match="divide by 4; the layer has 8 output and 6 input"):
        TransposableNM(2, 4).for_layer("", (8, 6, 3, 3))
    with pytest.raises(LayoutError, match="3 x 3, not 5 x 5"):
        KernelPattern().for_layer("", (8, 8, 5, 5))
    with pytest.raises(LayoutError, match=r"density of 0\.5; 0\.3"):
        NM(2, 4).for_layer("", (8, 8)).fit((8, 8), 0.3)
    with pytest.raises(LayoutError, match="at most 4/9"):
        KernelPattern().for_layer("", (8, 8, 3, 3)).fit((8, 8, 3, 3), 0.5)


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_a_sparsity_that_the_layout_does_not_have_is_refused_and_the_model_left_alone():
    model = net()
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"sparsity=0\.9 cannot be met"):
        ow.sparsify(model, sparsity=0.9, layout="nm(2, 4)", method="static")
    assert list(model.modules()) == before


def test_layers_without_a_place_stay_dense_and_say_why():
    model = net()
    sparsity = ow.sparsify(model, sparsity=0.6, layout=KernelPattern(), method="set")
    assert list(sparsity.layers) == ["0"]
    notes = "\n".join(sparsity.report().notes)
    assert "2 stays dense" in notes
    assert "not 1 x 1" in notes
    with pytest.raises(LayoutError, match="linear layer"):
        ow.sparsify(net(), sparsity=0.6, layout=KernelPattern(), method="set", force=["4"])


def test_each_layer_gets_the_layout_of_the_first_key_that_fits():
    layout = ow.layouts.PerLayer(
        {"3x3": "kernel_pattern", "conv": ow.layouts.Block(2, 1), "4": "out_vector(5)", "linear": "nm(2, 4)"}
    )
    sparsity = ow.sparsify(net(), sparsity=0.6, layout=layout, method="set", budget="uniform")
    layouts = {row.layer: row.layout for row in sparsity.report().rows}
    assert layouts == {"0": "KernelPattern()", "2": "Block(m=2, n=1)", "4": "OutVector(v=5)"}
    sparsity = ow.sparsify(net(), sparsity=0.6, layout="PerLayer({'linear': 'shuffled_vector(5)'})", method="set")
    assert list(sparsity.layers) == ["4"]
    assert sparsity.layers["4"].pattern.height == 5
    assert "0 stays dense: no key of PerLayer fits it: linear" in "\n".join(sparsity.report().notes)
    for wrong, error, message in [
        ({}, ValueError, "has no layout"), ({"3x3": "square"}, ValueError, r"layouts\['3x3'\]='square'"),
        ("3x3", TypeError, "layouts='3x3'"), ({3: "block(2)"}, TypeError, "map"), ({"conv": 3}, TypeError, r"\['conv'\]=3"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            ow.layouts.PerLayer(wrong)


def test_the_layers_of_one_density_leave_the_rest_to_the_others():
    """Of 3,160 weights 1,264 would stay at 0.6; N:M alone holds half of the linear layer's 2,880."""
    layout = "PerLayer({'linear': 'nm(2, 4)', 'conv': 'unstructured'})"
    with pytest.raises(ValueError, match="leave nothing for the other layers"):
        ow.sparsify(net(), sparsity=0.6, layout=layout, method="set")
    sparsity = ow.sparsify(net(), sparsity=0.48, layout=layout, method="set")
    rows = {row.layer: row for row in sparsity.report().rows}
    assert rows["4"].nnz == 1440
    # 3,160 weights at 0.48: those of the three layers, each rounded up, are 113 + 34 + 1,498.
    assert rows["0"].nnz + rows["2"].nnz == 113 + 34 + 1498 - 1440


def test_the_budget_shares_what_a_layout_of_one_density_leaves_free():
    sparsity = ow.sparsify(net(), sparsity=0.5, layout="complementary(2, 4)", method="rigl", budget="erk")
    for row in sparsity.report().rows:
        assert row.asked == 0.5
        assert row.layout == "Complementary(k=2, distance=4)"
