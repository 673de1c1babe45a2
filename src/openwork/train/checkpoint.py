"""Checkpoints: written whole or not at all, read without running code, and left behind when the process must end."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

LAST = "last.ckpt"
BEST = "best.ckpt"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run."""


class Interrupted(SystemExit):
    """Training ended early on request.  The exit code is 128 + the signal's number.

    Attributes:
        folder: the run folder to resume; None where there is none yet.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.folder: Path | None = None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; until it is complete, the file of that name stays what it was."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            torch.save(checkpoint, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever ``weights_only`` says without unpickling freely.

        Raises:
            CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
        """
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; a checkpoint or a run folder with checkpoints/{LAST} is wanted")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path} is no checkpoint of a training run")
    return content


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` took."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


class StopRequest:
    """Notes a SIGTERM, so that training can end between two steps; outside training the process ends at once.

    Use as a context manager around a whole run; the old handler comes back afterwards.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.training = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if not self.training:
            raise Interrupted(number)


class Checkpoints(pl.Callback):
    """Writes ``last.ckpt`` after every epoch, every ``every`` steps and on a stop request, ``best.ckpt`` at the best accuracy.

    Args:
        folder: where to.
        stop: asked after every step.
        every: steps between checkpoints within an epoch; None: none.
    """

    def __init__(self, folder: Path, stop: StopRequest, every: int | None = None) -> None:
        self.folder = folder
        self.stop = stop
        self.every = every
        self.best = -1.0

    def state_dict(self) -> dict[str, Any]:
        """The best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best accuracy so far."""
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a stop waits for the end of a step."""
        self.stop.training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, or write and stop, between two steps."""
        # After the last batch the epoch's validation is still to come; its end is a better place.
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        stop = self.stop.number is not None
        if stop or (self.every is not None and trainer.global_step % self.every == 0):
            self._save(trainer, LAST)
        if stop:
            self._end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, keep the best, and stop where that was asked for."""
        accuracy = float(trainer.callback_metrics.get("test_accuracy", -1.0))
        if accuracy > self.best:
            self.best = accuracy
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        if self.stop.number is not None:
            self._end()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a stop is immediate again."""
        self.stop.training = False

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)

    def _end(self) -> None:
        number = self.stop.number
        if number is not None:
            raise Interrupted(number)
