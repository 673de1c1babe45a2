"""DSB against its definition (sec. 3-4 of the paper), written out with loops over single weights and blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork.methods.frontier import block_order, grow_blocks

Block = tuple[tuple[int, ...], tuple[int, ...]]
"""Rows and columns."""


def blocks_of(pattern: ow.Pattern, n: int) -> list[Block]:
    """The blocks of a pattern: of each group its columns, ``n`` at a time in their stored order."""
    offsets, cols = pattern.offsets.tolist(), pattern.cols.tolist()
    found = []
    for rows, (start, stop) in zip(pattern.rows.tolist(), pairwise(offsets), strict=True):
        real = tuple(r for r in rows if r >= 0)
        found += [(real, tuple(cols[k : min(k + n, stop)])) for k in range(start, stop, n)]
    return found


def smallest(weight: np.ndarray, blocks: list[Block], k: int) -> set[tuple[int, int]]:
    """D0: the k active weights of smallest magnitude."""
    active = [(i, j) for rows, cols in blocks for i in rows for j in cols]
    return set(sorted(active, key=lambda at: abs(weight[at]))[:k])


def block_aware(marked: set[tuple[int, int]], blocks: list[Block]) -> set[tuple[int, int]]:
    """Those of D0 whose row or column in the block is at least half in D0."""
    dropped = set()
    for rows, cols in blocks:
        for i in rows:
            for j in cols:
                in_row = sum((i, c) in marked for c in cols)
                in_col = sum((r, j) in marked for r in rows)
                if (i, j) in marked and (2 * in_row >= len(cols) or 2 * in_col >= len(rows)):
                    dropped.add((i, j))
    return dropped


def grown_by_norms(a: np.ndarray, b: np.ndarray, m: int, n: int, kept: set[tuple[int, int]], k: int) -> set[tuple[int, int]]:
    """Blocks of sorted rows and columns by the product of their sums, all of them sorted, until k weights are new."""
    rows, cols = np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable")
    groups = [rows[i : i + m] for i in range(0, len(a), m)], [cols[j : j + n] for j in range(0, len(b), n)]
    scored = [(a[x].sum() * b[y].sum(), u, v) for u, x in enumerate(groups[0]) for v, y in enumerate(groups[1])]
    new: set[tuple[int, int]] = set()
    for _, u, v in sorted(scored, key=lambda entry: -entry[0]):
        if len(new) >= k:
            break
        new |= {(i, j) for i in groups[0][u].tolist() for j in groups[1][v].tolist()} - kept
    return new


def greedy_blocks(score: np.ndarray, groups: list[tuple[int, ...]], n: int, count: int) -> set[tuple[Block, ...]]:
    """The paper's greedy: over and over the best of the groups' best remaining columns."""
    left = []
    for rows in groups:
        norm = np.abs(score[list(rows)]).sum(0)
        left.append((rows, np.argsort(-norm, kind="stable").tolist(), norm))
    chosen = set()
    for _ in range(count):
        best = max((entry for entry in left if entry[1]), key=lambda entry: entry[2][entry[1][:n]].sum())
        chosen.add((best[0], frozenset(best[1][:n])))
        del best[1][:n]
    return chosen


def as_set(pattern: ow.Pattern, n: int) -> set[tuple[tuple[int, ...], frozenset[int]]]:
    return {(rows, frozenset(cols)) for rows, cols in blocks_of(pattern, n)}


class Watched(nn.Module):
    """One linear or convolution layer between two fixed functions, which keeps its input and its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        self.x = x
        self.out = self.layer(x)
        self.out.retain_grad()
        return torch.tanh(self.out)


def norms(model: Watched, power: int) -> tuple[np.ndarray, np.ndarray]:
    """l1 or l2 norms of the rows of dOut and In, In unfolded for a convolution."""
    x, g = model.x.detach(), model.out.grad
    if x.dim() == 4:
        conv = model.layer
        x = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).transpose(1, 2).flatten(0, 1)
        g = g.flatten(2).transpose(1, 2).flatten(0, 1)
    return tuple((t.abs() ** power).sum(0).numpy() ** (1 / power) for t in (g, x))


def one_update(model, layout, **options):
    """Train two steps and stop right before the update at step 2; returns what an oracle needs, then the update itself."""
    method = ow.methods.DSB(interval=2, end=10, drop_fraction=0.4, **options)
    sparsity = ow.sparsify(model, sparsity=0.6, layout=layout, method=method, kernel="reference")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    shape = (9, 24) if isinstance(model.layer, ow.nn.SparseLinear) else (3, 6, 9, 9)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(shape).double()
        (model(x) - 0.3).square().mean().backward()
        before = (model.layer.pattern, model.layer.dense_weight().detach().flatten(1).numpy().copy())
        optimizer.step()
    k = int(0.4 / 2 * (1 + math.cos(math.pi * 2 / 10)) * before[0].nnz)
    return before, k, model.layer.pattern, model.layer.dense_weight().detach().flatten(1).numpy()


LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "conv": lambda: nn.Conv2d(6, 16, 3, stride=2, padding=1, dilation=2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {"regroup": False},
        {"regroup": True},
        {"regroup": False, "lift": "mean", "norm": "l2"},
        {"regroup": False, "block_aware": False},
        {"regroup": False, "regrow": False},
        {"regroup": True, "lift": "mean"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("m", "n"), [(4, 3), (4, 6), (8, 1)])
def test_an_update_is_that_of_the_definition(layer, options, m, n):
    model = Watched(LAYERS[layer]()).double()
    layout = ow.layouts.ShuffledBlock(m, n)
    (old, weight), k, new, after = one_update(model, layout, **options)
    blocks = blocks_of(old, n)
    marked = smallest(weight, blocks, k)
    dropped = block_aware(marked, blocks) if options.get("block_aware", True) else marked
    active = {(i, j) for rows, cols in blocks for i in rows for j in cols}
    kept = active - dropped
    a, b = norms(model, 2 if options.get("norm") == "l2" else 1)
    grown = grown_by_norms(a, b, m, n, kept if options.get("regrow", True) else active, len(dropped))
    assert dropped
    assert grown
    score = np.zeros(old.shape)
    magnitude = [abs(weight[at]) for at in active]
    for at in kept:
        score[at] = abs(weight[at])
    for at in grown:
        score[at] = max(magnitude) if options.get("lift", "max") == "max" else np.mean(magnitude)
    rows = new.rows if options["regroup"] else old.rows
    groups = [tuple(group) for group in rows.tolist()]
    assert as_set(new, n) == greedy_blocks(score, groups, n, len(blocks))
    assert len(blocks_of(new, n)) == len(blocks)
    survivors = {(i, j) for rows, cols in blocks_of(new, n) for i in rows for j in cols} & active
    expected = np.zeros(old.shape)
    for at in survivors:
        expected[at] = weight[at]
    np.testing.assert_array_equal(after, expected)


def test_gradient_growth_takes_the_largest_gradients():
    """With one weight to a block nothing is re-formed, and what is left is RigL's choice."""
    model = Watched(nn.Linear(24, 32)).double()
    (old, weight), k, new, _ = one_update(model, ow.layouts.Unstructured(), grow="gradient", block_aware=False)
    gradient = (model.out.grad.T @ model.x).abs().numpy()
    mask = old.mask().numpy().ravel()
    active = np.flatnonzero(mask)
    mask[active[np.argsort(np.abs(weight.ravel()[active]))[:k]]] = False
    free = np.flatnonzero(~mask)
    mask[free[np.argsort(-gradient.ravel()[free])[:k]]] = True
    np.testing.assert_array_equal(new.mask().numpy().ravel(), mask)


def test_nothing_moves_where_nothing_is_dropped():
    """k' = 0: growth and re-blocking are left out (sec. 4), so that no weight falls without need."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).double()
    sparsity = ow.sparsify(
        model,
        sparsity=0.8,
        layout=ow.layouts.ShuffledBlock(8, 8),
        method=ow.methods.DSB(interval=1, end=100, drop_fraction=0.001),
        kernel="reference",
    )
    # Re-blocking these values would choose otherwise: the rows of a group are nothing alike.
    with torch.no_grad():
        model[0].values.copy_(torch.randn(model[0].values.shape).double() ** 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsity.attach(optimizer)
    before = model[0].pattern
    for _ in range(3):
        model(torch.randn(4, 64).double()).sum().backward()
        optimizer.step()
    assert sparsity.last_update_step == 2
    after = model[0].pattern
    assert torch.equal(before.rows, after.rows)
    assert torch.equal(before.cols, after.cols)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (12, 17)])
def test_the_frontier_visits_blocks_in_order_of_their_product(seed, shape):
    rng = np.random.default_rng(seed)
    a, b = (-np.sort(-rng.random(size)) for size in shape)
    if seed % 2:
        a, b = np.ceil(a * 3), np.floor(b * 3)  # ties and zeros
    order = list(block_order(a, b))
    assert sorted(order) == [(u, v) for u in range(shape[0]) for v in range(shape[1])]
    products = [a[u] * b[v] for u, v in order]
    assert products == sorted(products, reverse=True)


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (4, 3), (16, 16)])
@pytest.mark.parametrize("wanted", [1, 7, 40, 10**6])
def test_growth_stops_as_soon_as_enough_is_new(block, wanted):
    rng = np.random.default_rng(wanted)
    a, b = rng.random(13), rng.random(22)
    active = np.sort(rng.choice(13 * 22, 120, replace=False))
    taken = grow_blocks(a, b, block, active, wanted)
    kept = {(int(f) // 22, int(f) % 22) for f in active}
    flat = taken[taken >= 0]
    assert len(set(flat.tolist())) == len(flat)
    new = {(int(f) // 22, int(f) % 22) for f in flat} - kept
    assert new == grown_by_norms(a, b, *block, kept, wanted)


def test_the_block_sums_are_bounds_of_the_gradient():
    """|dW[i, j]| <= |dOut_i| |In_j|, the reason for growing by norms (sec. 4), with l1 and with the tighter l2."""
    x, g = torch.randn(20, 6), torch.randn(20, 5)
    gradient = (g.T @ x).abs()
    l1 = g.abs().sum(0)[:, None] * x.abs().sum(0)
    l2 = g.norm(dim=0)[:, None] * x.norm(dim=0)
    assert (gradient <= l2).all()
    assert (l2 <= l1).all()
