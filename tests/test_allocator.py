"""The word about memory that is fetched anew in every step: when it is said, and that it is said once."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import openwork as ow
from openwork import allocator
from openwork.allocator import LINE, STEPS, VARIABLES, WARM_UP, AllocatorWarning, Cost, MemoryWatch, Usage, cost, is_open

MUCH = 10**9 // os.sysconf("SC_PAGE_SIZE")
"""Pages in a step: one GB, far beyond the least that is told."""


@pytest.fixture
def unset(monkeypatch):
    """A process on glibc whose user has said nothing, and in which nothing has been warned of."""
    monkeypatch.setattr(allocator, "_warned", False)
    monkeypatch.setattr(allocator, "c_library", lambda: "glibc 2.36")
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", *VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def counted(monkeypatch):
    """Let the system's counts grow by the same with each reading."""

    def set_to(pages, user, system):
        readings = iter(range(10_000))

        def usage():
            n = next(readings)
            return Usage(n * pages, n * user, n * system)

        monkeypatch.setattr(allocator, "usage", usage)

    return set_to


def steps(number, **options):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    held = ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static", kernel="reference", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    held.attach(optimizer)
    for _ in range(number):
        model(torch.randn(3, 16)).sum().backward()
        optimizer.step()
    return held


def test_the_median_step_counts():
    readings = [Usage(0, 0.0, 0.0), Usage(100, 3.0, 1.0), Usage(150, 4.0, 2.0), Usage(10_000, 4.1, 12.0)]
    # Pages 100, 50 and 9850; shares 1/4, 1/2 and 10/10.1.
    assert cost(readings) == Cost(100 * os.sysconf("SC_PAGE_SIZE"), 0.5)
    assert cost([Usage(5, 1.0, 1.0)] * 3) == Cost(0, 0.0)


def test_there_is_advice_only_where_much_is_fetched_and_it_takes_time():
    assert Cost(500 * 2**20, 0.2).advice
    assert LINE in Cost(500 * 2**20, 0.2).advice
    assert "524 MB" in Cost(500 * 2**20, 0.2).advice
    assert "20%" in Cost(500 * 2**20, 0.2).advice
    assert Cost(500 * 2**20, 0.05).advice is None
    assert Cost(2**20, 0.9).advice is None


@pytest.mark.parametrize(
    ("environment", "library", "expected"),
    [
        ({}, "glibc 2.36", True),
        ({"PATH": "/bin", "GLIBC_TUNABLES": "glibc.malloc.check=1", "LD_PRELOAD": "libfoo.so"}, "glibc 2.36", True),
        ({}, "", False),
        ({"MALLOC_MMAP_THRESHOLD_": "4294967296"}, "glibc 2.36", False),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, "glibc 2.36", False),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.mmap_threshold=4294967296"}, "glibc 2.36", False),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, "glibc 2.36", False),
        ({"LD_PRELOAD": "/a.so:/usr/lib/libtcmalloc_minimal.so"}, "glibc 2.36", False),
    ],
)
def test_a_choice_that_was_made_is_respected(environment, library, expected):
    assert is_open(environment, library) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of glibc")
def test_it_warns_once_and_stays_in_the_report(unset, counted):
    counted(MUCH, 0.8, 0.2)
    with pytest.warns(AllocatorWarning, match=f"1,000 MB .* 20% .* {LINE}") as caught:
        held = steps(3 * (WARM_UP + STEPS))
    assert len(caught) == 1
    assert [note for note in held.report().notes if LINE in note] == [str(caught[0].message)]
    # Not again for the next model, whose report says it all the same.
    assert LINE in str(steps(WARM_UP + STEPS).report()).replace("\n", " ")


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of glibc")
def test_nothing_is_said_too_early_or_of_cheap_steps(unset, counted):
    counted(MUCH, 0.8, 0.2)
    assert steps(WARM_UP + STEPS - 1).report().advice is None
    counted(MUCH, 0.99, 0.01)
    assert steps(WARM_UP + STEPS).report().advice is None
    counted(10, 0.5, 0.5)
    assert steps(WARM_UP + STEPS).report().advice is None


def test_nothing_is_looked_at_where_the_setting_is_made(unset, counted, monkeypatch):
    counted(MUCH, 0.8, 0.2)
    monkeypatch.setenv(VARIABLES[0], "4294967296")
    assert steps(2 * (WARM_UP + STEPS)).report().advice is None


def test_a_watch_without_an_optimizer_has_nothing_to_say():
    assert MemoryWatch().advice is None


def test_small_models_train_in_silence(unset):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps(2 * (WARM_UP + STEPS)).report().advice is None


@pytest.mark.skipif(not allocator.c_library(), reason="the setting is one of glibc")
@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of glibc")
@pytest.mark.parametrize("kept", [False, True], ids=["as it is", "with the line"])
def test_the_system_is_read_right(kept):
    """A block of 48 MB made and freed: its pages come in each time, and not with the line that is advised.

    Small blocks may break up the first large ones that are freed, so only the last rounds count.
    """
    script = """
import torch
from openwork.allocator import cost, usage
size, seen = 48 * 2**18, []
for _ in range(40):
    torch.empty(size).fill_(1.0)
    seen.append(usage())
print(cost(seen[-8:]).bytes)
"""
    # Whatever this process was started with must not decide.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    setting = dict(pair.split("=") for pair in LINE.split()) if kept else {}
    done = subprocess.run([sys.executable, "-c", script], env=clean | setting, capture_output=True, text=True, check=True)
    found = int(done.stdout)
    assert found < 2**20 if kept else found > 40 * 2**20
