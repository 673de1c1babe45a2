"""The examples run, shortened, and do what they say."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop_learns():
    assert example("plain_loop").main(epochs=2) > 0.5


def test_compare_methods_runs_every_combination():
    module = example("compare_methods")
    results = module.main(epochs=3)
    assert list(results) == module.COMBINATIONS
    assert min(results.values()) > 0.5


def test_transformer_trains_and_becomes_dense(capsys):
    first, last = example("transformer").main(steps=25)
    assert last < 0.8 * first
    assert "densified" in capsys.readouterr().out


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"plain_loop", "compare_methods", "transformer"}
