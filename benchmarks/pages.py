"""Copy tables of results into the pages that show them.

    python benchmarks/pages.py

A page marks a place with ``<!-- results: NAME -->`` and ``<!-- end of results -->``; what stands between is replaced by
``NAME.md`` of the results, without its title: machine, commit, command and table as the benchmark wrote them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from timing import RESULTS

from openwork.train.files import write_text

PAGES = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(page: str, results: Path) -> str:
    """The page with its places filled; those without results keep what they have, and are named."""

    def content(place: re.Match[str]) -> str:
        path = results / f"{place[2]}.md"
        if not path.exists():
            print(f"no {path}: its place stays as it is")
            return place[0]
        _, below = path.read_text().split("\n\n", 1)
        return f"{place[1]}\n{below}\n{place[3]}"

    return PLACE.sub(content, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pages", type=Path, default=PAGES)
    arguments = parser.parse_args()
    for path in sorted(arguments.pages.glob("*.md")):
        page = path.read_text()
        if PLACE.search(page):
            write_text(path, filled(page, arguments.results))


if __name__ == "__main__":
    main()
