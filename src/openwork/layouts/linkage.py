"""Agglomerative clustering of a distance matrix by nearest-neighbour chains."""

from __future__ import annotations

from typing import Literal

import numpy as np

Linkage = Literal["average", "complete"]


def cluster(distance: np.ndarray, n_clusters: int, linkage: Linkage = "average") -> np.ndarray:
    """Cut the dendrogram of ``distance`` into ``n_clusters``.

    Nearest-neighbour chains find the merges of average and complete linkage exactly, in O(n^2) time and no further memory
    (Murtagh 1983).

    Args:
        distance: float32 ``[n, n]``, symmetric; it is used up.
        n_clusters: at least 1, at most ``n``.
        linkage: distance of two clusters, the mean or the greatest of their members'.

    Returns:
        int64 ``[n]``, labels numbered by each cluster's first member.
    """
    n = len(distance)
    merges = _merges(distance, linkage) if n > n_clusters else []
    merges.sort(key=lambda merge: merge[0])
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for _, a, b in merges[: n - n_clusters]:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    roots = np.array([root(i) for i in range(n)], dtype=np.int64)
    _, labels = np.unique(roots, return_inverse=True)
    return labels


def _merges(distance: np.ndarray, linkage: Linkage) -> list[tuple[float, int, int]]:
    """All ``n - 1`` merges as (distance, member of the one, member of the other), in chain order."""
    n = len(distance)
    np.fill_diagonal(distance, np.inf)
    size = np.ones(n, dtype=np.float32)
    alive = np.ones(n, dtype=bool)
    chain: list[int] = []
    merges: list[tuple[float, int, int]] = []
    first = 0
    while len(merges) < n - 1:
        if not chain:
            while not alive[first]:
                first += 1
            chain = [first]
        tip = chain[-1]
        row = distance[tip]
        near = int(row.argmin())
        # A tie goes to where the chain came from, or it would never end.
        if len(chain) > 1 and row[chain[-2]] <= row[near]:
            near = chain[-2]
            merges.append((float(row[near]), tip, near))
            _merge(distance, size, near, tip, linkage)
            alive[tip] = False
            del chain[-2:]
        else:
            chain.append(near)
    return merges


def _merge(distance: np.ndarray, size: np.ndarray, into: int, gone: int, linkage: Linkage) -> None:
    """Lance-Williams update: row ``into`` becomes the union, ``gone`` falls out."""
    if linkage == "complete":
        union = np.maximum(distance[into], distance[gone])
    else:
        union = (size[into] * distance[into] + size[gone] * distance[gone]) / (size[into] + size[gone])
    size[into] += size[gone]
    union[into] = np.inf
    distance[into] = union
    distance[:, into] = union
    distance[gone] = np.inf
    distance[:, gone] = np.inf
