"""The page that ``openwork report`` writes: one HTML file with everything in it."""

from openwork.train.page.html import Section, page
from openwork.train.page.sections import sections

__all__ = ["Section", "page", "sections"]
