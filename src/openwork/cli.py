"""The command ``openwork``: one function per verb."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path


def train(arguments: Sequence[str]) -> int:
    """``openwork train``: train a sparse model and its dense twin, and compare them."""
    from rich.console import Console

    from openwork.train import Interrupted
    from openwork.train import train as run
    from openwork.train.arguments import parse, resumed

    folder, checkpoint = resumed(arguments)
    settings, config = parse(arguments if folder is None else ["--config", str(folder / "config.yaml")])
    try:
        run(settings, config=config, resume=folder, checkpoint=checkpoint)
    except Interrupted as stop:
        say = Console(stderr=True, soft_wrap=True).print
        if stop.folder is None:
            say("Stopped before anything was written.")
        else:
            say(f"Stopped. Continue with: openwork train --resume {stop.folder}")
        return int(stop.code or 0)
    return 0


def inspect(arguments: Sequence[str]) -> int:
    """``openwork inspect``: print what a run is, what its layers hold and cost, and how far it got."""
    from rich.console import Console

    from openwork.train.describe import described
    from openwork.train.runs import read_runs

    parser = ArgumentParser(prog="openwork inspect", description=INSPECT)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, finished or not, or the dense one inside")
    run, *twins = read_runs([parser.parse_args(list(arguments)).run])
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    for part in described(run, twins[0] if twins else None):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))
    return 0


def report(arguments: Sequence[str]) -> int:
    """``openwork report``: write one HTML page about some runs and their dense twins."""
    from rich.console import Console
    from rich.progress import track

    from openwork.train.files import write_text
    from openwork.train.page import page, sections
    from openwork.train.runs import read_runs

    parser = ArgumentParser(prog="openwork report", description=REPORT)
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folders; their dense twins come along")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write (default: %(default)s)")
    options = parser.parse_args(list(arguments))
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder; the name of a file is wanted")
    runs = read_runs(options.run)
    console = Console(stderr=True)
    drawn = sections(runs)
    done = [section() for section in track(drawn, "Drawing", console=console, transient=True, disable=not console.is_terminal)]
    try:
        write_text(options.out, page(runs, done))
    except OSError as error:
        raise ValueError(f"--out {options.out}: {error}") from error
    print(f"{len(runs)} trainings in {options.out}")
    return 0


WIDE = 150
"""Columns of output that goes to a file or another program."""

INSPECT = (
    "Print what a run is, its layers with their sparsity, exploration rate and bytes, bytes by the papers' formulas, FLOPs "
    "against dense, the last epoch and the topology updates."
)

REPORT = (
    "Write one HTML page that needs nothing else: accuracy and loss, sparsity by layer, masks over time, dropped and grown "
    "weights, memory, FLOPs and step time against dense."
)

VERBS: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "inspect": inspect, "report": report}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name; returns the exit code.

    Errors in what the user gave are one line on standard error and exit code 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        return usage(arguments)
    try:
        return VERBS[arguments[0]](arguments[1:])
    except ModuleNotFoundError as error:
        print(f"openwork {arguments[0]}: error: {error}; install it with: pip install 'openwork[train]'", file=sys.stderr)
        return 2
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


if __name__ == "__main__":
    sys.exit(main())
