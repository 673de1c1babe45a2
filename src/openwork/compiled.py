"""Passes over ids and scores by the native module, bit for bit those of the Python that calls them.

``scores``, ``pattern`` and the layouts say in NumPy what these do, and do it so where the module was not built or an array is
not of the kind that it takes: ids are contiguous, one-dimensional and int64.  Arrays cross as addresses, so all that crosses is
checked here, and what the arrays hold by the native code.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import numpy as np
import torch

_TABLE = 2**26
"""Bits of the longest table of ids: an eighth of the bytes that a topology update may hold beyond the layer's own."""


@functools.cache
def built() -> bool:
    """Whether the native module is there; finding out does not load it."""
    return importlib.util.find_spec("openwork._native") is not None


def takes(*arrays: np.ndarray) -> bool:
    """Whether the module is there and these are ids as it takes them."""
    return built() and all(ids.dtype == np.int64 and ids.ndim == 1 and ids.flags.c_contiguous for ids in arrays)


def takes_index(offsets: np.ndarray, cols: np.ndarray) -> bool:
    """Whether the module is there and this is the index of a pattern as it takes it."""
    both = (offsets, cols)
    return built() and all(array.dtype == np.int32 and array.ndim == 1 and array.flags.c_contiguous for array in both)


def absent(ids: np.ndarray, others: np.ndarray) -> np.ndarray | None:
    """The distinct ``ids`` that are not among ``others``, ascending, from any order of both.

    Returns:
        int64, or None where the ids lie too far apart for a table of them.

    Raises:
        ValueError: not ids as ``takes`` wants them; the same holds for all that follow.
    """
    _check(ids=ids, others=others)
    out = np.empty(len(ids) + 1, dtype=np.int64)
    count = _native().absent(*_array(ids), *_array(others), _span(ids, others), _address(out), torch.get_num_threads())
    return None if count < 0 else out[:count]


def member(ids: np.ndarray, others: np.ndarray) -> np.ndarray | None:
    """bool, whether each of ``ids`` is among ``others``, from any order of both; None as for ``absent``."""
    _check(ids=ids, others=others)
    found = np.empty(len(ids), dtype=bool)
    return found if _native().member(*_array(ids), *_array(others), _span(ids, others), _address(found)) else None


def draw_even(seed: int, size: int, n: int) -> np.ndarray:
    """int64 ``[n]``: ``methods.draws.numbers`` times ``size``, cut off.

    Raises:
        ValueError: ``seed`` does not fit 64 bits, ``size`` is not in 1..2**53, or ``n`` is negative.
    """
    found = _drawn(seed, n)
    _native().draw_even(seed, size, n, _address(found), torch.get_num_threads())
    return found


def draw_weighted(seed: int, sums: np.ndarray, last: int, n: int) -> np.ndarray:
    """int64 ``[n]``: the first of ascending ``sums`` that exceeds ``methods.draws.numbers`` times their last, up to ``last``.

    Raises:
        ValueError: ``sums`` are not contiguous one-dimensional float64, or ``last`` is none of their indices; or what
            ``draw_even`` says.
    """
    if sums.dtype != np.float64 or sums.ndim != 1 or not sums.flags.c_contiguous:
        raise ValueError(f"sums must be contiguous one-dimensional float64, got {sums.dtype} of shape {sums.shape}")
    found = _drawn(seed, n)
    _native().draw_weighted(seed, *_array(sums), last, n, _address(found), torch.get_num_threads())
    return found


def _drawn(seed: int, n: int) -> np.ndarray:
    if not 0 <= seed < 2**64 or n < 0:
        raise ValueError(f"seed={seed!r} must lie in [0, 2**64) and n={n!r} must not be negative")
    return np.empty(n, dtype=np.int64)


def unlisted(before: _Index, width: int, flat: np.ndarray) -> np.ndarray | None:
    """The distinct ids ``flat``, numbered as by ``join``, whose columns a pattern does not store; ascending.

    Returns:
        int64, or None where the matrix is too large for a table of it, or an id or the offsets are not right.

    Raises:
        ValueError: what ``join`` says.
    """
    _check_index(*before)
    _check(flat=flat)
    groups = len(before[0]) - 1
    if groups * width > _span(flat, before[1]):
        return None
    out = np.empty(len(flat) + 1, dtype=np.int64)
    parts = (*map(_address, before), groups, len(before[1]), width)
    count = _native().unlisted(*parts, *_array(flat), _address(out), torch.get_num_threads())
    return None if count < 0 else out[:count]


def without(items: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``items`` but for those at the indices ``at``, which ascend strictly.

    Raises:
        ValueError: the indices do not, or leave the array; or what ``absent`` says.
    """
    _check(at=at)
    if items.ndim != 1 or not items.flags.c_contiguous or items.dtype.hasobject:
        raise ValueError(f"items must be contiguous one-dimensional numbers, got {items.dtype} of shape {items.shape}")
    out = np.empty(max(0, len(items) - len(at)), dtype=items.dtype)
    _native().without(_address(items), items.itemsize, len(items), *_array(at), _address(out))
    return out


def split(ids: np.ndarray, groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """``(offsets, cols)``, int32, of ascending ids ``group * width + column``.

    Raises:
        ValueError: the ids do not ascend, or one is not below ``groups * width``; or what ``absent`` says.
    """
    _check(ids=ids)
    offsets, cols = np.empty(max(0, groups) + 1, dtype=np.int32), np.empty(len(ids), dtype=np.int32)
    _native().split(*_array(ids), groups, width, _address(offsets), _address(cols))
    return offsets, cols


def join(offsets: np.ndarray, cols: np.ndarray, width: int) -> np.ndarray:
    """int64 ids ``group * width + column`` of the columns of a pattern, in the order in which they are stored.

    Raises:
        ValueError: the arrays are not contiguous int32, or the offsets do not ascend from 0 to the number of columns.
    """
    _check_index(offsets, cols)
    ids = np.empty(len(cols), dtype=np.int64)
    _native().join(_address(offsets), _address(cols), len(offsets) - 1, len(cols), width, _address(ids))
    return ids


_Index = tuple[np.ndarray, np.ndarray]


class Exchange(NamedTuple):
    """A pattern after some columns went and others came.

    Attributes:
        after: int32 ``(offsets, cols)``, ascending in every group.
        origin: int64 ``[K]``, where each column was stored before; 0 for those that are new.
        new_at: int64, where new columns are stored.
        distinct: whether none of what came was among what went; otherwise ``origin`` and ``new_at`` call it new.
    """

    after: _Index
    origin: np.ndarray
    new_at: np.ndarray
    distinct: bool


def exchange(before: _Index, width: int, gone: np.ndarray, fresh: np.ndarray) -> Exchange | None:
    """The pattern without the columns stored at the indices ``gone`` and with the ids ``fresh``, numbered as by ``join``.

    Args:
        before: int32 ``(offsets [G + 1], cols)``.
        width: columns of the matrix.
        gone: int64, indices of ``cols``.
        fresh: int64 ids.

    Returns:
        None where indices, ids or the columns of a group do not ascend strictly or lie outside, or what is fresh stands among
        what stays.

    Raises:
        ValueError: what ``join`` says.
    """
    _check_index(*before)
    _check(gone=gone, fresh=fresh)
    offsets = np.empty_like(before[0])
    cols = np.empty(max(0, len(before[1]) - len(gone)) + len(fresh), dtype=np.int32)
    origin, new_at = np.empty(len(cols), dtype=np.int64), np.empty(len(fresh), dtype=np.int64)
    parts = (_address(before[0]), *_array(before[1]), *_array(gone), *_array(fresh))
    out = (_address(array) for array in (offsets, cols, origin, new_at))
    in_order, distinct = _native().exchange(len(offsets) - 1, width, *parts, *out, torch.get_num_threads())
    return Exchange((offsets, cols), origin, new_at, distinct) if in_order else None


def carry(before: _Index, after: _Index, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Where each column that both hold is stored in either, in the order of ``after``.

    Args:
        before: int32 ``(offsets [G + 1], cols)``.
        after: the same of as many groups.
        width: columns of the matrix.

    Returns:
        int64 ``(source, target)``, or None where the columns of a group of ``after`` do not ascend strictly.

    Raises:
        ValueError: what ``join`` says, the numbers of groups differ or a column is not below ``width``.
    """
    _check_index(*before)
    _check_index(*after)
    if len(before[0]) != len(after[0]):
        raise ValueError(f"before has {len(before[0]) - 1} groups, after {len(after[0]) - 1}")
    source, target = np.empty(len(after[1]), dtype=np.int64), np.empty(len(after[1]), dtype=np.int64)
    parts = (_address(before[0]), *_array(before[1]), _address(after[0]), *_array(after[1]))
    count = _native().carry(len(before[0]) - 1, width, *parts, _address(source), _address(target), torch.get_num_threads())
    return None if count < 0 else (source[:count], target[:count])


def _native() -> Any:
    import openwork._native as native

    return native


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _array(array: np.ndarray) -> tuple[int, int]:
    return _address(array), len(array)


def _span(*arrays: np.ndarray) -> int:
    """How long a table of bits may be: no more bytes than 16 for each id, and a share of what a topology update may hold."""
    return min(_TABLE, 128 * (8 + sum(map(len, arrays))))


def _check(**arrays: np.ndarray) -> None:
    for name, ids in arrays.items():
        if ids.dtype != np.int64 or ids.ndim != 1 or not ids.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous one-dimensional int64, got {ids.dtype} of shape {ids.shape}")


def _check_index(offsets: np.ndarray, cols: np.ndarray) -> None:
    for name, array in (("offsets", offsets), ("cols", cols)):
        if array.dtype != np.int32 or array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous one-dimensional int32, got {array.dtype} of shape {array.shape}")
    if not len(offsets):
        raise ValueError("offsets must hold one number more than there are groups, got none")
