"""The command ``openwork``: one function per verb."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# What stands for a setting that neither a flag nor a config file names.  The default run is DSB on shuffled blocks.
TRAIN_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"class_path": "openwork.models.DigitsNet"},
    "data": {"class_path": "openwork.data.Digits"},
    "layout": {"class_path": "openwork.layouts.ShuffledBlock", "init_args": {"m": 16, "n": 16}},
    "method": {"class_path": "openwork.methods.DSB", "init_args": {"interval": 25}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
    "learning_rate": {"class_path": "openwork.train.OneCycle"},
}


def train(argv: Sequence[str]) -> int:
    """``openwork train``: train a sparse model and its dense twin, and compare them."""
    from rich.console import Console

    from openwork.train import Interrupted
    from openwork.train import train as run
    from openwork.train.files import write_text
    from openwork.train.run import new_folder

    arguments = list(argv)
    folder, checkpoint = resumed(arguments)
    if folder is not None:
        arguments = ["--config", str(folder / "config.yaml")]
    parser = train_parser(named(arguments))
    config = parser.parse_args(arguments)
    settings = instantiate(parser, config)
    resume = folder is not None
    if folder is None:
        folder = new_folder(settings)
        write_text(folder / "config.yaml", parser.dump(config))
    try:
        run(settings, folder, resume=resume, checkpoint=checkpoint)
    except Interrupted as stop:
        if stop.checkpoint is None:
            Console(stderr=True).print(f"Stopped before the first step; nothing to resume in {folder}")
        else:
            Console(stderr=True).print(f"Stopped; the checkpoint is written. Continue with: openwork train --resume {folder}")
        return int(stop.code or 0)
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {"train": train}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name; returns the exit code.

    Errors in what the user gave are one line on standard error and exit code 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        return usage(arguments)
    try:
        return VERBS[arguments[0]](arguments[1:])
    except ValueError as error:
        print(f"openwork {arguments[0]}: error: {error}", file=sys.stderr)
        return 2


def usage(arguments: Sequence[str]) -> int:
    """Say what verbs there are: on request, or because none was given."""
    asked = arguments[:1] in (["-h"], ["--help"])
    lines = ["usage: openwork VERB [--help] [options]", "", "verbs:"]
    lines += [f"  {name:8} {(verb.__doc__ or '').split(': ', 1)[-1].splitlines()[0]}" for name, verb in VERBS.items()]
    if arguments and not asked:
        lines.append(f"\nopenwork: error: unknown verb {arguments[0]!r}; known: {', '.join(VERBS)}")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def resumed(arguments: list[str]) -> tuple[Path | None, Path | None]:
    """The run folder, and the checkpoint where one is named, that ``--resume`` asks for.

    Raises:
        ValueError: other settings beside ``--resume``, or no run there.
    """
    parser = argparse.ArgumentParser(prog="openwork train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    known, others = parser.parse_known_args(arguments)
    if known.resume is None:
        return None, None
    if others:
        raise ValueError(f"--resume takes every setting from the run; remove {' '.join(others)}")
    path = Path(known.resume)
    folder, checkpoint = (path, None) if path.is_dir() else (path.parent.parent, path)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"--resume {path}: {folder / 'config.yaml'} is missing; a run folder or a checkpoint in one is wanted")
    if checkpoint is not None and not checkpoint.is_file():
        raise ValueError(f"--resume {path}: there is no such checkpoint")
    return folder, checkpoint


def named(arguments: Sequence[str]) -> set[str]:
    """The settings to which the arguments give a class, by flag or config file.

    Their defaults must not be mixed in: the width of one model is no width for another.
    """
    import yaml

    found = {match[1] for match in map(re.compile(r"--([a-z_]+)(?:=|$)").match, arguments) if match}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    for path in parser.parse_known_args(list(arguments))[0].config:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"--config {path}: {error}") from error
        found |= set(content) if isinstance(content, dict) else set()
    return found


def train_parser(given: set[str]) -> ArgumentParser:
    """The parser of ``openwork train``, built from the constructors; defaults stand for what is not in ``given``."""
    from jsonargparse import ArgumentParser

    import openwork.data
    import openwork.layouts
    import openwork.methods
    import openwork.models  # noqa: F401
    from openwork.train.settings import Settings

    parser = ArgumentParser(prog="openwork train", description="Train a sparse model and its dense twin, and compare them.")
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it take precedence")
    parser.add_argument("--resume", help="run folder, or checkpoint in one, to go on from; takes no other settings")
    parser.add_class_arguments(Settings, None)
    parser.set_defaults({name: default for name, default in TRAIN_DEFAULTS.items() if name not in given})
    return parser


def instantiate(parser: ArgumentParser, config: Any) -> Any:
    """Settings of objects, the model's weights drawn from the run's seed."""
    import lightning.pytorch as pl

    from openwork.train import Settings

    pl.seed_everything(config.seed, verbose=False)
    values = parser.instantiate(config).as_dict()
    return Settings(**{name: value for name, value in values.items() if name not in ("config", "resume")})


if __name__ == "__main__":
    sys.exit(main())
