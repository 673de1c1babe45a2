"""Whether a time was taken under the best conditions that the machine has shown: cores that share a cache, and to ourselves.

On a virtual machine both change while a benchmark runs, and move some layers' times by half.
"""

from __future__ import annotations

import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 300
NEAR = 380.0  # nanoseconds there and back: 170 to 330 with a cache shared, 450 and more without
AGAIN = 1.75  # the same place gives up to 1.5 times the least
PATIENCE = 120.0  # seconds of waiting and of turns taken again, in all
_SPIN = 10_000_000  # an answer that takes longer never comes
_ANSWER = f"""
import mmap, os, sys
os.sched_setaffinity(0, {{int(sys.argv[1])}})
with open(sys.argv[2], "r+b") as file:
    line = mmap.mmap(file.fileno(), mmap.PAGESIZE)
for rounds in sys.stdin:
    for _ in range(int(rounds)):
        for _ in range({_SPIN}):
            if line[0] == 1:
                break
        line[0] = 2
"""


class Conditions:
    """The first two cores of this process, how near to each other they have been found, and whether others wanted them.

    Two processes, one on each core, answer each other through a byte that both have mapped.  Where that cannot be done (one
    core, or no way to choose it) every distance is 0.  Where the system does not tell how long tasks waited for a core, none
    did.
    """

    def __init__(self) -> None:
        self.nearest = float("inf")
        self.turns = self.poor = 0
        self._other: subprocess.Popen[str] | None = None
        self._patience = PATIENCE
        self._cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []

    def distance(self) -> float:
        """Nanoseconds there and back, in Python: the median of some hundred round trips, which take less than a millisecond."""
        if len(self._cores) < 2:
            return 0.0
        if self._other is None:
            self._start()
        assert self._other is not None
        assert self._other.stdin is not None
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cores[0]})
        self._line[0] = 0
        self._other.stdin.write(f"{ROUNDS}\n")
        self._other.stdin.flush()
        taken = []
        for _ in range(ROUNDS):
            start = time.perf_counter_ns()
            self._line[0] = 1
            for _ in range(_SPIN):
                if self._line[0] == 2:
                    break
            taken.append(time.perf_counter_ns() - start)
        os.sched_setaffinity(0, allowed)
        median = statistics.median(taken)
        self.nearest = min(self.nearest, median)
        return median

    def near(self) -> bool:
        """Whether they are as near now as they have been, and near enough to share a cache."""
        return self.distance() <= min(NEAR, AGAIN * self.nearest)

    def watched(self, turn: Callable[[], float]) -> tuple[float, bool]:
        """What ``turn`` returns, seconds, and whether the cores were near and free all the while.

        If not, it is tried again while there is patience.
        """
        while True:
            while not self.near() and self._patience > 0:
                time.sleep(0.5)
                self._patience -= 0.5
            others, start = _waiting(), time.perf_counter()
            taken = turn()
            whole = time.perf_counter() - start
            alone = _waiting() - others <= max(30, 0.02 * 1e6 * whole)
            good = alone and self.near()
            if good or self._patience <= 0:
                break
            self._patience -= whole
        self.turns += 1
        self.poor += not good
        return taken, good

    def __str__(self) -> str:
        poor = f"{self.poor} of {self.turns} times taken while further apart or in use by others"
        return f"cores {self.nearest:.0f} ns apart there and back ({poor})"

    def _start(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            self._line = mmap.mmap(file.fileno(), mmap.PAGESIZE)
            command = [sys.executable, "-S", "-c", _ANSWER, str(self._cores[1]), file.name]
            self._other = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
            for _ in range(20):  # its file has to be open, and the least distance known, before one is believed
                self.distance()
                time.sleep(0.1)


def _waiting() -> float:
    """Microseconds, so far, during which some task of the system waited for a core."""
    pressure = Path("/proc/pressure/cpu")
    try:
        return float(pressure.read_text().split("total=")[1].split()[0])
    except (OSError, IndexError):
        return 0.0
