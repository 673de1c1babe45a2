"""Figures as SVG elements to stand in an HTML page: the same figure gives the same text, and no two share an id."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
STYLE: dict[str, Any] = {
    # Text stays text: it can be read aloud, searched and selected, and keeps the page small.
    "svg.fonttype": "none",
    # A layer or a run may have a $ in its name.
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}

_URL = re.compile(r"url\(#([^)]+)\)")
_LINK = re.compile(r"^#(.+)$")  # an attribute of this form alone may be a colour


def panel(name: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """One pair of axes as an SVG element.

    Args:
        name: of the figure, once in a page; all ids begin with it.
        width: in inches, at 72 to the inch.
        height: in inches.
        draw: fills the axes.
    """
    return grid(name, (width, height), (1, 1), lambda axes: draw(axes[0]))


def grid(name: str, size: tuple[float, float], shape: tuple[int, int], draw: Callable[[list[Axes]], None]) -> str:
    """Several axes, handed over row by row, as one SVG element."""
    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(list(figure.subplots(*shape, squeeze=False).flat))
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(file.getvalue(), name)


def inline(document: bytes, name: str) -> str:
    """An SVG document as an element for HTML, without metadata, its ids made the figure's own."""
    root = ET.fromstring(document)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == f"{{{SVG}}}metadata"]:
            parent.remove(child)
    pairs = [(_reference(key), value) for element in root.iter() for key, value in element.attrib.items()]
    wanted = {target for reference, value in pairs for target in reference.findall(value)}
    for element in root.iter():
        # Two equal images are given one id between them, which nothing refers to.
        if element.get("id") not in wanted:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            moved = _reference(key).sub(lambda found: found[0].replace("#", f"#{name}-", 1), value)
            element.set(key, f"{name}-{value}" if key == "id" else moved)
    root.set("id", name)
    # The page decides how large it is shown; beyond this it would only be coarse.
    width = root.attrib.pop("width", "").removesuffix("pt")
    root.attrib.pop("height", None)
    root.set("style", f"max-width: {float(width) * 4 / 3:.0f}px")
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _reference(key: str) -> re.Pattern[str]:
    """How an attribute refers to an id."""
    return _LINK if key in ("href", f"{{{XLINK}}}href") else _URL
