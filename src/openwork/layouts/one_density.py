"""Layouts of single weights whose number follows from the shape."""

from __future__ import annotations

from abc import abstractmethod

from openwork.layouts.base import Dims, Layout, LayoutError, LayoutRule, matrix


class OneDensity(Layout):
    """Single weights in small sets or tiles, each of which keeps a fixed number: no other density can be asked for.

    Args:
        rule: what made this layout; its name in reports and saved states.
        density: what a full set keeps; a ragged layer may come out a little denser.
    """

    def __init__(self, rule: LayoutRule, density: float) -> None:
        self._rule, self._density = rule, density

    @abstractmethod
    def held(self, shape: tuple[int, int]) -> int:
        """The weights of every pattern of a matrix."""

    @property
    def density(self) -> float:
        """What a full set keeps."""
        return self._density

    @property
    def height(self) -> int:
        """1."""
        return 1

    @property
    def block(self) -> tuple[int, int]:
        """A single weight."""
        return 1, 1

    def fit(self, dims: Dims, density: float) -> int:
        """The number of weights that the sets keep.

        Raises:
            LayoutError: another density is asked for.
        """
        if abs(density - self._density) > 1e-6:
            raise LayoutError(f"{self!r} has a density of {self._density:g}; {density:g} was asked for")
        return self.held(matrix(dims))

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """A unit is one weight."""
        return count

    def check_count(self, shape: tuple[int, int], count: int) -> None:
        """Raise ``LayoutError`` unless ``count`` is what the sets keep."""
        if count != self.held(shape):
            raise LayoutError(f"{self!r} keeps {self.held(shape)} weights of a {shape} matrix, not {count}")

    def __repr__(self) -> str:
        return repr(self._rule)
