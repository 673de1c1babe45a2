"""Every layout and every method through ``openwork train``: understood from flags and from YAML, trained, and gone on with."""

import inspect
import signal

import pytest
import torch
import yaml
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.layouts import Layout, LayoutRule
from openwork.methods import Method
from openwork.train.arguments import parse
from openwork.train.checkpoint import read_checkpoint
from openwork.train.classifier import Classifier
from openwork.train.facts import Facts


class Net(nn.Module):
    """A layer for every kind of layout: 3 x 3, 1 x 1 and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.first(x))))
        return self.head(torch.relu(self.point(x)).flatten(1))


BASE = [
    "--model", f"{Net.__module__}.Net", "--batch_size", "400", "--epochs", "2", "--progress", "false", "--kernel", "reference",
    "--device", "cpu", "--dense_twin", "false", "--checkpoint_every", "1",
]  # fmt: skip

LAYOUTS = {
    "Unstructured": [],
    "Block": ["--layout.m", "2", "--layout.n", "2"],
    "ShuffledBlock": ["--layout.m", "2", "--layout.n", "2"],
    "OutVector": ["--layout.v", "2"],
    "ShuffledVector": ["--layout.v", "2"],
    "Channel": [],
    "Filter": [],
    "KernelPattern": ["--layout.patterns", "mest-release"],
    "NM": ["--layout.n", "2", "--layout.m", "4"],
    "TransposableNM": ["--layout.n", "2", "--layout.m", "4"],
    "Complementary": ["--layout.k", "2", "--layout.distance", "2", "--layout.axis", "out"],
    "PerLayer": [
        "--layout.layouts",
        "{3x3: kernel_pattern, 1x1: 'block(4, 1)', head: {class_path: OutVector, init_args: {v: 2}}}",
    ],
}

METHODS = {
    "Static": [[]],
    "SET": [["--method.interval", "2"]],
    "RigL": [["--method.interval", "2", "--method.end", "0.9"]],
    "DSB": [["--method.interval", "2"], ["--method.interval", "2", "--method.regroup", "2", "--method.grow", "gradient"]],
    "MEST": [
        ["--method.interval", "2"],
        ["--method.interval", "2", "--method.mode", "soft", "--method.milestones", "[2, 0.6]", "--method.end", "5"],
        ["--method.interval", "2", "--method.mode", "constant", "--method.gradient_weight", "0"],
    ],
    "GSE": [
        ["--method.interval", "2"],
        ["--method.interval", "2", "--method.sampling", "grabo", "--method.subset", "2"],
        ["--method.interval", "2", "--method.sampling", "graest", "--method.scope", "global"],
    ],
}


def test_every_layout_is_tried():
    known = {name for name, kind in vars(ow.layouts).items() if inspect.isclass(kind) and issubclass(kind, LayoutRule)}
    assert set(LAYOUTS) == {name for name in known if not inspect.isabstract(getattr(ow.layouts, name))}
    assert {type(parse(["--layout", name, *rest])[0].layout).__name__ for name, rest in LAYOUTS.items()} == set(LAYOUTS)


def stopped_and_resumed(folder, monkeypatch, arguments):
    """Stopped after its third step and gone on with; ``(stopped, whole)`` folders."""
    whole = folder / "whole"
    assert main(["train", *BASE, "--run_dir", str(whole), *arguments]) == 0
    plain, done = Classifier.training_step, []

    def training_step(self, batch, batch_idx):
        done.append(1)
        if len(done) == 3:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", training_step)
        assert main(["train", *BASE, "--run_dir", str(folder / "stopped"), *arguments]) == 128 + signal.SIGTERM
    assert main(["train", "--resume", str(folder / "stopped")]) == 0
    return folder / "stopped", whole


def check(folder, monkeypatch, arguments):
    stopped, whole = stopped_and_resumed(folder, monkeypatch, arguments)
    for name in ("layers.csv", "topology.csv", "run.json"):
        assert (whole / name).exists() == (stopped / name).exists()
        if (whole / name).exists():
            assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
    facts = Facts.read(whole)
    assert facts.formulas is not None
    assert facts.training is not None
    assert main(["inspect", str(whole)]) == 0
    return facts


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_and_resumes(tmp_path, monkeypatch, name):
    share = "0.5" if name in ("NM", "TransposableNM", "Complementary") else "0.7"
    common = ["--method", "SET", "--method.interval", "2", "--budget", "uniform", "--sparsity", share]
    facts = check(tmp_path, monkeypatch, ["--layout", name, *LAYOUTS[name], *common])
    kind = {"PerLayer": "KernelPattern", "ShuffledVector": "ShuffledBlock"}.get(name, name)
    layouts = {row.layer: row.layout for row in facts.report.rows}
    assert layouts["wide"].startswith(kind)
    if name == "PerLayer":
        assert (layouts["point"], layouts["head"]) == ("Block(m=4, n=1)", "OutVector(v=2)")


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, every in METHODS.items() for options in every])
def test_every_method_trains_and_resumes(tmp_path, monkeypatch, name, options):
    layout = (
        ["--layout", "ShuffledBlock", "--layout.m", "2", "--layout.n", "2"] if name == "DSB" else ["--layout", "Unstructured"]
    )
    facts = check(tmp_path, monkeypatch, [*layout, "--method", name, *options, "--sparsity", "0.7"])
    assert str(facts.settings["method"]).startswith(f"{name}(")


def test_layouts_by_layer_from_a_yaml_file(tmp_path):
    block = {"class_path": "Block", "init_args": {"m": 4, "n": 1}}
    layers = {"3x3": "kernel_pattern", "conv": block, "head": "unstructured"}
    settings = {
        "layout": {"class_path": "PerLayer", "init_args": {"layouts": layers}},
        "method": "mest(mode='soft', interval=2)",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    parsed, saved = parse(["--config", str(tmp_path / "run.yaml"), "--sparsity", "0.6"])
    expected = ow.layouts.PerLayer(
        {"3x3": ow.layouts.KernelPattern(), "conv": ow.layouts.Block(4, 1), "head": ow.layouts.Unstructured()}
    )
    assert parsed.layout == expected
    assert not isinstance(parsed.layout, Layout)
    assert isinstance(parsed.method, Method)
    assert parsed.method.mode == "soft"
    (tmp_path / "saved.yaml").write_text(saved)
    assert parse(["--config", str(tmp_path / "saved.yaml")])[0].layout == expected


def test_every_method_is_known_by_its_name():
    names = [name for name, kind in vars(ow.methods).items() if inspect.isclass(kind) and issubclass(kind, Method)]
    concrete = [name for name in names if not inspect.isabstract(getattr(ow.methods, name))]
    assert set(METHODS) <= set(concrete)
    for name in concrete:
        assert type(parse(["--method", name])[0].method).__name__ == name
        assert type(parse(["--method", name.lower()])[0].method).__name__ == name
