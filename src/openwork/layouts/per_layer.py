"""Different layouts for different layers."""

from __future__ import annotations

from collections.abc import Mapping

from openwork import layouts as layouts_package
from openwork.budgets import names_layer
from openwork.layouts.base import Dims, Layout, LayoutError, LayoutRule
from openwork.names import resolve


class PerLayer(LayoutRule):
    """A layout for each kind of layer, or for layers by name (the hybrid schemes of MEST, App. K).

    ``PerLayer({"3x3": "kernel_pattern", "1x1": "block(4, 1)", "head.*": "out_vector(8)"})``: keys are tried in their order and
    the first that fits a layer decides.  Layers that no key fits stay dense.

    Args:
        layouts: key -> layout or its name.  A key is a kernel size such as ``"3x3"``, ``"conv"`` or ``"linear"`` for all of a
            kind, or a layer's name or a glob of names.

    Raises:
        TypeError: ``layouts`` is no mapping of strings to layouts.
        ValueError: it is empty, or a name in it is unknown.
    """

    def __init__(self, layouts: Mapping[str, LayoutRule | str]) -> None:
        if not isinstance(layouts, Mapping) or not all(isinstance(key, str) for key in layouts):
            raise TypeError(f"layouts={layouts!r} must map kernel sizes, kinds or names of layers to layouts")
        if not layouts:
            raise ValueError("layouts={} has no layout in it")
        self.layouts = {
            key: resolve(f"layouts[{key!r}]", layout, LayoutRule, layouts_package)  # type: ignore[type-abstract]
            for key, layout in layouts.items()
        }

    def for_layer(self, name: str, dims: Dims) -> Layout:
        """The layout of the first key that fits.

        Raises:
            LayoutError: none does, or the layout has no place for such a layer.
        """
        for key, layout in self.layouts.items():
            if names_layer(key, name, dims):
                return layout.for_layer(name, dims)
        raise LayoutError(f"no key of PerLayer fits it: {', '.join(self.layouts)}")
