"""Distributed training on the CPU, in processes of its own, so that what they say and how they end is seen."""

import subprocess
import sys
from pathlib import Path

import pytest

RANK = Path(__file__).with_name("one_rank.py")


@pytest.mark.parametrize("ranks", [1, 2])
def test_distributed_data_parallel_and_synchronised_norms(ranks, tmp_path):
    command = [sys.executable, "-W", "error", str(RANK)]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * ranks, "\n".join(said)
    assert said == [""] * ranks
