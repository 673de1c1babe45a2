"""The table of what works with what in docs/combinations.md, made by trying.

``python tests/contract/test_table.py`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
from combinations import LAYOUTS, METHODS, Net, batch, default_sparsity

import openwork as ow

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
GLOBAL = "GSE(scope=global)"
HEAD = """# Which layout works with which method

Made by trying every combination for a few updates (`python tests/contract/test_table.py`); a test keeps it true. All run on
every kernel backend. Where a combination is refused, the error says the reason given here.

"""


def tried(layout: ow.layouts.LayoutRule, method: ow.methods.Method) -> str:
    """Empty if a short training goes through, else the reason why not."""
    torch.manual_seed(7)
    model = Net()
    try:
        sparsity = ow.sparsify(
            model, sparsity=default_sparsity(layout), layout=layout, method=method, budget="uniform", kernel="reference"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sparsity.attach(optimizer)
        for index in range(4):
            model(batch(index)[0]).square().sum().backward()
            optimizer.step()
    except ValueError as error:
        return str(error)
    return ""


def reason(error: str) -> str:
    """A short word for an error; one that is not known fails the test."""
    known = {"at most 4/9": "at most 4/9", "was asked for": "one density only", "scope='global'": "count of atoms is fixed"}
    return next(short for words, short in known.items() if words in error)


def page() -> str:
    """The table as Markdown; variants of a layout or method that fare alike share a cell."""
    makers = {make.label: make for make in METHODS}
    makers[GLOBAL] = lambda: ow.methods.GSE(scope="global", interval=2, end=100)
    columns: dict[str, list] = {}
    for label, make in makers.items():
        mode = getattr(make(), "mode", None)
        name = label if label == GLOBAL else f"MEST({mode})" if mode else label.split("(")[0]
        columns.setdefault(name, []).append(make)
    lines = ["| layout | " + " | ".join(f"`{name}`" for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for kind in dict.fromkeys(type(layout) for layout in LAYOUTS):
        cells = []
        for variants in columns.values():
            found = {tried(layout, make()) for layout in LAYOUTS if type(layout) is kind for make in variants}
            cells.append(" / ".join(sorted({reason(error) if error else "yes" for error in found})))
        lines.append(f"| `{kind.__name__}` | " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def test_the_page_says_what_works():
    assert PAGE.read_text() == page(), "docs/combinations.md is out of date: run python tests/contract/test_table.py"


if __name__ == "__main__":
    PAGE.write_text(page())
