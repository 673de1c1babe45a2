"""A word to users whose training steps fetch the same memory from the system again and again.

glibc hands a freed block of more than 32 MB back at once, and smaller ones once more than 64 MB of them lie free at the end of
the heap.  Large activations are such blocks, and their pages are made anew, and cleared, in every step.  Two environment
variables tell it to keep them.  Whether that would pay is not guessed from sizes but read from what the system counts for the
process: pages that came in while steps ran, and the share of processor time that the system itself took.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
LINE = " ".join(f"{name}=4294967296" for name in VARIABLES)
"""What to put before the command that starts Python."""

WARM_UP = 3
"""Steps that are not looked at: memory comes in for the first time, optimizer state is made, ``kernel="auto"`` measures."""
STEPS = 5
"""Steps that are; medians over them are told."""
LEAST_BYTES = 64 * 2**20
"""Of memory fetched anew in a step, below which nothing is said."""
LEAST_SHARE = 0.1
"""Of processor time spent in the system, below which nothing is said: about that much faster the step would be."""

_OTHERS = ("jemalloc", "tcmalloc", "mimalloc")
_CHOICES = (*VARIABLES, "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold", "glibc.malloc.mmap_max", "glibc.malloc.top_pad")

_warned = False


class AllocatorWarning(UserWarning):
    """Training steps would be faster with another setting of the system's memory allocator; the message says which."""


class Usage(NamedTuple):
    """What the system has counted for this process so far: pages that came in, seconds of processor time."""

    pages: int
    user: float
    system: float


class Cost(NamedTuple):
    """What a training step pays for fresh memory: bytes, and the share of processor time spent in the system."""

    bytes: int
    share: float

    @property
    def advice(self) -> str | None:
        """What to tell the user; None where there is little to gain."""
        if self.bytes < LEAST_BYTES or self.share < LEAST_SHARE:
            return None
        return (
            f"each training step fetches {self.bytes / 1e6:,.0f} MB of memory from the system anew and the system takes "
            f"{self.share:.0%} of the processor time: start Python with {LINE}, and freed memory is kept for the next step"
        )


class MemoryWatch:
    """Looks at the first training steps, warns once in a process, and has nothing more to do.

    Attributes:
        advice: what to tell the user, None so far or where there is little to gain.
    """

    def __init__(self) -> None:
        self.advice: str | None = None
        self._seen: list[Usage] = []
        self._steps = 0
        self._done = False

    def attach(self, optimizer: Optimizer) -> None:
        """Look at the steps of ``optimizer``, where the setting is there to be made."""
        if sys.platform == "linux" and is_open(os.environ, c_library()):
            optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._done:
            return
        self._steps += 1
        # The reading after the last step of the warm-up is where the first step that counts begins.
        if self._steps >= WARM_UP:
            self._seen.append(usage())
        if len(self._seen) == STEPS + 1:
            self._tell(cost(self._seen))

    def _tell(self, found: Cost) -> None:
        global _warned
        self._done = True
        self.advice = found.advice
        if self.advice is not None and not _warned:
            _warned = True
            warnings.warn(self.advice, AllocatorWarning, stacklevel=4)  # the line of optimizer.step()


def c_library() -> str:
    """Name and version of the C library where it is glibc, else the empty string."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def is_open(environment: Mapping[str, str], library: str) -> bool:
    """Whether memory comes from glibc and nobody has said yet how.

    Args:
        environment: the variables this process was started with.
        library: as of :func:`c_library`.
    """
    if not library.startswith("glibc") or any(name in environment for name in _CHOICES):
        return False
    if any(name in environment.get("GLIBC_TUNABLES", "") for name in _TUNABLES):
        return False
    return not any(name in environment.get("LD_PRELOAD", "") for name in _OTHERS)


def usage() -> Usage:
    """Counts of this process, all of its threads together."""
    import resource  # there is none on Windows

    counted = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(counted.ru_minflt, counted.ru_utime, counted.ru_stime)


def cost(seen: Sequence[Usage]) -> Cost:
    """The median step between readings of ``usage``; one slow step, a topology update say, does not count.

    Args:
        seen: at least two readings.
    """
    pages, shares = [], []
    for before, after in itertools.pairwise(seen):
        user, system = after.user - before.user, after.system - before.system
        pages.append(after.pages - before.pages)
        shares.append(system / (user + system) if user + system > 0 else 0.0)
    return Cost(int(statistics.median(pages)) * os.sysconf("SC_PAGE_SIZE"), statistics.median(shares))
