"""Values that were read from JSON or CSV files, as the dataclasses they were: nothing is taken on trust, no code is run."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def as_json(value: Any) -> Any:
    """What ``json.loads(json.dumps(...))`` would make of a dataclass: tuples, named ones too, are lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def decode(kind: type[T], value: object, where: str) -> T:
    """The ``kind`` that ``value``, made of what JSON has, describes.

    Args:
        kind: a dataclass, a named tuple, ``int``, ``float``, ``str``, ``bool``, and of these ``X | None``,
            ``tuple[X, ...]`` and ``dict[str, X]``.
        value: from ``json.loads``.
        where: what to call it in errors.

    Raises:
        ValueError: it does not describe one; the message says where and why.
    """
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> Any:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _one_of(inside, value, where)
    if dataclasses.is_dataclass(kind) or _is_named_tuple(kind):
        return _fields(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(inside[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _decode(inside[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {_short(value)}, not {getattr(kind, '__name__', kind)}")


def _one_of(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    for kind in wanted[:-1]:
        # Of several only plain ones can be told apart by trying.
        if type(value) is kind:
            return value
    return _decode(wanted[-1], value, where)


def _fields(kind: Any, value: object, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    names, needed = _names(kind)
    if _is_named_tuple(kind) and isinstance(value, list) and len(value) == len(names):
        value = dict(zip(names, value, strict=True))
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_short(value)}, no {kind.__name__}")
    missing = sorted(needed - set(value))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    # What a later version has more is of no use here; what it has given up must have had a default.
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in names if name in value})


def _names(kind: Any) -> tuple[list[str], set[str]]:
    """All fields, and those without a default."""
    if _is_named_tuple(kind):
        return list(kind._fields), set(kind._fields) - set(kind._field_defaults)
    fields = dataclasses.fields(kind)
    absent = dataclasses.MISSING
    return [field.name for field in fields], {f.name for f in fields if f.default is absent and f.default_factory is absent}


def from_text(kind: type[T], row: Mapping[str, str | None], where: str) -> T:
    """The dataclass of numbers and words that a row of a CSV file describes; other columns are left out.

    An empty or absent cell is None where the field may be.

    Raises:
        ValueError: a cell is missing or no number; the message says which.
    """
    hints = typing.get_type_hints(kind)
    return kind(**{name: _cell(hint, row.get(name), f"{where}: {name}") for name, hint in hints.items()})


def _cell(hint: Any, text: str | None, where: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if not text and type(None) in kinds:
        return None
    if text is None:
        raise ValueError(f"{where} is missing")
    try:
        return kinds[0](text)
    except ValueError:
        raise ValueError(f"{where} is {_short(text)}, no {kinds[0].__name__}") from None


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
