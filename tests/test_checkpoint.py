"""Checkpoints, tables, random state and stop requests, each by itself."""

import random
import signal

import numpy as np
import pytest
import torch

from openwork.train import CheckpointError
from openwork.train import checkpoint as checkpoint_module
from openwork.train.checkpoint import AtomicCheckpointIO, StopRequest, random_state, read_checkpoint, set_random_state
from openwork.train.files import Table


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_damaged_and_dangerous_checkpoints_are_refused(tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.randn(1000)}}, path)
    read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        read_checkpoint(path)
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged or no checkpoint"):
        read_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="is no checkpoint of a training run"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is no file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "n": 1}, path)

    def full_disk(content, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint_module.torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "n": 2}, path)
    assert read_checkpoint(path)["n"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_random_state_comes_back():
    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_a_stop_request_outside_training_ends_at_once_and_restores_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, StopRequest():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_tables_drop_rows_that_are_to_be_written_again(tmp_path):
    table = Table(tmp_path / "t.csv", ("step", "x"))
    table.keep(lambda row: False)
    assert table.rows() == []
    table.append([{"step": 1, "x": "a"}, {"step": 2, "x": "b,c"}])
    table.append([{"step": 3, "x": 0.5}])
    table.keep(lambda row: int(row["step"]) < 3)
    assert table.rows() == [{"step": "1", "x": "a"}, {"step": "2", "x": "b,c"}]
