"""The command ``openwork``: one function per verb."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


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
