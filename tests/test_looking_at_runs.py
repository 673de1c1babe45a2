"""``openwork inspect`` and ``openwork report`` on finished, stopped, dense, strange and damaged run folders."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from interrupting import kill_after
from torch import nn

from openwork.cli import main
from openwork.train.facts import Facts
from openwork.train.page.colours import looks
from openwork.train.runs import read_run, read_runs, twin_of

HOSTILE = "<img src=x onerror=alert(1)>&\"'$x^2$"


class Net(nn.Module):
    """Two layers, one with a name that is HTML and mathematics to whoever does not escape it."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i in range(depth):
            self.layers.add_module(f"<b>$layer_{i}$&", nn.Linear(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.head(x)


BLOCKS = ["--layout", "ShuffledBlock", "--layout.m", "2", "--layout.n", "4"]
DSB = [*BLOCKS, "--method", "DSB", "--method.interval", "4"]
MEST = ["--layout", "Unstructured", "--method", "MEST", "--method.interval", "3"]
SMALL = [
    "--model", f"{Net.__module__}.Net", "--batch_size", "200", "--epochs", "3", "--progress", "false", "--kernel", "reference",
    "--device", "cpu", "--sparsity", "0.7",
]  # fmt: skip


def train(folder, *arguments, code=0):
    assert main(["train", *SMALL, "--run_dir", str(folder), *arguments]) == code
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders by what they are."""
    root = tmp_path_factory.mktemp("runs")
    alone, short = ["--dense_twin", "false"], ["--epochs", "1"]
    held = {
        "dsb": train(root / HOSTILE, *DSB),
        "mest": train(root / "mest", *MEST, *alone),
        "static": train(root / "static", *BLOCKS, "--method", "Static", *short, *alone, "--exploration", "false"),
        "dense": train(root / "only-dense", "--sparsity", "0", *short),
        "deep": train(
            root / "deep", *BLOCKS, "--method", "Static", "--model.depth", "23", *short, *alone, "--pictures", "null"
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 10)
        held["stopped"] = train(root / "stopped", *BLOCKS, "--method", "GSE", "--method.interval", "3", code=143)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 1)
        held["young"] = train(root / "young", *DSB, code=143)
    return held


def inspected(capsys, folder):
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    return capsys.readouterr().out


def figures(line):
    """The numbers of a line of a table."""
    return [float(cell.replace(",", "")) for cell in re.findall(r"(?<!\S)[\d,.]+(?!\S)", line)]


def test_inspect_prints_what_the_patterns_are(runs, capsys):
    text = inspected(capsys, runs["mest"])
    run = read_run(runs["mest"])
    assert "mest: sparse, finished, 3 epochs" in text
    assert "MEST(interval=3, total_steps=21)" in text
    patterns = torch.load(runs["mest"] / "checkpoints" / "last.ckpt", weights_only=True)["sparsity"]["layers"]
    table = text[text.index("layers, Unstructured()") :].splitlines()
    total = 0
    for name, pattern in patterns.items():
        line = next(line for line in table if line.strip().startswith(name))
        size, active = pattern["shape"][0] * pattern["shape"][1], len(pattern["cols"])
        total += active
        now = run.last_layers[name]
        # asked, now, R_s, active; then bytes with their units.
        assert figures(line)[1:4] == [round(1 - active / size, 4), round(now.exploration_rate, 4), active]
        # The count is rounded up to a whole weight.
        assert -1e-4 <= figures(line)[0] - (1 - active / size) <= 1 / size + 1e-4
    assert f"{total:,}" in next(line for line in table if line.strip().startswith("total"))
    cost, memory = run.facts.flops, run.facts.memory
    assert f"{cost.forward:,} FLOPs forward, {cost.training:,} a training step: {cost.ratio:.4f} of dense" in text
    assert cost.forward == 2 * total
    assert f"{memory.total:,} bytes, of these {memory.trained:,}" in text
    assert memory.trained == 3 * 4 * (total + 64 + 10)
    # Table A.1: two values and an index of each weight, and the row pointers of the two layers.
    formula = 4 * (3 * total + (64 + 1) + (10 + 1))
    assert f"{formula:,} bytes by this layout's formula" in text
    assert f"{2 * 4 * (64 * 64 + 640):,} dense" in text
    assert f"test accuracy {100 * run.epochs[-1].test_accuracy:.2f} %" in text
    assert "Epoch 3, step 21:" in text
    dropped = sum(row.dropped for row in run.updates)
    assert "5 topology updates, steps 3 to 15" in text
    moved = text[text.index("topology updates") :].splitlines()
    assert figures(next(line for line in moved if line.strip().startswith("total")))[:3] == [dropped, dropped, 0]


def test_inspect_shows_dsb_beside_its_tables_and_its_twin(runs, capsys):
    text = inspected(capsys, runs["dsb"])
    facts = Facts.read(runs["dsb"])
    active = sum(row.nnz for row in facts.report.rows)
    assert f"DSB, Table 3, numbers in a step: {active:,} weights, {active:,} gradients" in text
    assert "sparse / dense" in text
    dense = inspected(capsys, runs["dsb"] / "dense")
    assert "dense, finished, 3 epochs" in dense
    assert "(dense)" in dense
    assert "topology update" not in dense.split("Average")[0]
    assert "sparse / dense" not in dense


def test_inspect_of_runs_that_have_not_finished(runs, capsys):
    stopped = inspected(capsys, runs["stopped"])
    assert "not finished, 1 of 3 epochs done" in stopped
    assert f"openwork train --resume {runs['stopped']}" in stopped
    assert "GSE(interval=3, total_steps=21)" in stopped
    assert "Epoch 1, step 7:" in stopped
    young = inspected(capsys, runs["young"])
    assert "not finished, 0 of 3 epochs done" in young
    assert "No epoch has ended yet." in young
    assert "No topology update so far." in young


def test_inspect_of_a_run_without_a_step_and_of_an_older_version(runs, tmp_path, capsys):
    shutil.copy(runs["mest"] / "config.yaml", tmp_path)
    assert "There is no run.json yet" in inspected(capsys, tmp_path)
    shutil.copy(runs["mest"] / "metrics.csv", tmp_path)
    assert "Epoch 3, step 21:" in inspected(capsys, tmp_path)


def test_inspect_says_which_layers_stay_dense_and_what_has_no_formula(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs["mest"], folder)
    content = json.loads((folder / "run.json").read_text())
    content["report"]["rows"][1] |= {"layout": "dense", "kernel": "excluded [by] name"}
    content |= {"formulas": None, "training": None, "notes": ["bytes by formula: none for [bold] layouts"]}
    (folder / "run.json").write_text(json.dumps(content))
    text = inspected(capsys, folder)
    assert "head stays dense: excluded [by] name" in text
    assert "bytes by formula: none for [bold] layouts" in text
    assert "Average training step" not in text


def test_looking_loads_no_framework(runs):
    """Lightning takes seconds to load, and plots are not for everyone."""
    script = (
        "import sys; from openwork.cli import main; code = main(['inspect', sys.argv[1]]); "
        "heavy = [n for n in ('lightning', 'matplotlib', 'sklearn', 'tensorboard', 'jsonargparse') if n in sys.modules]; "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(runs["mest"])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


DAMAGE = [
    ("run.json", "{", "run.json cannot be read"),
    ("run.json", "[]", "run.json is [], no Facts"),
    ("run.json", '{"format": 1}', "run.json lacks"),
    ("run.json", '{"format": 9}', "run.json has format 9; this version reads 1"),
    ("run.json", ("epochs", "many"), "run.json.epochs is 'many', not int"),
    ("run.json", ("memory", {"weights": 3}), "run.json.memory lacks"),
    ("run.json", ("flops", {"layers": [{"layer": 7}]}), "run.json.flops.layers[0] lacks"),
    ("summary.json", "null and void", "summary.json cannot be read"),
    ("summary.json", '{"name": "sparse"}', "summary.json lacks"),
    ("metrics.csv", b"\xff\xfe\xff\n", "metrics.csv cannot be read"),
    ("metrics.csv", "epoch,step\r\n1,7\r\n", "metrics.csv, row 1: learning_rate is missing"),
    ("layers.csv", "epoch,step,layer,weights,active,sparsity\r\n1,7,a,many,3,0.5\r\n", "row 1: weights is 'many', no int"),
    ("topology.csv", "step,layer,dropped,grown,evicted,evicted_mass\r\n1,a,3,4\r\n", "topology.csv, row 1: evicted is missing"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
@pytest.mark.parametrize("verb", ["inspect", "report"])
def test_damaged_files_are_one_clear_line(runs, tmp_path, monkeypatch, capsys, verb, name, content, message):
    folder = tmp_path / "run"
    shutil.copytree(runs["mest"], folder)
    if isinstance(content, tuple):
        content = json.dumps(json.loads((folder / name).read_text()) | {content[0]: content[1]})
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main([verb, str(folder)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"openwork {verb}: error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("verb", ["inspect", "report"])
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (("missing", "is no folder"), ("file", "is no folder"), ("empty", "is no run folder: it has none of")):
        assert main([verb, name]) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        main([verb])
    assert ended.value.code == 2
    assert not (tmp_path / "report.html").exists()


def test_report_refuses_a_bad_place_and_damaged_pictures(runs, tmp_path, capsys):
    assert main(["report", str(runs["mest"]), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main(["report", str(runs["static"]), "--out", str(tmp_path / "file" / "report.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    folder = tmp_path / "run"
    shutil.copytree(runs["mest"], folder)
    (folder / "pictures" / "epoch-00001.safetensors").write_bytes(b"nothing")
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 2
    assert "epoch-00001.safetensors is damaged" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


class Page(HTMLParser):
    """Everything in a page that a test asks for; knows when elements do not close."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.tags, self.text, self.attributes = [], [], [], [], [], []
        self.sections = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
            if name == "id" and tag == "section":
                self.sections[value] = []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "section" in self.open:
            list(self.sections.values())[-1].append(data)


def reported(folders, out):
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """The page of all runs."""
    return reported(runs.values(), tmp_path_factory.mktemp("out") / "report.html")


def test_the_page_needs_nothing_else_and_runs_nothing(whole):
    text, page = whole
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert "http" not in without_names
    assert "@import" not in text
    assert not {"script", "iframe", "object", "link", "img", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("charset", "utf-8") in page.attributes


def test_ids_are_unique_and_every_reference_is_met(whole):
    text, page = whole
    assert len(page.ids) == len(set(page.ids)) > 100
    wanted = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert len(wanted) > 20
    assert wanted <= set(page.ids)


def test_names_are_text_and_never_markup(whole):
    text, page = whole
    assert HOSTILE not in text
    assert any(HOSTILE in data for data in page.text)
    assert not {"b", "img"} & set(page.tags)
    # As a tick label of a figure too, where $ would be mathematics.
    assert any(data.strip() == "layers.<b>$layer_0$&" for data in page.text)


def test_the_same_runs_give_the_same_page(runs, whole, tmp_path):
    text, _ = reported(runs.values(), tmp_path / "again.html")
    assert text == whole[0]
    assert not list(tmp_path.glob("*.part"))


def test_every_theme_has_a_section_with_its_figures(whole):
    _, page = whole
    names = ["summary", "accuracy", "sparsity", "exploration", "masks", "topology", "memory", "flops", "speed"]
    assert list(page.sections) == names
    assert [link[1:] for link in page.links if link[1:] in names] == names
    said = {name: " ".join(" ".join(data).split()) for name, data in page.sections.items()}
    assert "No topology update: static, deep, young." in said["topology"]
    for i in range(23):
        assert f"layers.<b>$layer_{i}$&" in page.sections["sparsity"]
    for words in ("start", "epoch 3", "epoch 1"):
        assert words in page.sections["masks"]
    assert {
        "fig-test-accuracy",
        "fig-train-loss",
        "fig-dropped",
        "fig-grown",
        "fig-memory",
        "fig-training",
        "fig-speed",
    } <= set(page.ids)


def test_the_summary_has_the_figures_of_the_files(runs, whole):
    _, page = whole
    cells = [data.strip() for data in page.sections["summary"] if data.strip()]
    for folder in (runs["dsb"], runs["dsb"] / "dense", runs["mest"]):
        run = read_run(folder)
        for cell in (
            f"{100 * run.epochs[-1].test_accuracy:.2f} %",
            f"{run.facts.memory.trained:,}",
            f"{run.facts.training:,.0f}",
        ):
            assert cell in cells
    sparse, dense = (read_run(folder).facts.memory.trained for folder in (runs["dsb"], runs["dsb"] / "dense"))
    assert f"{sparse / dense:.3f}x" in cells
    assert "1/3" in cells  # epochs of the run that was stopped


def test_curves_lie_where_the_numbers_are(runs, tmp_path):
    """The test accuracy of one run, read back from the path that is drawn."""
    text, _ = reported([runs["mest"]], tmp_path / "report.html")
    accuracies = [100 * row.test_accuracy for row in read_run(runs["mest"]).epochs]
    figure = text[text.index('id="fig-test-accuracy"') : text.index('id="fig-train-accuracy"')]
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: #0072b2', figure)[1]
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert len(points) == len(accuracies) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=1e-3)
    assert (y1 - y0) * (accuracies[2] - accuracies[0]) == pytest.approx((y2 - y0) * (accuracies[1] - accuracies[0]), abs=1)
    assert (y0 - y2) * (accuracies[2] - accuracies[0]) > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "dense",
            [
                "No run here has sparse layers.",
                "No run here kept count",
                "No run here kept pictures",
                "No run here has a topology that",
            ],
        ),
        ("static", ["No run here kept count of the weights that were ever active.", "No topology update: static."]),
        ("young", ["No epoch has ended yet.", "No topology update: young.", "No run here has made enough steps"]),
        ("deep", ["No run here kept pictures of its masks."]),
    ],
)
def test_what_a_run_does_not_have_is_said(runs, tmp_path, name, words):
    _, page = reported([runs[name]], tmp_path / "report.html")
    said = " ".join(" ".join(page.text).split())
    for part in words:
        assert part in said


def test_a_folder_that_only_begins_gives_a_page(runs, tmp_path):
    shutil.copy(runs["mest"] / "config.yaml", tmp_path)
    _, page = reported([tmp_path], tmp_path / "report.html")
    said = " ".join(page.text)
    assert "No run here has counted its bytes" in said
    assert "No run here has counted its FLOPs" in said


def test_a_run_that_diverges_hides_no_other(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["mest"], folder)
    table = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    table[1]["train_loss"], table[2]["test_loss"] = "1e9", "nan"
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    text, page = reported([runs["mest"], folder], tmp_path / "report.html")
    assert "The loss became infinite or no number: run." in " ".join(page.text)
    figure = text[text.index('id="fig-train-loss"') : text.index('id="fig-sparsity"')]
    ticks = [float(tick) for tick in re.findall(r"<text[^>]*>([\d.]+)</text>", figure)]
    assert max(ticks) <= 2 * float(table[0]["train_loss"])


def test_runs_and_twins_come_once_and_are_told_apart(runs, tmp_path):
    other = tmp_path / "mest"
    shutil.copytree(runs["mest"], other)
    found = read_runs([runs["dsb"], runs["mest"], runs["dsb"], other])
    assert [run.folder for run in found] == [runs["dsb"], runs["dsb"] / "dense", runs["mest"], other]
    assert [run.title for run in found[2:]] == [str(runs["mest"]), str(other)]
    assert found[1].title.endswith(", dense twin")
    assert twin_of(found[0], found) is found[1]
    assert twin_of(found[2], found) is None
    sparse, dense, third, fourth = looks(found)
    assert sparse.colour == dense.colour
    assert (sparse.dashed, dense.dashed) == (False, True)
    assert len({sparse.colour, third.colour, fourth.colour}) == 3
    many = [found[2]] * 30
    assert all(a != b for a, b in itertools.combinations([look.colour for look in looks(many)], 2))
