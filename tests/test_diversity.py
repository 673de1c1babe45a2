"""Mask diversity: the printed tables, true counts, and enumerations written independently."""

from itertools import combinations, permutations, product
from math import comb

import pytest

import openwork as ow
from openwork.analysis import counting, mask_diversity

PRINTED = [
    # DSB, Table 1: layout, side of the matrix, the number as printed.
    ("unstructured", 8, "1.8e+18"), ("unstructured", 16, "5.8e+75"),
    ("block(2, 2)", 8, "12870"), ("block(4, 4)", 16, "12870"), ("block(4, 4)", 8, "6"), ("block(8, 8)", 16, "6"),
    ("shuffled_block(2, 2)", 8, "1.2e+18"), ("shuffled_block(4, 4)", 16, "3.7e+48"),
    ("shuffled_block(4, 4)", 8, "3.1e+11"), ("shuffled_block(8, 8)", 16, "1.3e+29"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "side", "printed"), PRINTED)
def test_table_1_of_dsb(layout, side, printed):
    found = mask_diversity(layout, (side, side), 0.5)
    assert (f"{found:.1e}" if "e" in printed else str(found)) == printed


def test_table_1_of_dsb_for_n_of_m():
    printed = {8: ["4.3e+09", "2.8e+12", "5.8e+14"], 16: ["3.4e+38", "6.3e+49", "1.1e+59"]}
    hubara = {8: ["6.6e+04", "4.3e+08", "1.8e+13"], 16: ["1.8e+19", "3.4e+34", "9.5e+52"]}
    for side in (8, 16):
        sizes = [(1, 2), (2, 4), (4, 8)]
        assert [f"{counting.n_of_m(side**2, n, m):.1e}" for n, m in sizes] == printed[side]
        assert [f"{counting.transposable_hubara(side**2, n, m):.1e}" for n, m in sizes] == hubara[side]


def test_true_counts_of_transposable_tiles():
    assert [counting.transposable_hubara(m * m, n, m) for n, m in ((1, 2), (2, 4))] == [2, 144]
    assert [counting.transposable(m * m, n, m) for n, m in ((1, 2), (2, 4), (4, 8))] == [2, 90, 116_963_796_250]
    assert counting.transposable(32, 2, 4) == 90**2
    # 1:M tiles are the permutation matrices, M:M tiles full.
    assert [counting.transposable(16, n, 4) for n in (1, 3, 4)] == [24, 24, 1]
    with pytest.raises(ValueError, match="8:16"):
        counting.transposable(256, 8, 16)


def test_transposable_layouts_are_counted_by_tiles():
    layout = ow.layouts.TransposableNM(2, 4)
    assert [mask_diversity(layout, (4, 4), 0.5, formula) for formula in ("paper", "bound", "exact", "brute")] == [
        144,
        90,
        90,
        90,
    ]
    assert mask_diversity(layout, (8, 4), 0.5, "exact") == 90**2
    assert mask_diversity(ow.layouts.TransposableNM(1, 2), (4, 2), 0.5, "brute") == mask_diversity(
        ow.layouts.TransposableNM(1, 2), (2, 4), 0.5, "brute"
    )
    assert mask_diversity(ow.layouts.TransposableNM(1, 2), (4, 4), 0.5, "brute") == 2**4
    with pytest.raises(ValueError, match="does not divide by 4 x 4"):
        mask_diversity(layout, (4, 6), 0.5)


@pytest.mark.parametrize("formula", ["paper", "bound", "exact", "brute"])
def test_shuffled_vectors_are_shuffled_blocks_of_one_column(formula):
    assert mask_diversity("shuffled_vector(2)", (4, 4), 0.5, formula) == mask_diversity(
        "shuffled_block(2, 1)", (4, 4), 0.5, formula
    )


def blocked(rows, cols, m, n, blocks):
    """All masks that shuffled blocks can make, built from every order of the rows and every choice of columns."""
    found = set()
    for order in permutations(range(rows)):
        groups = [order[first : first + m] for first in range(0, rows, m)]
        for share in product(range(cols // n + 1), repeat=len(groups)):
            if sum(share) != blocks:
                continue
            for picks in product(*(combinations(range(cols), n * own) for own in share)):
                found.add(frozenset((r, c) for group, pick in zip(groups, picks, strict=True) for r in group for c in pick))
    return len(found)


@pytest.mark.parametrize(
    ("shape", "block", "blocks"), [((4, 4), (2, 2), 2), ((4, 4), (2, 1), 3), ((4, 3), (2, 1), 2), ((6, 3), (2, 1), 3)]
)
def test_shuffled_blocks_counted_three_ways(shape, block, blocks):
    layout = ow.layouts.ShuffledBlock(*block)
    sparsity = 1 - blocks * block[0] * block[1] / (shape[0] * shape[1])
    true = blocked(*shape, *block, blocks)
    assert mask_diversity(layout, shape, sparsity, "brute") == true
    assert mask_diversity(layout, shape, sparsity, "exact") == true
    assert true <= mask_diversity(layout, shape, sparsity, "bound") <= mask_diversity(layout, shape, sparsity, "paper")


def test_shuffled_blocks_of_the_specification():
    four = {formula: mask_diversity("shuffled_block(2, 2)", (4, 4), 0.5, formula) for formula in ("paper", "bound", "brute")}
    assert four == {"paper": 10920, "bound": 114, "brute": 102}
    bounds = [(8, 2, "7.90e+09"), (8, 4, "1.72e+05"), (16, 4, "8.96e+22"), (16, 8, "1.07e+12")]
    for side, size, expected in bounds:
        layout = ow.layouts.ShuffledBlock(size)
        bound, exact = (mask_diversity(layout, (side, side), 0.5, formula) for formula in ("bound", "exact"))
        assert f"{bound:.2e}" == expected
        assert 0.9 * bound < exact <= bound


def test_the_papers_claims_do_not_survive_the_true_count():
    # DSB sec. 5: more diverse than 1:2 for S <= 4, and than transposable 2:4.
    for side, size, holds in ((8, 2, True), (8, 4, False), (16, 4, False)):
        layout = ow.layouts.ShuffledBlock(size)
        assert mask_diversity(layout, (side, side), 0.5, "paper") > counting.n_of_m(side**2, 1, 2)
        assert (mask_diversity(layout, (side, side), 0.5, "exact") > counting.n_of_m(side**2, 1, 2)) is holds


@pytest.mark.parametrize(
    ("layout", "shape", "sparsity", "expected"),
    [
        ("unstructured", (3, 4), 0.5, comb(12, 6)),
        ("unstructured", (3, 5), 0.9, comb(15, 2)),  # 15 - floor(13.5) = 2
        ("block(2, 2)", (4, 4), 0.7, comb(4, 2)),  # 5 active weights need 2 blocks
        ("block(2, 1)", (4, 2, 1, 2), 0.5, comb(8, 4)),
        ("out_vector(3)", (6, 2), 0.25, comb(4, 3)),
    ],
)
def test_fixed_tiles(layout, shape, sparsity, expected):
    assert {mask_diversity(layout, shape, sparsity, formula) for formula in ("paper", "bound", "exact", "brute")} == {expected}


def test_n_of_m_and_complementary_sets():
    # By hand: independent groups, each with its own choice.
    for layout, shape, sparsity, expected in (
        (ow.layouts.NM(2, 4), (1, 8), 0.5, comb(4, 2) ** 2),
        (ow.layouts.NM(1, 2), (2, 2, 1, 3), 0.5, 2**6),
        (ow.layouts.Complementary(2, 2), (3, 4), 0.5, 2**6),
        (ow.layouts.Complementary(4, 1), (2, 4), 0.75, 4**2),
        (ow.layouts.Complementary(2, 2, axis="out"), (4, 3), 0.5, 2**6),
    ):
        found = {mask_diversity(layout, shape, sparsity, formula) for formula in ("paper", "bound", "exact", "brute")}
        assert found == {expected}, layout
    # The masks that make a 1:2 layer are those of which a group keeps one of its two channels.
    chosen = [pick for pick in combinations(range(8), 4) if all((i in pick) != (i + 1 in pick) for i in range(0, 8, 2))]
    assert mask_diversity("nm(1, 2)", (2, 4), 0.5, "brute") == len(chosen)


def test_kernel_patterns_by_hand():
    # Two filters, each with 1 of 3 kernels in one of 8 patterns; then 2 of 3 kernels.
    assert counting.kernel_pattern(2, 3, 1, 8) == 24**2
    assert counting.kernel_pattern(1, 3, 2, 8) == 3 * 64
    layout = ow.layouts.KernelPattern()
    assert mask_diversity(layout, (1, 2, 3, 3), 7 / 9) == mask_diversity(layout, (1, 2, 3, 3), 7 / 9, "brute") == 2 * 8
    assert mask_diversity(layout, (2, 1, 3, 3), 5 / 9) == mask_diversity(layout, (2, 1, 3, 3), 5 / 9, "brute") == 8**2


def test_whole_channels_and_filters():
    for formula in ("paper", "brute"):
        assert mask_diversity(ow.layouts.Filter(), (4, 3), 0.5, formula) == comb(4, 2)
        assert mask_diversity(ow.layouts.Channel(), (2, 4, 1, 2), 0.75, formula) == 4


def test_results_are_integers_however_large():
    found = mask_diversity("unstructured", (256, 256), 0.9)
    assert found == comb(65536, 65536 - 58982)
    assert mask_diversity(ow.layouts.ShuffledBlock(16), (64, 64), 0.75, "exact") < mask_diversity(
        ow.layouts.ShuffledBlock(16), (64, 64), 0.75, "paper"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unstructured", (4, 4), 0.5, "guess"), "formula='guess'"),
        (("unstructured", (4,), 0.5), r"shape=\(4,\)"),
        (("unstructured", (4, 0), 0.5), r"shape=\(4, 0\)"),
        (("unstructured", (4, 4), 1.0), "sparsity=1.0"),
        (("block(3, 3)", (4, 4), 0.5), "does not divide by 3 x 3"),
        (("shuffled_block(2, 3)", (4, 4), 0.5), "does not divide by 2 x 3"),
        (("nm(2, 4)", (4, 8), 0.75), "sparsity=0.75 is none of"),
        (("nm(2, 4)", (4, 6), 0.5), "6 input channels"),
        (("complementary(2, 16)", (4, 16), 0.5), "16 input channels, which do not divide by 32"),
        (("nothing", (4, 4), 0.5), "layout='nothing'"),
        (("unstructured", (8, 8), 0.5, "brute"), "brute"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_diversity(*arguments)
