"""Row similarity and clustering by the native module, bit for bit those of ``grouping`` and ``linkage``.

Where the module was not built the two Python functions do the same, only slower.  Arrays cross as addresses, so all that
crosses is checked here.  The number of threads is torch's; results do not depend on it.
"""

from __future__ import annotations

import numpy as np
import torch

from openwork.compiled import built as built
from openwork.layouts.linkage import Linkage


def intersections(flat: np.ndarray, shape: tuple[int, int], rows: range, budget: int) -> np.ndarray:
    """float32 ``[len(rows), len(rows)]``: common non-zero columns of every two rows, counted in rows of bits.

    Args:
        flat: int64, flat positions in any order; those of other rows are passed over.
        shape: ``(R, C)``.
        rows: consecutive rows.
        budget: bytes of temporaries; the bits take an eighth of it, the columns in chunks where need be.

    Raises:
        ValueError: ``flat`` is not a vector of int64, ``rows`` is empty, has a step or leaves the matrix.
    """
    import openwork._native as native

    if flat.dtype != np.int64 or flat.ndim != 1:
        raise ValueError(f"flat must be one-dimensional int64, got {flat.dtype} of shape {flat.shape}")
    if rows.step != 1 or not 0 <= rows.start < rows.stop <= shape[0] or shape[1] < 1:
        raise ValueError(f"{rows!r} must be consecutive rows of a matrix of shape {shape}")
    flat, n = np.ascontiguousarray(flat), len(rows)
    words = max(1, min(-(-shape[1] // 64), budget // (64 * n)))
    bits = np.empty((n, words), dtype=np.uint64)
    common = np.zeros((n, n), dtype=np.float32)
    for first in range(0, shape[1], 64 * words):
        native.common_columns(
            flat.ctypes.data, len(flat), shape[1], rows.start, n, bits.ctypes.data, words, first, common.ctypes.data,
            torch.get_num_threads(),
        )  # fmt: skip
    return common


def cluster(distance: np.ndarray, n_clusters: int, linkage: Linkage = "average") -> np.ndarray:
    """``linkage.cluster``.

    Args:
        distance: float32 ``[n, n]``, symmetric; it is used up.
        n_clusters: at least 1, at most ``n``.
        linkage: distance of two clusters, the mean or the greatest of their members'.

    Raises:
        ValueError: ``distance`` is not a writable, contiguous float32 square of finite, symmetric numbers, or there are fewer
            rows than clusters.
    """
    import openwork._native as native

    n = len(distance)
    if distance.dtype != np.float32 or distance.shape != (n, n) or not n:
        raise ValueError(f"distance must be a float32 square, got {distance.dtype} of shape {distance.shape}")
    if not (distance.flags.c_contiguous and distance.flags.writeable):
        raise ValueError("distance must be contiguous and writable: it is used up")
    if not 1 <= n_clusters <= n:
        raise ValueError(f"n_clusters={n_clusters!r} must lie in [1, {n}]")
    labels = np.empty(n, dtype=np.int64)
    native.cluster(distance.ctypes.data, n, n_clusters, linkage == "complete", labels.ctypes.data)
    return labels
