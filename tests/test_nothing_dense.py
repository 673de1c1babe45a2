"""Weights, gradients, optimizer state and temporaries exist only for active connections: counted, not believed."""

from __future__ import annotations

import gc
import importlib
import math
import tracemalloc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import openwork as ow
from openwork.kernels import available

SIZE, SPARSITY = 4096, 0.95
BUDGET = 64 * 2**20

native = pytest.mark.skipif("cpu" not in available(), reason="openwork._native is not built; the reference kernel is dense")


class Watcher(TorchDispatchMode):
    """Sees every tensor that an operator returns: the largest, and the bytes alive at the same time at most.

    While ``tracemalloc`` runs, NumPy's arrays count too: between two operators torch's share does not change, so the sum of
    that and NumPy's own peak since the last one is exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.live = 0
        self.peak = 0
        self.storages: dict[int, int] = {}

    def settle(self):
        """Take in what NumPy allocated since the last operator."""
        arrays = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else 0
        self.peak = max(self.peak, self.live + arrays)
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.settle()
        out = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
                self.track(leaf.untyped_storage(), known)
        return out

    def track(self, storage, known):
        key = storage._cdata
        if key in known or key in self.storages:
            return
        size = self.storages[key] = storage.nbytes()
        self.live += size
        self.settle()
        weakref.finalize(storage, self.release, key)

    def release(self, key):
        self.live -= self.storages.pop(key, 0)


def mlp(layout, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))
    sparsity = ow.sparsify(model, sparsity=SPARSITY, layout=layout, method=method, kernel="cpu")
    return model, sparsity


def n_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step(model, optimizer, zero=True):
    model(torch.randn(8, SIZE)).square().mean().backward()
    optimizer.step()
    if zero:
        optimizer.zero_grad()


@native
@pytest.mark.parametrize("layout", ["unstructured", "shuffled_block(16, 16)"])
def test_a_large_mlp_stores_what_is_active_and_trains_without_a_dense_tensor(layout):
    model, sparsity = mlp(layout, ow.methods.Static())
    optimizer = torch.optim.Adam(model.parameters())
    sparsity.attach(optimizer)
    step(model, optimizer)
    watcher = Watcher()
    with watcher:
        step(model, optimizer, zero=False)
    assert watcher.largest < SIZE * SIZE // 4, "no tensor of R x C elements, nor of a good part of that"
    dense = 2 * (SIZE * SIZE + SIZE) * 4
    parameters = n_bytes(model.parameters())
    gradients = n_bytes(p.grad for p in model.parameters())
    states = n_bytes(t for state in optimizer.state.values() for t in state.values())
    indices = n_bytes(model.buffers())
    assert parameters <= 1.05 * (1 - SPARSITY) * dense
    assert parameters + gradients + states <= 1.05 * (1 - SPARSITY) * 4 * dense
    active = sum(module.pattern.nnz for module in sparsity.layers.values())
    # 4 bytes a weight and 4 a row for CSR; a 16th of that for blocks.
    assert indices <= (active * 4 if layout == "unstructured" else active * 4 // 16) + 2 * 4 * (3 * SIZE + 2)
    stored = sum(row.stored_bytes for row in sparsity.report().rows)
    kept = sum(module.kept_bytes for module in sparsity.layers.values())
    assert stored == indices + kept + n_bytes(module.values for module in sparsity.layers.values())
    # For single rows a cut index of 16-bit columns and of order, with an offset for every row and window: for both layers'
    # outputs and the one gradient of an input that is wanted.  Nothing for blocks.
    first, second = (module.pattern.nnz for module in sparsity.layers.values())
    width = importlib.import_module("openwork._native").segment_width(8)
    cut = 6 * (first + 2 * second) + 3 * 4 * (SIZE * -(-SIZE // width) + 1)
    assert kept == (cut if layout == "unstructured" else 0)
    held = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    held = [tensor for tensor in held if not isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)]
    assert all(tensor.numel() < SIZE * SIZE for tensor in held), "nothing dense is left over from the model that was handed in"


METHODS = {
    "SET": lambda: ow.methods.SET(interval=2, end=100),
    "RigL": lambda: ow.methods.RigL(interval=2, end=100),
    "MEST": lambda: ow.methods.MEST(interval=2, end=100),
    "GSE": lambda: ow.methods.GSE("graest", interval=2, end=100),
    "DSB": lambda: ow.methods.DSB(interval=2, end=100),
    "DSB, lift=mean": lambda: ow.methods.DSB(interval=2, end=100, lift="mean", norm="l2"),
}


@native
@pytest.mark.parametrize(
    ("layout", "method"),
    [
        ("unstructured", "SET"),
        ("unstructured", "RigL"),
        ("unstructured", "MEST"),
        ("unstructured", "GSE"),
        ("channel", "RigL"),
        ("filter", "GSE"),
        ("out_vector(8)", "RigL"),
        ("out_vector(8, balance='group')", "RigL"),
        ("out_vector(8, balance='group')", "SET"),
        ("shuffled_block(16, 16)", "SET"),
        ("shuffled_block(16, 16)", "RigL"),
        ("shuffled_block(16, 16)", "DSB"),
        ("shuffled_block(16, 16)", "DSB, lift=mean"),
        ("block(16, 16)", "DSB"),
    ],
)
def test_a_topology_step_stays_within_its_budget(layout, method):
    """Similarity and dense gradients included, the new values, indices and momentum too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE))
    sparsity = ow.sparsify(model, sparsity=SPARSITY, layout=layout, method=METHODS[method](), kernel="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    for _ in range(2):
        step(model, optimizer)
    model(torch.randn(8, SIZE)).square().mean().backward()
    gc.collect()
    watcher = Watcher()
    tracemalloc.start()
    with watcher:
        optimizer.step()
    watcher.settle()
    tracemalloc.stop()
    assert sparsity.last_update_step == 2
    assert watcher.largest < SIZE * SIZE
    assert watcher.peak <= BUDGET, f"{watcher.peak / 2**20:.1f} MB"


def test_the_watcher_sees_what_it_should():
    with Watcher() as watcher:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b.clone()
        c.add_(1)
    assert watcher.largest == 1000
    assert watcher.peak == 8000
    assert math.isclose(float(c.sum()), 2000)
