"""The arguments of ``openwork train``, built from the constructors of everything that can be chosen."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import yaml

import openwork.models  # noqa: F401  (the parser finds classes by name once they are imported, as the settings' are)
from openwork.train.settings import Settings

# What stands for a setting that neither a flag nor a config file names: DSB on shuffled blocks, on digits.
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"class_path": "openwork.models.DigitsNet"},
    "data": {"class_path": "openwork.data.Digits"},
    "layout": {"class_path": "openwork.layouts.ShuffledBlock", "init_args": {"m": 16, "n": 16}},
    "method": {"class_path": "openwork.methods.DSB", "init_args": {"interval": 25}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
    "learning_rate": {"class_path": "openwork.train.OneCycle"},
}


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser, whose help does not list every module of torch as a model."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help text."""
        text = super().format_help(*args, **kwargs)
        # Everything has a default here; the parser does not know, because the constructor of the settings has none.
        text = re.sub(r"\(required,\s+type", "(type", text)
        return re.sub(r"known\s+subclasses:\s(.*?)\)\n", _own_classes, text, flags=re.DOTALL)


def _own_classes(found: re.Match[str]) -> str:
    names = re.sub(r"\s+", "", found[1]).split(",")
    public = re.compile(r"(torch\.optim|openwork\.(models|data|layouts|methods|train))\.[A-Z]\w*$")
    own = [name for name in names if public.match(name)]
    text = textwrap.fill(", ".join(own) + (", or any other by its path" if len(own) < len(names) else ""), 54)
    return "known subclasses:\n" + textwrap.indent(text, 24 * " ") + ")\n"


def parser(given: set[str]) -> Parser:
    """The parser; ``DEFAULTS`` stand for what is not in ``given``."""
    built = Parser(prog="openwork train", description="Train a sparse model and its dense twin, and compare them.")
    built.add_argument("--config", action="config", help="YAML file of settings; flags after it take precedence")
    built.add_argument("--resume", help="run folder, or checkpoint in one, to go on from; takes no other settings")
    built.add_class_arguments(Settings, None)
    built.set_defaults({name: default for name, default in DEFAULTS.items() if name not in given})
    return built


def parse(arguments: Sequence[str]) -> tuple[Settings, str]:
    """Settings of objects, the model's weights drawn from the run's seed, and the same as YAML.

    Raises:
        ValueError: a constructor refuses its arguments, or a config file cannot be read.
        SystemExit: with code 2 and a message, where the parser does not understand the arguments.
    """
    built = parser(named(arguments))
    config = built.parse_args(list(arguments))
    pl.seed_everything(config.seed, verbose=False)
    try:
        values = built.instantiate(config).as_dict()
    except ValueError as error:
        # Where a class or a string may stand, the parser wraps what the class said in what it tried.
        cause = re.search(r"Errors:\n\s+- (.+)", str(error))
        raise ValueError(cause[1] if cause else str(error)) from error
    settings = Settings(**{name: value for name, value in values.items() if name not in ("config", "resume")})
    return settings, built.dump(config)


def named(arguments: Sequence[str]) -> set[str]:
    """The settings to which the arguments give a class, by flag or config file.

    Their defaults must not be mixed in: the width of one model is no width for another.
    """
    found = {match[1] for match in map(re.compile(r"--([a-z_]+)(?:=|$)").match, arguments) if match}
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[])
    for path in finder.parse_known_args(list(arguments))[0].config:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"--config {path}: {error}") from error
        found |= set(content) if isinstance(content, dict) else set()
    return found


def resumed(arguments: Sequence[str]) -> tuple[Path | None, Path | None]:
    """The run folder, and the checkpoint where one is named, that ``--resume`` asks for.

    Raises:
        ValueError: other settings beside ``--resume``, or no run there.
    """
    finder = argparse.ArgumentParser(prog="openwork train", add_help=False, allow_abbrev=False)
    finder.add_argument("--resume")
    known, others = finder.parse_known_args(list(arguments))
    if known.resume is None:
        return None, None
    if others:
        raise ValueError(f"--resume takes every setting from the run; remove {' '.join(others)}")
    path = Path(known.resume)
    folder, checkpoint = (path, None) if path.is_dir() else (path.parent.parent, path)
    if checkpoint is not None and folder.name == "dense":
        folder = folder.parent
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"--resume {path}: {folder / 'config.yaml'} is missing; a run folder or a checkpoint in one is wanted")
    if checkpoint is not None and not checkpoint.is_file():
        raise ValueError(f"--resume {path}: there is no such checkpoint")
    return folder, checkpoint
