"""The import arrows of the architecture, read from the sources, and what a plain import does not do."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import openwork

ROOT = Path(openwork.__file__).parent
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py"))

ALLOWED = {
    "compiled": set(),
    "pattern": {"compiled"},
    "scores": {"compiled"},
    "schedules": set(),
    "budgets": set(),
    "names": set(),
    "allocator": set(),
    "layouts": {"compiled", "pattern", "scores", "budgets", "names", "layouts"},
    "methods": {"compiled", "scores", "schedules", "budgets", "methods"},
    "kernels": {"pattern", "kernels"},
    "resident": {"pattern", "kernels", "resident"},
    "evidence": {"scores", "kernels", "pattern"},
    "nn": {"pattern", "kernels", "evidence", "resident", "nn"},
}
"""What the lower floors may import; everything else may import these and, from the list below, what stands before it."""

UPPER = ["update", "surgery", "report", "state", "sparsify", "data", "models", "analysis", "train", "cli"]


def imports(module: str) -> set[str]:
    """First words after ``openwork.`` of everything a module imports, in functions and type checks too."""
    path = ROOT / (module.replace(".", "/") + ".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "openwork":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("openwork."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {[*alias.name.split("."), ""][1] for alias in node.names if alias.name.split(".")[0] == "openwork"}
    return found


def floor(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if floor(m) in ALLOWED])
def test_lower_floors_import_only_what_lies_below(module):
    # Who may know the compiled module is a test of its own.
    strange = imports(module) - ALLOWED[floor(module)] - {"_native"}
    assert not strange, f"{module} imports {sorted(strange)}"


@pytest.mark.parametrize("module", [m for m in MODULES if floor(m) in UPPER])
def test_upper_floors_import_nothing_above_them(module):
    above = set(UPPER[UPPER.index(floor(module)) + 1 :])
    # Data and models know nothing of sparsity, and the core knows nothing of them.
    if floor(module) in ("data", "models"):
        above |= set(ALLOWED) | set(UPPER) - {floor(module)}
    if floor(module) in ("update", "surgery", "report", "state", "sparsify"):
        above |= {"data", "models", "analysis"}
    assert not imports(module) & above


def test_every_module_has_its_floor():
    assert {floor(m) for m in MODULES} <= set(ALLOWED) | set(UPPER) | {"__init__"}


def test_methods_and_layouts_stand_alone():
    for module in MODULES:
        if floor(module) == "methods":
            assert not imports(module) & {"layouts", "nn", "kernels", "evidence", "sparsify"}
        if floor(module) == "layouts":
            assert not imports(module) & {"methods", "nn", "kernels", "evidence", "sparsify"}


def test_five_modules_know_the_native_one():
    users = []
    for module in MODULES:
        text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        names = {
            alias.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
        }
        sources = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        if "_native" in names or "openwork._native" in names | sources:
            users.append(module)
    assert users == ["compiled", "kernels.cpu", "kernels.cpu_bf16", "layouts.compiled", "resident.native"]


def test_importing_openwork_is_light():
    """No framework of the training command, no compiled kernels, no threads beyond those that torch starts itself."""
    script = """
import json, os, sys, threading
import torch
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
import openwork
after = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
heavy = ["lightning", "matplotlib", "sklearn", "tensorboard", "jsonargparse", "pyarrow", "PIL", "torchmetrics", "transformers",
         "openwork._native", "openwork.kernels.cpu", "openwork.kernels.cpu_bf16",
         "openwork.train", "openwork.data", "openwork.models"]
print(json.dumps({"started": after - threads, "heavy": [name for name in heavy if name in sys.modules]}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"started": 0, "heavy": []}


def test_the_public_names_are_there():
    for name in ("Pattern", "Sparsity", "budgets", "data", "densify", "layouts", "methods", "nn", "sparsify"):
        assert name in openwork.__all__
    assert openwork.data.ForgettingEvents
    with pytest.raises(AttributeError, match="nothing"):
        _ = openwork.nothing
    for package in (openwork, openwork.layouts, openwork.methods, openwork.nn):
        assert all(hasattr(package, name) for name in package.__all__)
