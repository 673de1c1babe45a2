"""Atoms in capacity classes: the first and the best of each; and the sums of scores over atoms."""

from __future__ import annotations

import numpy as np

from openwork.scores import highest


def summed(ids: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids, ascending, and the sum of the scores of each."""
    if (ids[1:] > ids[:-1]).all():
        return ids, score
    distinct, inverse = np.unique(ids, return_inverse=True)
    return distinct, np.bincount(inverse, weights=score, minlength=len(distinct))


def first_of_classes(classes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Ascending indices of the first ``limits[class]`` members of every class."""
    if len(limits) == 1:
        return np.arange(min(len(classes), int(limits[0])))
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes, minlength=len(limits))
    # In the sorted order a class's members stand together: the first few of each.
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[within < np.repeat(limits, sizes)])


def best_of_classes(ids: np.ndarray, score: np.ndarray, classes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Indices of the ``limits[class]`` highest scores of every class, ties by lowest id."""
    if len(limits) == 1:
        return highest(score, limits[0])
    order = np.lexsort((ids, -score))
    return np.sort(order[first_of_classes(classes[order], limits)])
