"""Layouts of which a pattern may hold any number of atoms."""

from __future__ import annotations

from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Dims, fit_units, matrix


class CountedLayout(AtomLayout):
    """Atoms that come and go one by one, or a fixed number of them together."""

    def together(self, shape: tuple[int, int]) -> int:
        """How many atoms a unit more or less is."""
        return 1

    @property
    def resizable(self) -> bool:
        """Units are atoms, any number of them."""
        return True

    def fit(self, dims: Dims, density: float) -> int:
        """Atoms: the fewest whose weights reach the canonical count."""
        shape = matrix(dims)
        step = self.together(shape)
        units = self.total_atoms(shape) // step
        return step * fit_units(shape, density, units, lambda n: self.weights_of(shape, step * n))
