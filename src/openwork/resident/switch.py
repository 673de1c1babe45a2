"""Whether sparse convolutions hand on resident tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_on: ContextVar[bool] = ContextVar("resident", default=True)


def enabled() -> bool:
    """Whether they do, here."""
    return _on.get()


@contextlib.contextmanager
def resident(on: bool) -> Iterator[None]:
    """Switch it on or off for the code inside; results agree within rounding.

    Raises:
        TypeError: ``on`` is no bool.
    """
    if not isinstance(on, bool):
        raise TypeError(f"on={on!r} must be True or False")
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)
