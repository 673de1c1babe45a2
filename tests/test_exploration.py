"""The exploration rate, recounted with whole masks."""

import io

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.analysis import Exploration, layer_sparsity


def explored(layout="unstructured", method=None, shape=(7, 9)):
    """A model of two layers whose size is no multiple of 8, with an optimizer attached."""
    model = nn.Sequential(nn.Linear(shape[1], shape[0]), nn.Tanh(), nn.Linear(shape[0], 5))
    sparsity = ow.sparsify(
        model, sparsity=0.6, layout=layout, method=method or ow.methods.SET(interval=1, total_steps=100), kernel="reference"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity.attach(optimizer)

    def step():
        optimizer.zero_grad()
        model(torch.randn(4, shape[1])).square().sum().backward()
        optimizer.step()

    return model, sparsity, step


@pytest.mark.parametrize(
    ("layout", "method"),
    [("unstructured", None), ("out_vector(3)", None), ("shuffled_block(3, 2)", ow.methods.DSB(interval=1))],
)
def test_rates_are_those_of_the_union_of_masks(layout, method):
    _, sparsity, step = explored(layout, method)
    exploration = Exploration(sparsity.layers)
    ever = {name: module.pattern.mask() for name, module in sparsity.layers.items()}
    first = exploration.rates
    for _ in range(6):
        step()
        exploration.update()
        for name, module in sparsity.layers.items():
            ever[name] |= module.pattern.mask()
        assert exploration.rates == {name: int(mask.sum()) / mask.numel() for name, mask in ever.items()}
    total = sum(int(mask.sum()) for mask in ever.values()), sum(mask.numel() for mask in ever.values())
    assert exploration.rate == total[0] / total[1]
    assert sum(exploration.rates.values()) > sum(first.values())


def test_it_starts_with_the_first_topology_and_a_static_one_stays_there():
    model, sparsity, step = explored(method="static")
    exploration = Exploration(sparsity.layers)
    density = {name: module.pattern.nnz / (module.shape[0] * module.shape[1]) for name, module in sparsity.layers.items()}
    assert exploration.rates == density
    step()
    exploration.update()
    assert exploration.rates == density
    assert layer_sparsity(model) == {name: 1 - share for name, share in density.items()}
    printed = str(exploration)
    assert f"{1 - density['0']:.4f}" in printed
    assert f"{density['0']:.4f}" in printed


def test_it_takes_one_bit_a_weight():
    _, sparsity, _ = explored()
    assert Exploration(sparsity.layers).nbytes == -(-63 // 8) + -(-35 // 8)


def test_resumed_it_goes_on_as_if_never_stopped():
    _, sparsity, step = explored()
    exploration = Exploration(sparsity.layers)
    for _ in range(3):
        step()
        exploration.update()
    file = io.BytesIO()
    torch.save(exploration.state_dict(), file)
    file.seek(0)
    fresh = Exploration(sparsity.layers)
    assert fresh.rate < exploration.rate
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.rates == exploration.rates
    step()
    exploration.update()
    fresh.update()
    assert fresh.rates == exploration.rates
    # A saved state is a copy.
    saved = exploration.state_dict()
    before = {name: held["ever"].clone() for name, held in saved["layers"].items()}
    for _ in range(3):
        step()
        exploration.update()
    assert all(torch.equal(held["ever"], before[name]) for name, held in saved["layers"].items())


def damaged(state, **changes):
    return {"layers": {**state["layers"], "0": {**state["layers"]["0"], **changes}}}


def test_wrong_states_are_refused_and_change_nothing():
    _, sparsity, _ = explored()
    exploration = Exploration(sparsity.layers)
    good = exploration.state_dict()
    beyond = good["layers"]["0"]["ever"].clone()
    beyond[-1] |= 128  # the 64th of 63 weights
    wrong = [
        (3, "lacks layers"),
        ({"layers": {}}, "of another model"),
        (damaged(good, shape=[9, 7]), "has shape"),
        (damaged(good, ever=torch.zeros(8)), "must be uint8 of length 8"),
        (damaged(good, ever=torch.zeros(9, dtype=torch.uint8)), "must be uint8 of length 8"),
        (damaged(good, ever=beyond), "beyond the last of 63"),
        ({"layers": {**good["layers"], "2": {}}}, "lacks shape or ever"),
    ]
    before = exploration.rates
    for state, message in wrong:
        with pytest.raises(ValueError, match=message):
            exploration.load_state_dict(state)
        assert exploration.rates == before
