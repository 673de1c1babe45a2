"""Objects from short strings: ``"shuffled_block(16, 16)"``, ``"rigl"``, ``"dsb(lift='mean')"``."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def resolve(argument: str, value: object, base: type[T], package: ModuleType) -> T:
    """``value`` itself where it is a ``base``, else the object that the string describes.

    Args:
        argument: the name to use in errors.
        value: a ``base`` or a string ``name`` or ``name(literals)``; case and underscores do not matter.
        base: the abstract class.
        package: whose public names are searched.

    Raises:
        ValueError: the name is unknown, or the string is no call with literal arguments.
        TypeError: ``value`` is neither, or the arguments do not fit the constructor.
    """
    if isinstance(value, base):
        return value
    known = {
        _plain(name): kind
        for name, kind in vars(package).items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)
    }
    listed = ", ".join(sorted(kind.__name__ for kind in known.values()))
    if not isinstance(value, str):
        raise TypeError(f"{argument}={value!r} must be a {base.__name__} or the name of one: {listed}")
    try:
        call = ast.parse(value.strip(), mode="eval").body
        call = call if isinstance(call, ast.Call) else ast.Call(call, [], [])
        if not isinstance(call.func, ast.Name) or any(word.arg is None for word in call.keywords):
            raise ValueError
        arguments = [ast.literal_eval(node) for node in call.args]
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"{argument}={value!r} is not a name or name(literal, ...); names: {listed}") from None
    kind = known.get(_plain(call.func.id))
    if kind is None:
        raise ValueError(f"{argument}={value!r} is unknown; known: {listed}")
    try:
        return kind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{argument}={value!r} does not fit {kind.__name__}{inspect.signature(kind)}: {error}") from None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
