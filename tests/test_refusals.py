"""Bad input: an error that names argument, value and what is allowed, and a model that is as it was."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import openwork as ow


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Conv1d(1, 1, 1), nn.Linear(16, 8), nn.BatchNorm1d(8))


class Unchanged:
    """Asserts that a model and everything around it is the same afterwards: modules, parameters, bytes, hooks."""

    def __init__(self, *things):
        self.things = things

    def picture(self):
        seen = []
        for thing in self.things:
            if isinstance(thing, nn.Module):
                seen += [(name, id(module), type(module), module.training) for name, module in thing.named_modules()]
                seen += [(name, id(p), p.requires_grad, p.dtype) for name, p in thing.named_parameters(remove_duplicate=False)]
                seen += [len(module._forward_hooks) for module in thing.modules()]
            elif isinstance(thing, torch.optim.Optimizer):
                seen += [len(thing._optimizer_step_pre_hooks), len(thing._optimizer_step_post_hooks)]
            else:
                seen += [thing.step_count, thing.last_update_step, list(thing.layers)]
            seen.append(self.frozen(thing.state_dict()))
        return seen

    def frozen(self, value):
        if isinstance(value, torch.Tensor):
            return value.detach().clone().numpy().tobytes(), tuple(value.shape)
        if isinstance(value, dict):
            return {key: self.frozen(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.frozen(entry) for entry in value]
        return value

    def __enter__(self):
        self.before = self.picture()

    def __exit__(self, *error):
        assert self.picture() == self.before


BAD = [
    ({"sparsity": 0}, r"sparsity=0 .*between 0 and 1"),
    ({"sparsity": 1}, r"sparsity=1 .*between 0 and 1"),
    ({"sparsity": 0.0}, r"sparsity=0\.0.*between 0 and 1"),
    ({"sparsity": 1.0}, r"sparsity=1\.0"),
    ({"sparsity": -0.5}, r"sparsity=-0\.5"),
    ({"sparsity": 90}, r"sparsity=90"),
    ({"sparsity": float("nan")}, r"sparsity=nan"),
    ({"sparsity": float("inf")}, r"sparsity=inf"),
    ({"sparsity": "0.9"}, r"sparsity='0\.9'"),
    ({"sparsity": None}, r"sparsity=None"),
    ({"sparsity": True}, r"sparsity=True"),
    ({"sparsity": [0.5]}, r"sparsity=\[0\.5\]"),
    ({"sparsity": 1 - 1e-9}, r"sparsity=0\.999999999"),
    ({"layout": "blocks(2)"}, r"layout='blocks\(2\)'.*Block, Channel"),
    ({"layout": 4}, r"layout=4.*Block"),
    ({"layout": "block()"}, r"layout='block\(\)'"),
    ({"layout": ow.layouts.Block}, r"layout=<class"),
    ({"layout": ow.methods.Static()}, r"layout=Static\(\)"),
    ({"layout": "block(64, 64)"}, r"Block\(m=64, n=64\).*12"),
    ({"method": "adam"}, r"method='adam'.*DSB, GSE, MEST, RigL, SET, Static"),
    ({"method": None}, r"method=None.*DSB"),
    ({"method": "dsb(alpha=3)"}, r"method='dsb\(alpha=3\)'.*drop_fraction"),
    ({"method": "set(interval=0)"}, r"interval=0"),
    ({"budget": "erdos"}, r"budget='erdos'.*uniform, erdos_renyi, erk"),
    ({"budget": 3}, r"budget=3.*uniform, erdos_renyi, erk"),
    ({"budget": None}, r"budget=None"),
    ({"budget": {"0": 1.5}}, r"1\.5.*'0'.*\[0, 1\]"),
    ({"budget": {"nothing": 0.5}}, r"budget names 'nothing'.*0, 3"),
    ({"budget": {"*": 0.9}}, r"sparsity=0\.5 cannot be met"),
    ({"budget": lambda shapes, sparsity, fixed: {}}, r"budget=.*gave no density.*0, 3"),
    ({"budget": lambda shapes, sparsity, fixed: dict.fromkeys(shapes, 2.0)}, r"budget=.*\[0, 1\].*0, 3"),
    ({"densities": {"0": 1.0, "3": 1.0}}, r"sparsity=0\.5 cannot be met"),
    ({"densities": {"0": -1}}, r"-1.*'0'"),
    ({"densities": {"x": 0.5}}, r"densities names 'x'.*0, 3"),
    ({"densities": {"0": "half"}}, r"'half'.*'0'"),
    ({"exclude": ["7"]}, r"exclude names '7'"),
    ({"exclude": "0"}, r"exclude='0'"),
    ({"exclude": ["0", "3"]}, r"no layer"),
    ({"exclude": 3}, r"exclude=3"),
    ({"force": [3]}, r"force"),
    ({"seed": "abc"}, r"seed='abc'"),
    ({"seed": 1.5}, r"seed=1\.5"),
    ({"kernel": "gpu"}, r"kernel='gpu'.*reference"),
    ({"kernel": 3}, r"kernel=3"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_sparsify_refuses(bad, message):
    model = make_model()
    good = {"sparsity": 0.5, "layout": "block(2, 2)", "method": "rigl", "kernel": "reference"}
    with Unchanged(model), pytest.raises((ValueError, TypeError), match=message):
        ow.sparsify(model, **{**good, **bad})


def test_numbers_of_other_libraries_are_numbers():
    for sparsity in (np.float32(0.5), np.float64(0.5)):
        ow.sparsify(make_model(), sparsity=sparsity, layout="block(2, 2)", method="rigl", kernel="reference")


def test_a_kernel_that_cannot_take_the_dtype():
    model = make_model().double()
    with Unchanged(model), pytest.raises(ValueError, match=r"kernel='cpu'"):
        ow.sparsify(model, sparsity=0.5, layout="block(2, 2)", method="rigl", kernel="cpu")


def test_something_that_is_no_model():
    with pytest.raises(TypeError, match="model="):
        ow.sparsify([nn.Linear(2, 2)], sparsity=0.5, layout="block(2, 2)", method="rigl")


def test_too_little_for_a_single_unit():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    zero = {"0": 0.0}
    made = ow.sparsify(model, sparsity=0.9, layout="block(4, 4)", method="static", densities=zero, kernel="reference")
    assert made.layers["0"].pattern.nnz == 0


def made(method="rigl", **options):
    model = make_model()
    sparsity = ow.sparsify(model, sparsity=0.5, layout="block(2, 2)", method=method, kernel="reference", **options)
    return model, sparsity


def test_an_optimizer_that_does_not_own_the_values():
    dense = make_model()
    old = torch.optim.SGD(dense.parameters(), lr=0.1)
    sparsity = ow.sparsify(dense, sparsity=0.5, layout="block(2, 2)", method="rigl", kernel="reference")
    with Unchanged(dense, sparsity, old), pytest.raises(ValueError, match=r"optimizer does not own.*0, 3.*after sparsify"):
        sparsity.attach(old)
    partly = torch.optim.SGD(dense[3].parameters(), lr=0.1)
    with Unchanged(dense, sparsity, partly), pytest.raises(ValueError, match=r"optimizer does not own the weights of 0;"):
        sparsity.attach(partly)
    # What failed leaves no trace: the right optimizer still attaches.
    sparsity.attach(torch.optim.SGD(dense.parameters(), lr=0.1))


@pytest.mark.parametrize("wrong", [None, "sgd", [1], nn.Linear(2, 2)])
def test_attaching_to_what_is_no_optimizer(wrong):
    model, sparsity = made()
    with Unchanged(model, sparsity), pytest.raises(TypeError, match="optimizer="):
        sparsity.attach(wrong)


def test_attaching_twice():
    model, sparsity = made()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    sparsity.attach(first)
    for optimizer in (first, second):
        with Unchanged(model, sparsity, first, second), pytest.raises(RuntimeError, match="attach was called before"):
            sparsity.attach(optimizer)


def test_attaching_without_the_length_that_the_method_needs():
    model, sparsity = made(ow.methods.RigL(end=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Unchanged(model, sparsity, optimizer), pytest.raises(ValueError, match=r"end=0\.5.*total_steps"):
        sparsity.attach(optimizer)
    sparsity.method.total_steps = 10
    sparsity.attach(optimizer)


def trained(steps=3, layout="block(2, 2)", method=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))
    method = ow.methods.SET(interval=1, end=100) if method is None else method
    sparsity = ow.sparsify(model, sparsity=0.5, layout=layout, method=method, kernel="reference")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    for _ in range(steps):
        model(torch.randn(3, 12)).square().sum().backward()
        optimizer.step()
    return model, sparsity, optimizer


def change(state, path, value):
    """A deep copy of the state with one entry replaced, or taken out where ``value`` is ``del``."""
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if value is del_:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value
    return state


def del_():
    """Marks an entry to take out."""


def poked(index, value):
    def poke(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[index] = value
        return tensor

    return poke


GARBLED = [
    (("step_count",), del_, "lacks step_count"),
    (("generator",), del_, "lacks generator"),
    (("layers",), del_, "lacks layers"),
    (("layers", "2"), del_, r"another model.*lacks \['2'\]"),
    (("layers", "9"), {}, r"another model.*\['9'\]"),
    (("layers",), 3, "layers"),
    (("layers",), None, "layers"),
    (("layers", "2"), None, "'2'"),
    (("layers", "2", "cols"), del_, "'2' lacks cols"),
    (("layers", "2", "layout"), "Block(m=4, n=4)", r"'2'.*another model.*Block\(m=4, n=4\)"),
    (("layers", "2", "shape"), [8, 17], r"'2'.*another model.*\[8, 17\]"),
    (("layers", "2", "shape"), 8, "'2'"),
    (("layers", "2", "count"), lambda n: n + 1, "'2' is damaged"),
    (("layers", "2", "count"), "many", "'2'"),
    (("layers", "2", "count"), None, "'2'"),
    (("layers", "2", "cols"), lambda t: t[:-1], "'2' is damaged"),
    (("layers", "2", "cols"), lambda t: t.float(), "'2' is damaged"),
    (("layers", "2", "cols"), poked(0, 999), "'2' is damaged"),
    (("layers", "2", "cols"), poked(0, -4), "'2' is damaged"),
    (("layers", "2", "cols"), lambda t: t.flip(0), "'2' is damaged"),
    (("layers", "2", "cols"), lambda t: t.tolist(), "'2'"),
    (("layers", "2", "rows"), lambda t: t.flip(0), "'2' is damaged"),
    (("layers", "2", "rows"), lambda t: t.view(-1, 1), "'2' is damaged"),
    (("layers", "2", "rows"), lambda t: t.flatten(), "'2' is damaged"),
    (("layers", "2", "rows"), None, "'2'"),
    (("layers", "2", "offsets"), poked(-1, 10**6), "'2' is damaged"),
    (("layers", "2", "offsets"), poked(1, 10**6), "'2' is damaged"),
    (("layers", "2", "offsets"), lambda t: t[:0], "'2' is damaged"),
    (("layers", "2", "gradients"), 3, "'2' is damaged: its gradients"),
    (("layers", "2", "gradients"), {"total": torch.zeros(1), "steps": 1}, "'2' is damaged: its gradients"),
    (("layers", "2", "density"), 0.5, "'2' is damaged: all of its weight was trained"),
    (("generator",), lambda t: t[:10], "generator"),
    (("generator",), lambda t: t.float(), "generator"),
    (("generator",), "random", "generator"),
    (("generator",), None, "generator"),
    (("step_count",), "three", "step_count='three'"),
    (("step_count",), None, "step_count=None"),
    (("step_count",), -1, "step_count=-1"),
    (("step_count",), 1.5, r"step_count=1\.5"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), GARBLED, ids=[f"{'.'.join(path)}-{i}" for i, (path, *_) in enumerate(GARBLED)]
)
def test_a_garbled_state_is_refused_whole(path, value, message):
    _, source, _ = trained(steps=3)
    state = change(source.state_dict(), path, value)
    model, sparsity, optimizer = trained(steps=1)
    with Unchanged(model, sparsity, optimizer), pytest.raises((ValueError, TypeError), match=message):
        sparsity.load_state_dict(state)


@pytest.mark.parametrize("wrong", [None, [], "state", {}, {"a": 1}])
def test_what_is_no_state(wrong):
    model, sparsity, optimizer = trained(steps=1)
    with Unchanged(model, sparsity, optimizer), pytest.raises((ValueError, TypeError), match="state"):
        sparsity.load_state_dict(wrong)


@pytest.mark.parametrize("other", ["unstructured", "block(2, 4)", "shuffled_block(2, 2)", "out_vector(2)"])
def test_a_state_of_another_layout(other):
    _, source, _ = trained(layout=other)
    model, sparsity, optimizer = trained(steps=1)
    with Unchanged(model, sparsity, optimizer), pytest.raises(ValueError, match="another model"):
        sparsity.load_state_dict(source.state_dict())


def test_a_truncated_file():
    model, sparsity, optimizer = trained(steps=2)
    file = io.BytesIO()
    torch.save(sparsity.state_dict(), file)
    blob = file.getvalue()
    for length in (0, 10, len(blob) // 2, len(blob) - 1):
        with Unchanged(model, sparsity, optimizer), pytest.raises((RuntimeError, EOFError, ValueError)):
            sparsity.load_state_dict(torch.load(io.BytesIO(blob[:length]), weights_only=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cols", poked(0, 999)),
        ("cols", lambda t: t[:-1]),
        ("cols", lambda t: t.double()),
        ("rows", poked(0, 1)),
        ("rows", lambda t: t.flatten()),
        ("offsets", poked(-1, 3)),
        ("values", lambda t: t[:-1]),
        ("values", lambda t: t.t()),
    ],
)
def test_a_garbled_module_state_leaves_the_layer(key, value):
    model, _, _ = trained()
    state = change(dict(model[0].state_dict()), (key,), value)
    layer = trained(steps=1)[0][0]
    with Unchanged(layer), pytest.raises(RuntimeError, match=r"pattern|shape"):
        layer.load_state_dict({name: state[name] for name in state if name != "bias"}, strict=False)


def test_the_dense_state_of_the_same_model_is_refused():
    model, _, _ = trained()
    dense = copy.deepcopy(model)
    ow.densify(dense)
    with pytest.raises(RuntimeError, match=r"0\.values"):
        model.load_state_dict(dense.state_dict())
