"""Stopping and going on is the same as never having stopped, bit for bit, whatever is loaded first."""

import io
import itertools

import pytest
import torch
from combinations import BACKENDS, LAYOUTS, METHODS, start

LENGTH = 7
ORDERS = list(itertools.permutations(("model", "optimizer", "sparsity")))


def saved(run):
    """All three states as bytes, as a checkpoint holds them."""
    file = io.BytesIO()
    torch.save({name: getattr(run, name).state_dict() for name in ("model", "optimizer", "sparsity")}, file)
    return file.getvalue()


def restore(run, blob, order):
    states = torch.load(io.BytesIO(blob), weights_only=True)
    for name in order:
        getattr(run, name).load_state_dict(states[name])


def assert_same(left, right):
    """Every tensor and number of the three states is the same."""
    for name in ("model", "optimizer", "sparsity"):
        assert_equal(getattr(left, name).state_dict(), getattr(right, name).state_dict(), name)


def assert_equal(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def check_resume(layout, method, backend, optimizer, cuts):
    """``cuts``: pairs of a step to stop before and an order to load in."""
    whole = start(layout, method(), backend, optimizer=optimizer)
    blobs = []
    losses = []
    for index in range(LENGTH):
        blobs.append(saved(whole))
        losses.append(whole.step(index))
    for cut, order, attached_first in cuts:
        # Another seed: nothing of the topology may come from anywhere but the states.
        run = start(layout, method(), backend, optimizer=optimizer, seed=99, attach=attached_first)
        restore(run, blobs[cut], order)
        if not attached_first:
            run.sparsity.attach(run.optimizer)
        assert [run.step(index) for index in range(cut, LENGTH)] == losses[cut:]
        assert_same(run, whole)


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
@pytest.mark.parametrize("method", METHODS, ids=lambda make: make.label)
@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_is_exact_for_every_combination(layout, method, backend):
    # Right before a topology step (2) and right after one (3, 5), each with another order of loading.
    cuts = [(cut, ORDERS[cut % len(ORDERS)], bool(cut % 2)) for cut in (2, 3, 5)]
    check_resume(layout, method, backend, "sgd", cuts)


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
@pytest.mark.parametrize("method", [make for make in METHODS if make.label in ("SET()", "DSB()")], ids=lambda make: make.label)
def test_resume_is_exact_in_every_order_from_every_step(method, order):
    layout = next(layout for layout in LAYOUTS if type(layout).__name__ == "ShuffledBlock")
    cuts = [(cut, order, attached_first) for attached_first in (True, False) for cut in range(attached_first, LENGTH, 2)]
    check_resume(layout, method, BACKENDS[-1], "adam", cuts)


def test_a_state_does_not_change_with_the_run_it_came_from():
    run = start(LAYOUTS[0], METHODS[0](), "reference")
    state = run.sparsity.state_dict()
    frozen = io.BytesIO()
    torch.save(state, frozen)
    for index in range(5):
        run.step(index)
    assert_equal(state, torch.load(io.BytesIO(frozen.getvalue()), weights_only=True), "state")


def test_loading_into_a_run_in_progress_takes_it_back():
    layout, method = LAYOUTS[-1], METHODS[0]
    run = start(layout, method(), "reference")
    for index in range(2):
        run.step(index)
    blob = saved(run)
    first = [run.step(index) for index in range(2, LENGTH)]
    restore(run, blob, ("sparsity", "optimizer", "model"))
    assert [run.step(index) for index in range(2, LENGTH)] == first
