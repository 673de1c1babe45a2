"""The training command: end to end on digits, resumed bit for bit, stopped by a signal, and refusing nonsense."""

import contextlib
import csv
import io
import itertools
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from interrupting import kill_after
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.train import OneCycle
from openwork.train.arguments import parse
from openwork.train.checkpoint import read_checkpoint
from openwork.train.classifier import Classifier
from openwork.train.data_efficiency import Timetable, shorten
from openwork.train.report import Summary


class Net(nn.Module):
    """Small, with dropout, so that a resumed run has to bring random numbers back."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * width, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


SMALL = [
    "--model", f"{Net.__module__}.Net", "--layout", "ShuffledBlock", "--layout.m", "4", "--layout.n", "4",
    "--batch_size", "200", "--epochs", "2", "--progress", "false", "--kernel", "reference", "--device", "cpu",
]  # fmt: skip
STEPS = 7  # 1437 images in batches of 200


def run(tmp_path, name, *arguments):
    assert main(["train", *SMALL, "--run_dir", str(tmp_path / name), *arguments]) == 0
    return tmp_path / name


def rows(path):
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "step_ms"} for row in csv.DictReader(file)]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_leaves_everything_behind_and_compares(tmp_path, capsys):
    options = ["--method.interval", "3", "--sparsity", "0.8", "--batch_size", "100", "--exclude", '["body.8"]']
    folder = run(tmp_path, "run", *options)
    printed = capsys.readouterr().out
    for words in ("test accuracy", "non-zeros", "optimizer state", "ms per step, median", "sparse / dense", str(folder)):
        assert words in printed.replace("\n", "")
    for part in (folder, folder / "dense"):
        names = {path.name for path in part.iterdir()}
        assert {"metrics.csv", "summary.json", "checkpoints"} <= names
        assert any(name.startswith("events.out.tfevents") for name in names)
        assert {path.name for path in (part / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
        assert [row["step"] for row in rows(part / "metrics.csv")] == ["14", "28"]
    assert {"config.yaml", "report.txt", "result.txt", "topology.csv"} <= {path.name for path in folder.iterdir()}
    # Every 3 steps until three quarters of 28.
    assert sorted({int(row["step"]) for row in rows(folder / "topology.csv")}) == [3, 6, 9, 12, 15, 18]
    sparse, dense = Summary.read(folder), Summary.read(folder / "dense")
    assert min(sparse.accuracy, dense.accuracy) > 0.5
    assert dense.weights == dense.gradients == dense.optimizer_state == 4 * dense.parameters
    assert sparse.weights == sparse.gradients == sparse.optimizer_state == 4 * sparse.parameters
    assert sparse.trained < 0.7 * dense.trained
    assert sparse.indices > 0 == dense.indices
    assert sparse.updates == 6


def test_the_twin_starts_from_the_same_weights_and_sees_the_same_data(tmp_path, monkeypatch):
    seen, weights = [], []
    plain = Classifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 0:
            weights.append(self.model.body[0].weight.detach().clone())
        seen.append((batch[0].sum().item(), batch[2].tolist()))
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    run(tmp_path, "run", "--exclude", '["body.0"]')
    assert len(seen) == 4 * STEPS
    assert seen[: 2 * STEPS] == seen[2 * STEPS :]
    assert torch.equal(*weights)


RIGL = ["--method", "RigL", "--method.interval", "5", "--checkpoint_every", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    return run(tmp_path_factory.mktemp("whole"), "run", *RIGL)


@pytest.mark.parametrize("step", [4, STEPS, STEPS + 3, 2 * STEPS + 4])
def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, monkeypatch, capsys, step):
    """Stopped within an epoch, at its end, before a topology update and in the dense twin."""
    with monkeypatch.context() as patch:
        kill_after(patch, step)
        folder = tmp_path / "stopped"
        code = main(["train", *SMALL, "--run_dir", str(folder), *RIGL])
    assert code == 128 + signal.SIGTERM
    assert f"openwork train --resume {folder}" in capsys.readouterr().err.replace("\n", "")
    stopped = folder if step <= 2 * STEPS else folder / "dense"
    before = read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    assert before["global_step"] == (step - 1) % (2 * STEPS) + 1
    assert main(["train", "--resume", str(folder)]) == 0
    for part in ("", "dense"):
        assert rows(folder / part / "metrics.csv") == rows(whole / part / "metrics.csv")
        for name in ("last.ckpt", "best.ckpt"):
            expected, found = (read_checkpoint(run / part / "checkpoints" / name) for run in (whole, folder))
            for key in ("state_dict", "optimizer_states", "lr_schedulers", "sparsity", "random_state", "global_step", "epoch"):
                assert same(found[key], expected[key]), (part, name, key)
    assert rows(folder / "topology.csv") == rows(whole / "topology.csv")


# Two epochs on all 1437 images, two on the 937 that are not the easiest.
EFFICIENT = [
    *RIGL, "--epochs", "4", "--dense_twin", "false", "--sparsity", "0.5", "--optimizer.lr", "0.2",
    "--data_efficiency", "{start: 2, remove: 500}",
]  # fmt: skip
SHORT = 4  # 937 images in batches of 200


@pytest.fixture(scope="module")
def efficient(tmp_path_factory):
    """A run that removes examples and that nothing interrupts; and what each step of it saw."""
    seen, scores = [], []
    step, forward = Classifier.training_step, Classifier.forward

    def watched_forward(self, x):
        scores.append(forward(self, x))
        return scores[-1]

    def watched_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        right = (scores[-1].detach().argmax(1) == batch[1]).tolist()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        seen.append((dict(zip(batch[2].tolist(), right, strict=True)), rate, self.sparsity.method.total_steps))
        return loss

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(Classifier, "forward", watched_forward)
        patch.setattr(Classifier, "training_step", watched_step)
        folder = run(tmp_path_factory.mktemp("efficient"), "run", *EFFICIENT)
    return folder, seen, printed.getvalue()


def test_the_easiest_examples_go_and_everything_follows_the_shorter_epochs(efficient):
    folder, seen, printed = efficient
    assert len(seen) == 2 * STEPS + 2 * SHORT
    history = [[] for _ in range(1437)]
    for right, *_ in seen[: 2 * STEPS]:
        for i, value in right.items():
            history[i].append(value)
    forgotten = [sum(a and not b for a, b in itertools.pairwise(values)) for values in history]
    learned = [i for i, values in enumerate(history) if any(values)]
    assert len(learned) > 500
    removed = set(sorted(learned, key=lambda i: (forgotten[i], i))[:500])
    for epoch in (seen[2 * STEPS : 2 * STEPS + SHORT], seen[2 * STEPS + SHORT :]):
        ids = [i for right, *_ in epoch for i in right]
        assert len(ids) == len(set(ids)) == 200 * SHORT
        assert not removed & set(ids)

    times = [(step + 0.5) / STEPS for step in range(2 * STEPS)] + [2 + (step + 0.5) / SHORT for step in range(2 * SHORT)]
    assert [rate for _, rate, _ in seen] == pytest.approx([0.2 * OneCycle().factor(time, 4) for time in times], rel=1e-12)
    # RigL's end, three quarters of 28 steps or one epoch into the second half, becomes step 18, three quarters of 24.
    assert [steps for *_, steps in seen] == [28] * 2 * STEPS + [24] * 2 * SHORT
    assert sorted({int(row["step"]) for row in rows(folder / "topology.csv")}) == [5, 10, 15]

    table = rows(folder / "metrics.csv")
    assert [row["step"] for row in table] == ["7", "14", "18", "22"]
    assert [row["examples"] for row in table] == ["1437", "1437", "937", "937"]
    assert [row["removed"] for row in table] == ["0", "0", "500", "500"]
    assert float(table[3]["removed_share"]) == pytest.approx(500 / 1437)
    unforgettable = sum(not forgotten[i] for i in learned)
    assert float(table[1]["unforgettable_share"]) == pytest.approx(unforgettable / 1437)
    assert float(table[1]["never_learned_share"]) == pytest.approx(1 - len(learned) / 1437)
    assert "4 epochs of 7 steps, fewer from epoch 3 on" in printed
    said = " ".join(printed.split())
    assert "Epoch 3: 500 of 1,437 examples removed (34.8 %); 4 steps an epoch from here" in said
    assert "the whole run sees 1.211 times fewer examples" in said


@pytest.mark.parametrize("step", [4, 2 * STEPS - 1, 2 * STEPS, 2 * STEPS + 1, 2 * STEPS + SHORT, 2 * STEPS + SHORT + 3])
def test_a_run_that_removes_examples_resumes_bit_for_bit(efficient, tmp_path, monkeypatch, step):
    """Stopped while events are counted, as the examples are chosen, and within and after epochs without the easy ones."""
    whole, _, _ = efficient
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        kill_after(patch, step)
        assert main(["train", *SMALL, "--run_dir", str(folder), *EFFICIENT]) == 128 + signal.SIGTERM
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step
    assert main(["train", "--resume", str(folder)]) == 0
    assert rows(folder / "metrics.csv") == rows(whole / "metrics.csv")
    assert rows(folder / "topology.csv") == rows(whole / "topology.csv")
    expected, found = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, folder))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "sparsity", "random_state", "data_efficiency", "loader"):
        assert same(found[key], expected[key]), key


def test_nothing_moves_before_examples_go_and_a_given_length_stays(tmp_path, monkeypatch):
    lengths = set()
    plain = Classifier.training_step

    def training_step(self, batch, batch_idx):
        if self.sparsity is not None:
            lengths.add(self.sparsity.method.total_steps)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    options = [
        "--epochs",
        "3",
        "--method",
        "RigL",
        "--method.interval",
        "5",
        "--method.total_steps",
        "40",
        "--method.end",
        "0.5",
    ]
    without = run(tmp_path, "without", *options)
    with_it = run(tmp_path, "with", *options, "--data_efficiency.start", "2", "--data_efficiency.threshold", "0")
    assert lengths == {40}
    for part in ("", "dense"):
        before, after = rows(without / part / "metrics.csv"), rows(with_it / part / "metrics.csv")
        assert [{name: row[name] for name in before[0]} for row in after[:2]] == before[:2]
        assert "removed" not in before[0]
    # Each model has its own events: the dense one learns faster here.
    assert int(after[2]["removed"]) > int(rows(with_it / "metrics.csv")[2]["removed"]) > 0


@pytest.mark.parametrize(("end", "expected"), [("0.75", 21), ("0.8", 22), ("0.9", 23)])
def test_a_method_that_ends_with_an_update_makes_it_in_the_shorter_run(tmp_path, end, expected):
    """MEST's soft memory bound trains a surplus of weights, which the update at its end removes."""
    options = ["--layout", "unstructured", "--method", "MEST", "--method.mode", "soft", "--method.interval", "6"]
    options += ["--method.end", end, "--epochs", "4", "--dense_twin", "false"]
    folder = run(tmp_path, "run", *options, "--data_efficiency", "{start: 3, remove: 800}")
    table = rows(folder / "metrics.csv")
    assert [row["step"] for row in table] == ["7", "14", "21", "24"]
    assert max(int(row["step"]) for row in rows(folder / "topology.csv")) == expected
    asked = run(tmp_path, "static", *options[:2], "--method", "static", "--epochs", "1", "--dense_twin", "false")
    assert table[-1]["parameters"] == rows(asked / "metrics.csv")[0]["parameters"] < table[0]["parameters"]


def test_ends_stay_where_they_are_in_epochs_by_hand():
    """The paper's 160 epochs of 782 steps, 70 of them whole, then 548 (30 % removed)."""
    table = Timetable(epochs=160, full=782, start=70, short=548)
    total, whole = 160 * 782, 70 * 782
    assert [table.epoch(step) for step in (391, whole, whole + 274, whole + 90 * 548)] == [0.5, 70, 70.5, 160]
    assert [table.moved(step) for step in (7, whole, whole + 1, total)] == [7, whole, whole + 1, whole + 90 * 548]
    for method, end in (
        (ow.methods.RigL(total_steps=total), whole + 50 * 548),  # 0.75: epoch 120
        (ow.methods.RigL(total_steps=total, end=0.4), 64 * 782),  # long past
        (ow.methods.RigL(total_steps=total, end=9000), 9000),
        (ow.methods.RigL(total_steps=total + 1, end=1.0), total + 1),
        (ow.methods.MEST(total_steps=total), whole + 60 * 548),  # 130 of 160 epochs
    ):
        shorten(method, table)
        assert method.last_step == end
    static = ow.methods.Static()
    static.total_steps = total
    shorten(static, table)
    assert static.total_steps == whole + 90 * 548


def test_a_checkpoint_without_events_is_refused(tmp_path, capsys):
    folder = run(tmp_path, "run", "--dense_twin", "false")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config + "data_efficiency: {start: 1, threshold: 0}\n")
    capsys.readouterr()
    assert main(["train", "--resume", str(folder / "checkpoints" / "best.ckpt")]) == 2
    assert "has no forgetting events" in capsys.readouterr().err


def test_resume_from_a_named_checkpoint_and_of_a_finished_run(tmp_path):
    whole = run(tmp_path, "whole", "--checkpoint_every", "3", "--dense_twin", "false")
    metrics, last = rows(whole / "metrics.csv"), read_checkpoint(whole / "checkpoints" / "last.ckpt")
    summary = (whole / "summary.json").stat().st_mtime_ns
    assert main(["train", "--resume", str(whole)]) == 0
    assert (whole / "summary.json").stat().st_mtime_ns == summary
    assert main(["train", "--resume", str(whole / "checkpoints" / "best.ckpt")]) == 0
    assert (whole / "summary.json").stat().st_mtime_ns > summary
    assert rows(whole / "metrics.csv") == metrics
    assert same(read_checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"], last["state_dict"])


def test_sigterm_ends_a_process_with_143_and_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "openwork.cli",
        "train",
        "--epochs",
        "1000",
        "--run_dir",
        str(folder),
        "--progress",
        "false",
    ]
    command += ["--model.width", "16", "--batch_size", "300", "--layout.m", "4", "--layout.n", "4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (folder / "metrics.csv").exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert f"openwork train --resume {folder}" in errors
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] >= 4
    assert not list(folder.glob("**/*.part"))


def test_a_yaml_file_and_flags_after_it(tmp_path):
    settings = {
        "model": {"class_path": "openwork.models.MLP", "init_args": {"in_features": 64, "hidden": [32]}},
        "layout": "block(4, 4)",
        "method": "set",
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        "learning_rate": {"class_path": "Step", "init_args": {"milestones": [1]}},
        "force": ["classifier"],
        "batch_size": 400,
        "dense_twin": False,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    folder = tmp_path / "run"
    flags = ["--seed", "3", "--epochs", "2", "--progress", "false", "--run_dir", str(folder), "--device", "cpu"]
    assert main(["train", "--config", str(tmp_path / "c.yaml"), *flags]) == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["seed"] == 3
    assert saved["batch_size"] == 400
    assert saved["model"]["init_args"]["hidden"] == [32]
    assert [float(row["learning_rate"]) for row in rows(folder / "metrics.csv")] == pytest.approx([0.01, 0.001])
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert set(last["sparsity"]["layers"]) == {"features.1", "classifier"}
    assert "Block" in last["sparsity"]["layers"]["classifier"]["layout"]
    assert not (folder / "dense").exists()


def test_sparsity_0_trains_the_dense_model_alone(tmp_path):
    folder = run(tmp_path, "run", "--sparsity", "0")
    assert Summary.read(folder).name == "dense"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["sparsity"] is None
    assert not (folder / "dense").exists()


def test_defaults_of_one_class_are_not_mixed_into_another():
    settings, _ = parse(["--model", "CifarResNet", "--optimizer", "Adam", "--method", "DSB"])
    assert settings.model.conv1.weight.shape == (16, 3, 3, 3)
    assert settings.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 1e-3
    assert settings.method.interval == ow.methods.DSB().interval


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "sparsity=1.5 must lie in [0, 1)"),
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (["--layout", "nonsense"], "layout='nonsense' is unknown; known:"),
        (["--layout", "out_vector()"], "layout='out_vector()' does not fit OutVector"),
        (["--method.drop_fraction", "2"], "drop_fraction=2.0 must be a number strictly between 0 and 1"),
        (["--data_efficiency", "{start: 15, threshold: 0}"], "data_efficiency.start=15 must be less than epochs=15"),
        (["--data_efficiency.start", "3"], "exactly one of threshold and remove must be given"),
        (["--data_efficiency", "{start: 0, remove: 9}"], "start=0 must be a whole number of epochs, at least 1"),
        (
            ["--data_efficiency", "{start: 3, remove: 1437}"],
            "remove=1437 must be less than the number of training examples, 1437",
        ),
        (["--data_efficiency", "{start: 3, remove: 9}", "--batch_size", "2000"], "batch_size=2000 must be at most"),
        (["--batch_size", "2000"], "batch_size=2000 must be at most the number of training images, 1437"),
        (["--model", "CifarResNet"], "model=CifarResNet does not take images of shape (1, 8, 8)"),
        (["--model", "DigitsNet", "--model.num_classes", "7"], "the data have 10 classes"),
        (["--exclude", '["nothing"]'], "exclude names 'nothing', which matches no layer"),
        (["--config", "missing.yaml"], "--config missing.yaml"),
        (["--resume", "missing"], "config.yaml is missing"),
        (["--resume", "missing", "--epochs", "3"], "--resume takes every setting from the run; remove --epochs 3"),
        (["--data", "Parquet", "--data.path", "missing"], "holds no file named train*.parquet"),
    ],
)
def test_bad_values_are_one_clear_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("openwork train: error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "NoSuchNet"], "NoSuchNet"),
        (["--method", "DSB", "--method.drop_fractoin", "0.3"], "Option 'drop_fractoin' is not accepted"),
        (["--sparsty", "0.5"], "sparsty"),
        (["--epochs", "many"], 'Parser key "epochs"'),
    ],
)
def test_what_the_parser_refuses_it_names(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["train", *SMALL, "--run_dir", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_verb_names_the_known_ones(capsys):
    assert main(["trian"]) == 2
    assert "unknown verb 'trian'; known: train" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out


def test_help_lists_what_can_be_chosen(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in ("--sparsity", "--resume", "DSB", "ShuffledBlock", "CifarResNet", "Parquet", "OneCycle"):
        assert name in text
    assert "torch.nn.Bilinear" not in text


DOCS = (Path(__file__).parents[1] / "docs" / "training.md").read_text()


def test_every_documented_command_is_understood():
    blocks = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.strip() and "--resume" not in line]
    assert len(commands) >= 6
    for command in commands:
        if command[1] in ("inspect", "report"):
            continue  # these need a run
        assert command[:2] == ["openwork", "train"]
        settings, _ = parse(command[2:])
        assert isinstance(settings.layout, ow.layouts.Layout)


def test_the_documented_config_is_understood(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]
    (tmp_path / "run.yaml").write_text(text)
    settings, _ = parse(["--config", str(tmp_path / "run.yaml"), "--seed", "1"])
    assert settings.method.lift == "mean"
    assert (settings.seed, settings.epochs, settings.exclude) == (1, 8, ["conv1", "fc"])


def test_the_documented_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)[1]
    names = {}
    exec(text.replace("epochs=5", "epochs=1, progress=False, batch_size=200"), names)
    assert names["result"].sparse.trained < 0.3 * names["result"].dense.trained


def test_the_documented_loop_removes_examples(capsys):
    text = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)[1]
    torch.manual_seed(0)
    names = {}
    exec(text, names)
    sampler, events = names["sampler"], names["events"]
    assert 0 < sampler.removed < 500
    assert f"{sampler.removed} examples removed, {events.n_unforgettable} unforgettable" in capsys.readouterr().out


def test_a_truncated_checkpoint_of_a_run_is_one_clear_line(tmp_path, monkeypatch, capsys):
    kill_after(monkeypatch, 3)
    folder = tmp_path / "run"
    assert main(["train", *SMALL, "--run_dir", str(folder)]) == 143
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["train", "--resume", str(folder)]) == 2
    assert "is damaged or no checkpoint" in capsys.readouterr().err.replace("\n", "")
