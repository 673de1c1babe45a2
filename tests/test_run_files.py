"""What a training run writes as it goes: layer figures, exploration, pictures and costs, recounted from the patterns."""

import csv
import json
import math
import signal

import numpy as np
import pytest
import torch
from interrupting import kill_after
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import openwork as ow
from openwork.analysis.footprint import Layer, unstructured
from openwork.cli import main
from openwork.train import Pictures
from openwork.train.checkpoint import read_checkpoint
from openwork.train.classifier import Classifier
from openwork.train.facts import Facts
from openwork.train.files import Table
from openwork.train.history import Stopwatch
from openwork.train.pictures import Picture, draw, read_pictures, spread
from openwork.train.report import Summary


class Net(nn.Module):
    """Convolutions and a linear layer of which none is full at 0.6."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.third = nn.Linear(320, 10)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


NAMES = ["first", "second", "third"]
SMALL = [
    "--model", f"{Net.__module__}.Net", "--layout", "Unstructured", "--method", "SET", "--method.interval", "3", "--sparsity",
    "0.6", "--batch_size", "200", "--epochs", "3", "--progress", "false", "--kernel", "reference", "--device", "cpu",
    "--dense_twin", "false", "--checkpoint_every", "2", "--pictures.cells", "9", "--budget", "uniform",
]  # fmt: skip
STEPS = 7  # 1437 images in batches of 200


def run(folder, *arguments):
    assert main(["train", *SMALL, "--run_dir", str(folder), *arguments]) == 0
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, and the masks before each of its steps and after the last."""
    masks = []
    step, ends = Classifier.training_step, Classifier.on_train_end

    def now(module):
        return {name: layer.pattern.mask() for name, layer in module.sparsity.layers.items()}

    def training_step(self, batch, batch_idx):
        masks.append(now(self))
        return step(self, batch, batch_idx)

    def on_train_end(self):
        masks.append(now(self))
        return ends(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", training_step)
        patch.setattr(Classifier, "on_train_end", on_train_end)
        folder = run(tmp_path_factory.mktemp("whole") / "run")
    return folder, masks


def test_layer_figures_are_those_of_the_masks(whole):
    folder, masks = whole
    assert len(masks) == 3 * STEPS + 1
    # An update after step 20 would be the last mask only; the pattern moved more often than once an epoch.
    assert len({row["step"] for row in rows(folder / "topology.csv")}) == 5
    table = rows(folder / "layers.csv")
    assert [(row["epoch"], row["step"], row["layer"]) for row in table] == [
        (str(epoch), str(epoch * STEPS), name) for epoch in range(4) for name in NAMES
    ]
    for row in table:
        upto = [mask[row["layer"]] for mask in masks[: int(row["step"]) + 1]]
        size, active = upto[-1].numel(), int(upto[-1].sum())
        ever = int(torch.stack(upto).any(0).sum())
        assert (int(row["weights"]), int(row["active"])) == (size, active)
        assert float(row["sparsity"]) == 1 - active / size
        assert float(row["exploration_rate"]) == ever / size
    # What was active only between two epochs' ends counts too.
    only_ends = torch.stack([masks[step]["second"] for step in range(0, 3 * STEPS + 1, STEPS)]).any(0)
    assert float(table[-2]["exploration_rate"]) > int(only_ends.sum()) / only_ends.numel()


def test_totals_stand_in_the_metrics(whole):
    folder, _ = whole
    by_epoch = {}
    for row in rows(folder / "layers.csv"):
        by_epoch.setdefault(row["epoch"], []).append(row)
    metrics = rows(folder / "metrics.csv")
    assert len(metrics) == 3
    for row in metrics:
        layers = by_epoch[row["epoch"]]
        size = sum(int(layer["weights"]) for layer in layers)
        assert float(row["sparsity"]) == 1 - sum(int(layer["active"]) for layer in layers) / size
        ever = sum(round(float(layer["exploration_rate"]) * int(layer["weights"])) for layer in layers)
        assert float(row["exploration_rate"]) == ever / size


def test_tensorboard_has_the_same_figures(whole):
    folder, _ = whole
    events = EventAccumulator(str(folder)).Reload()
    for name in NAMES:
        mine = [row for row in rows(folder / "layers.csv") if row["layer"] == name]
        for figure in ("sparsity", "exploration_rate"):
            found = [(event.step, event.value) for event in events.Scalars(f"{figure}/{name}")]
            assert found == [(int(row["step"]), pytest.approx(float(row[figure]), rel=1e-6)) for row in mine]
    totals = [float(row["exploration_rate"]) for row in rows(folder / "metrics.csv")]
    assert [event.value for event in events.Scalars("exploration_rate")] == pytest.approx(totals, rel=1e-6)


def recounted(mask, cells):
    """Active weights by cell, from the whole mask, one by one."""
    size = [min(n, cells) for n in mask.shape]
    counts = np.zeros(size, dtype=np.int64)
    for row, col in mask.nonzero().tolist():
        counts[row * size[0] // mask.shape[0], col * size[1] // mask.shape[1]] += 1
    return counts


def test_pictures_are_those_of_the_masks(whole):
    folder, masks = whole
    pictures = read_pictures(folder)
    assert [(picture.epoch, picture.step, picture.layer) for picture in pictures] == [
        (epoch, epoch * STEPS, name) for epoch in range(4) for name in NAMES
    ]
    for picture in pictures:
        mask = masks[picture.step][picture.layer]
        assert picture.shape == tuple(mask.shape)
        expected = recounted(mask, 9)
        assert np.array_equal(picture.counts, expected)
        rows_in, cols_in = (np.bincount(np.arange(n) * cells // n) for n, cells in zip(mask.shape, expected.shape, strict=True))
        assert np.array_equal(picture.density, expected / np.outer(rows_in, cols_in))
    assert not np.array_equal(pictures[1].counts, pictures[-2].counts)
    assert sum(path.stat().st_size for path in (folder / "pictures").iterdir()) < 4 * 3 * 81 * 2 + 4 * 600


def everything(folder):
    """All that must not depend on whether a run was stopped; times do."""
    held = {path.name: path.read_bytes() for path in sorted((folder / "pictures").iterdir())}
    for name in ("layers.csv", "topology.csv", "run.json"):
        held[name] = (folder / name).read_bytes()
    held["metrics"] = [{key: value for key, value in row.items() if key != "step_ms"} for row in rows(folder / "metrics.csv")]
    summary = json.loads((folder / "summary.json").read_text())
    held["summary"] = {key: value for key, value in summary.items() if key not in ("step", "step_mean")}
    return held


@pytest.mark.parametrize("step", [1, 2, 4, STEPS, STEPS + 1, 2 * STEPS + 4])
def test_a_stopped_run_goes_on_to_the_same_files(whole, tmp_path, monkeypatch, step):
    """Stopped before an update, after one, at the end of an epoch and after the first step of one."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, step)
        assert main(["train", *SMALL, "--run_dir", str(folder)]) == 128 + signal.SIGTERM
    explored = read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]["LayerHistory"]["explored"]["layers"]
    assert {name: held["ever"].numel() for name, held in explored.items()} == {
        name: -(-size // 8) for name, size in zip(NAMES, (108, 2160, 3200), strict=True)
    }
    assert main(["train", "--resume", str(folder)]) == 0
    assert everything(folder) == everything(whole[0])


def test_going_on_from_an_older_checkpoint_takes_back_what_came_after(whole, tmp_path, monkeypatch):
    """What a killed process leaves: rows and pictures after the checkpoint, the last row of them cut off."""
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        kill_after(patch, STEPS + 3)
        assert main(["train", *SMALL, "--run_dir", str(folder)]) == 128 + signal.SIGTERM
    older = last.read_bytes()
    assert main(["train", "--resume", str(folder)]) == 0
    assert len(rows(folder / "layers.csv")) == 4 * len(NAMES)
    last.write_bytes(older)
    for name, torn in (("layers.csv", b"1"), ("topology.csv", b"1,second,4"), ("metrics.csv", b"2,1")):
        with (folder / name).open("ab") as file:
            file.write(torn)
    (folder / "summary.json").unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    assert everything(folder) == everything(whole[0])


def test_a_run_killed_before_its_first_checkpoint_starts_anew(whole, tmp_path):
    folder = run(tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / "summary.json").unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    assert everything(folder) == everything(whole[0])


def test_exploration_and_pictures_can_be_left_out_and_cannot_be_made_up_later(tmp_path, capsys):
    folder = run(tmp_path / "run", "--exploration", "false", "--pictures", "null")
    assert {row["exploration_rate"] for row in rows(folder / "layers.csv") + rows(folder / "metrics.csv")} == {""}
    assert not (folder / "pictures").exists()
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"].get("LayerHistory") is None
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("exploration: false", "exploration: true"))
    capsys.readouterr()
    assert main(["train", "--resume", str(folder / "checkpoints" / "best.ckpt")]) == 2
    assert "does not say which weights were ever active" in capsys.readouterr().err


def test_a_dense_run_has_costs_and_no_layers(tmp_path):
    folder = run(tmp_path / "run", "--sparsity", "0", "--epochs", "1")
    assert not (folder / "layers.csv").exists()
    assert not (folder / "pictures").exists()
    assert "exploration_rate" not in rows(folder / "metrics.csv")[0]
    facts = Facts.read(folder)
    assert (facts.name, facts.report.rows, facts.formulas, facts.peak) == ("dense", (), None, None)
    # Positions are 8 x 8, 4 x 4 and one; each weight is one multiply-accumulate there.
    assert facts.flops.forward == 2 * (108 * 64 + 2160 * 16 + 3200)
    assert facts.training == 3 * facts.flops.forward


def test_costs_are_those_of_the_patterns(whole):
    folder, masks = whole
    facts = Facts.read(folder)
    active = {name: int(mask.sum()) for name, mask in masks[-1].items()}
    size = {name: mask.numel() for name, mask in masks[-1].items()}
    places = {"first": 64, "second": 16, "third": 1}
    assert facts.flops.forward == 2 * sum(active[name] * places[name] for name in NAMES)
    assert facts.flops.dense_forward == 2 * sum(size[name] * places[name] for name in NAMES)
    assert facts.training == 3 * facts.flops.forward
    assert facts.forward == facts.flops.forward
    biases = 12 + 20 + 10
    assert facts.memory.weights == facts.memory.gradients == facts.memory.optimizer_state == 4 * (sum(active.values()) + biases)
    assert Summary.read(folder).trained == facts.memory.trained
    shapes = [Layer(*masks[-1][name].shape, active[name]) for name in NAMES]
    assert facts.formulas.formula == unstructured(shapes)
    assert facts.formulas.held.weights == 32 * sum(active.values())
    assert [row.layer for row in facts.report.rows] == NAMES
    assert facts.settings["method"] == "SET(interval=3, total_steps=21)"
    assert facts.settings["optimizer"].startswith("SGD(lr=0.1, momentum=0.9")
    assert (facts.epochs, facts.step, facts.notes) == (3, 21, ())


def test_a_surplus_counts_as_long_as_it_is_trained(tmp_path):
    """MEST's soft bound: FLOPs and bytes of the steps as they were, not as the run ends."""
    seen = []
    plain = Classifier.training_step

    def training_step(self, batch, batch_idx):
        seen.append({name: layer.pattern.nnz for name, layer in self.sparsity.layers.items()})
        return plain(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", training_step)
        method = ["--method", "MEST", "--method.mode", "soft", "--method.interval", "3", "--method.end", "11"]
        folder = run(tmp_path / "run", *method)
    facts = Facts.read(folder)
    places = {"first": 64, "second": 16, "third": 1}
    forward = [2 * sum(nnz[name] * places[name] for name in NAMES) for nnz in seen]
    assert forward[0] > forward[-1]
    assert facts.forward == sum(forward) / len(forward)
    assert facts.training == 3 * facts.forward
    assert facts.memory.weights == 4 * (max(sum(nnz.values()) for nnz in seen) + 42)


def test_what_has_no_formula_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("openwork.train.fact_sheet.compare_memory", _refuse)
    monkeypatch.setattr("openwork.train.fact_sheet.training_flops", _refuse)
    facts = Facts.read(run(tmp_path / "run", "--epochs", "1"))
    assert facts.formulas is None
    assert facts.training is None
    assert facts.training_step == facts.flops.training
    assert set(facts.notes) == {"bytes by formula: no formula for it", "topology updates: no formula for it"}


def _refuse(*_, **__):
    raise ValueError("no formula for it")


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (6, 5, [0, 1, 3, 4, 5]), (161, 3, [0, 80, 160]), (0, 5, []), (1, 2, [0])],
)
def test_a_spread_has_both_ends_and_no_place_twice(count, most, expected):
    assert spread(count, most) == expected
    for n in range(1, 40):
        for k in range(2, 12):
            places = spread(n, k)
            assert (places[0], places[-1], len(set(places))) == (0, n - 1, min(n, k))


def test_long_runs_take_few_pictures(tmp_path):
    assert Pictures(moments=4).epochs(9) == {0, 3, 6, 9}
    folder = run(tmp_path / "run", "--pictures.moments", "2", "--pictures.layers", '["th*", "first"]')
    assert [(picture.epoch, picture.layer) for picture in read_pictures(folder)] == [
        (0, "first"), (0, "third"), (3, "first"), (3, "third"),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["unstructured", "shuffled_block(4, 4)", "out_vector(3)", "channel"])
def test_a_picture_counts_every_weight_once(layout):
    """Padded groups and sizes that do not divide among them."""
    model = nn.Sequential(nn.Linear(50, 31), nn.Linear(31, 17))
    for name, module in ow.sparsify(model, sparsity=0.7, layout=layout, method="static").layers.items():
        for cells in (1, 7, 31, 100):
            counts = draw(module.pattern, cells)
            assert np.array_equal(counts, recounted(module.pattern.mask(), cells)), (name, cells)
            assert counts.sum() == module.pattern.nnz
            assert counts.dtype == (np.uint8 if math.prod(-(-n // min(n, cells)) for n in module.shape) < 256 else np.uint16)


def sparse_chain(count, **options):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))
    return ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static", **options).layers


def test_full_layers_are_pictured_only_when_asked_for():
    layers = sparse_chain(9, densities={"4": 1.0})
    assert list(Pictures().choose(layers)) == ["0", "2", "5", "6", "8"]
    assert list(Pictures(layers=["4", "0"]).choose(layers)) == ["0", "4"]
    with pytest.raises(ValueError, match="matches 17 layers; at most 16"):
        Pictures(layers=["*"]).choose(sparse_chain(17))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures.cells", "0"], "pictures.cells=0 must be a whole number from 1 to 512"),
        (["--pictures.moments", "1"], "pictures.moments=1 must be a whole number from 2 to 1000"),
        (
            ["--pictures.layers", '["nothing"]'],
            "pictures.layers names 'nothing', which matches no sparse layer; there are",
        ),
    ],
)
def test_bad_pictures_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_pictures_are_one_clear_error(whole, tmp_path):
    good = (whole[0] / "pictures" / "epoch-00001.safetensors").read_bytes()
    path = tmp_path / "pictures" / "epoch-00001.safetensors"
    path.parent.mkdir()
    (path.parent / "notes.txt").write_text("not a picture")
    for bad in (good[:50], b"", good[:-7], good.replace(b"second", b"secund", 1), b"\xff" * 100):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"epoch-00001\.safetensors is damaged or no picture"):
            read_pictures(tmp_path)
    path.write_bytes(good)
    assert isinstance(read_pictures(tmp_path)[0], Picture)


def test_a_table_leaves_out_a_line_that_is_not_complete(tmp_path):
    table = Table(tmp_path / "t.csv", ("a", "b"))
    table.append([{"a": 1, "b": "x, y"}, {"a": 2, "b": "z"}])
    whole = table.path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        table.path.write_bytes(whole[:cut])
        done = whole[:cut].count(b"\n") - 1
        assert [row["a"] for row in table.rows()] == ["1", "2"][:done]
        table.keep(lambda row: True)
        table.append([{"a": 3, "b": ""}])
        assert [row["a"] for row in table.rows()] == [*["1", "2"][:done], "3"]


def test_the_most_memory_is_remembered_across_processes():
    watch = Stopwatch()
    watch.memory = ow.analysis.memory(nn.Linear(3, 2))
    other = Stopwatch()
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert other.memory == watch.memory
