"""What every layout, method and backend promises at every step of a training."""

import math
from itertools import pairwise

import pytest
import torch
from combinations import (
    BACKENDS,
    LAYOUTS,
    METHODS,
    OPTIMIZERS,
    Net,
    batch,
    by_position,
    default_sparsity,
    positions,
    refused,
    start,
)

import openwork as ow

STEPS = 7

PACKED = [make for make in METHODS if make().home == "packed"]
MOVING = [make for make in METHODS if not isinstance(make(), ow.methods.Static)]

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
methods = pytest.mark.parametrize("method", METHODS, ids=lambda make: make.label)
backends = pytest.mark.parametrize("backend", BACKENDS)


def assert_structure(pattern: ow.Pattern, layout: ow.layouts.LayoutRule) -> None:
    """The promises of the format, checked in plain Python."""
    n_rows, n_cols = pattern.shape
    members = [r for group in pattern.rows.tolist() for r in group]
    real = sorted(r for r in members if r >= 0)
    if isinstance(layout, ow.layouts.Filter):
        assert len(set(real)) == len(real), "row groups are disjoint"
    else:
        assert real == list(range(n_rows)), "row groups are disjoint and complete"
    assert all(r >= 0 for r in members[: -pattern.height]), "only the last group is padded"
    offsets, cols = pattern.offsets.tolist(), pattern.cols.tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(cols)
    for first, stop in pairwise(offsets):
        own = cols[first:stop]
        assert first <= stop
        assert len(set(own)) == len(own), "the columns of a group are distinct"
        assert all(0 <= c < n_cols for c in own)
    for name in ("rows", "offsets", "cols"):
        assert getattr(pattern, name).dtype == torch.int32


def n_blocks(pattern: ow.Pattern, layout: ow.layouts.Layout) -> int:
    """Blocks of a layout that has them: whole runs of columns, the ragged last one counted as one."""
    return sum(-(-width // layout.block[1]) for width in pattern.offsets.diff().tolist())


def layout_of(layout: ow.layouts.LayoutRule, name: str, module: ow.nn.SparseModule) -> ow.layouts.Layout:
    """The layout of one layer."""
    return layout.for_layer(name, module.dense_dims)


@layouts
@methods
@backends
def test_counts_and_structure_hold_after_every_update(layout, method, backend):
    run = start(layout, method(), backend)
    sizes = {name: math.prod(module.shape) for name, module in run.sparsity.layers.items()}
    sparsity = default_sparsity(layout)
    wanted = {name: size - math.floor(sparsity * size + 1e-9) for name, size in sizes.items()}
    begun = {}
    # The counts of these are tests of their own.
    free = run.sparsity.method.home == "dense" or getattr(run.sparsity.method, "mode", None) == "soft"
    for name, module in run.sparsity.layers.items():
        pattern, own = module.pattern, layout_of(layout, name, module)
        if own.density is None and not free:
            unit = own.block[0] * own.block[1]
            if isinstance(layout, ow.layouts.KernelPattern):
                unit *= pattern.shape[0]  # a kernel more in every filter
            if getattr(layout, "balance", "layer") == "group":
                unit *= pattern.groups  # a column more in every group
            assert wanted[name] <= pattern.nnz < wanted[name] + unit, "exact to one unit, rounded up"
        begun[name] = (pattern.nnz, n_blocks(pattern, own), pattern.value_shape)
    for index in range(STEPS):
        run.step(index)
        held = run.sparsity.state_dict()["layers"]
        for name, module in run.sparsity.layers.items():
            pattern, own = module.pattern, layout_of(layout, name, module)
            assert_structure(pattern, layout)
            if "density" not in held[name]:
                own.check(pattern, held[name]["count"])
            if not free:
                assert (pattern.nnz, n_blocks(pattern, own), pattern.value_shape) == begun[name]
            assert len(positions(pattern)) == pattern.nnz
            padded = pattern.positions < 0
            assert not module.values[padded].any(), "padding stays 0"
            assert torch.isfinite(module.values).all()
    assert run.sparsity.step_count == STEPS
    assert all("density" not in layer for layer in run.sparsity.state_dict()["layers"].values())


def snapshot(run):
    """Pattern, values and optimizer state of every sparse layer, as copies."""
    taken = {}
    for name, module in run.sparsity.layers.items():
        state = run.optimizer.state.get(module.values, {})
        copies = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
        taken[name] = (module.pattern, module.values.detach().clone(), copies)
    return taken


def assert_carried(before, after):
    """Survivors keep value and state bit for bit; what is new is 0 in all of them."""
    (old, old_values, old_state), (new, new_values, new_state) = before, after
    assert set(old_state) == set(new_state)
    pairs = [(old_values, new_values)]
    for key, value in old_state.items():
        if isinstance(value, torch.Tensor) and value.shape == old_values.shape:
            assert value.dtype == new_state[key].dtype
            pairs.append((value, new_state[key]))
        else:
            assert bool(torch.as_tensor(value == new_state[key]).all())
    for was, now in pairs:
        held, holds = by_position(old, was), by_position(new, now)
        for position, entry in holds.items():
            assert entry == held.get(position, 0), "survivors bit for bit, new entries 0"


def steps_with_snapshots(run, n):
    """Train; yield what a topology step saw and what it left, for every step that the method says is one."""
    between = []
    if not run.sparsity.method.replaces_step:
        run.optimizer.register_step_post_hook(lambda *_: between.append(snapshot(run)))
    run.sparsity.attach(run.optimizer)
    for index in range(n):
        before = snapshot(run)
        due = run.sparsity.method.due(index)
        run.step(index)
        if due:
            yield (between[-1] if between else before), snapshot(run)


@layouts
@pytest.mark.parametrize("method", PACKED, ids=lambda make: make.label)
def test_survivors_keep_values_and_momentum(layout, method):
    run = start(layout, method(), BACKENDS[-1], attach=False)
    for before, after in steps_with_snapshots(run, STEPS):
        for name in before:
            assert_carried(before[name], after[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", [ow.layouts.Block(4, 4), ow.layouts.ShuffledBlock(3, 2)], ids=repr)
@pytest.mark.parametrize(
    "method", [make for make in PACKED if make in MOVING and make.label.endswith("()")], ids=lambda make: make.label
)
def test_every_optimizer_state_is_carried(layout, method, optimizer):
    run = start(layout, method(), BACKENDS[-1], optimizer=optimizer, attach=False)
    updates = 0
    for before, after in steps_with_snapshots(run, 5):
        updates += 1
        for name in before:
            assert before[name][2], "the optimizer keeps state by now"
            assert_carried(before[name], after[name])
    assert updates == 2


@layouts
@pytest.mark.parametrize("method", MOVING, ids=lambda make: make.label)
def test_dropping_moves_something_where_there_is_room(layout, method):
    """The trap: what is projected apart may be regrown at once, and the topology freezes."""
    run = start(layout, method(), BACKENDS[-1])
    moved = dict.fromkeys(run.sparsity.layers, 0)
    for index in range(STEPS):
        before = {name: positions(module.pattern) for name, module in run.sparsity.layers.items()}
        run.step(index)
        if not run.sparsity.method.due(index):
            continue
        assert run.sparsity.last_update_step == index
        for name, module in run.sparsity.layers.items():
            gone = before[name] - positions(module.pattern)
            come = positions(module.pattern) - before[name]
            change = run.sparsity.last_update[name]
            assert (change.dropped, change.grown) == (len(gone), len(come))
            moved[name] += len(gone)
    # Of fewer than four units a share of 0.3 is none.
    units = {name: len(layout_of(layout, name, module).atoms(module.pattern)) for name, module in run.sparsity.layers.items()}
    assert max(units.values()) >= 4
    if isinstance(layout, ow.layouts.KernelPattern):
        del units["first"]  # all kernels of its three channels are active
    # GSE draws a pair for each unit; of a few, all may hit active ones.
    few = 8 if isinstance(run.sparsity.method, ow.methods.GSE) else 4
    frozen = [name for name, held in units.items() if moved[name] == 0 and held >= few]
    assert not frozen, f"nothing moved in {frozen}"


@layouts
@methods
@backends
def test_same_seed_same_topology(layout, method, backend):
    first, second, other = (start(layout, method(), backend, seed=seed) for seed in (3, 3, 4))
    # A clustered layout, or a method that keeps all weights, begins with what the weights say, whatever the seed.
    assert (
        getattr(layout, "cluster", False)
        or method().home == "dense"
        or any(
            positions(a.pattern) != positions(b.pattern)
            for a, b in zip(first.sparsity.layers.values(), other.sparsity.layers.values(), strict=True)
        )
    )
    for index in range(5):
        first.step(index)
        torch.rand(3)  # the global random state must not matter
        second.step(index)
    for a, b in zip(first.sparsity.layers.values(), second.sparsity.layers.values(), strict=True):
        for name in ("rows", "offsets", "cols", "values"):
            assert torch.equal(getattr(a, name), getattr(b, name))


@methods
def test_the_global_random_state_is_left_alone(method):
    for layout in LAYOUTS:
        if refused(layout, method()):
            continue
        torch.manual_seed(7)
        model = Net()
        before = torch.get_rng_state()
        sparsity = ow.sparsify(
            model, sparsity=default_sparsity(layout), budget="uniform", layout=layout, method=method(), kernel="reference"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsity.attach(optimizer)
        for index in range(4):
            model(batch(index)[0]).square().sum().backward()
            optimizer.step()
        assert torch.equal(before, torch.get_rng_state())
