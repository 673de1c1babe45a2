"""The Lightning trainer of one model, with everything that watches it."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl

from openwork.sparsify import Sparsity
from openwork.train.checkpoint import AtomicCheckpointIO, Checkpoints, StopRequest
from openwork.train.data_efficiency import Announcement
from openwork.train.fact_sheet import FactSheet
from openwork.train.history import Bar, EventFiles, History, Stopwatch
from openwork.train.layer_history import LayerHistory
from openwork.train.pictures import PictureBook
from openwork.train.settings import Settings


def make_trainer(
    settings: Settings,
    folder: Path,
    sparsity: Sparsity | None,
    watch: Stopwatch,
    stop: StopRequest,
    announcement: Announcement | None,
) -> pl.Trainer:
    """The trainer of the sparse model, or of the dense one where ``sparsity`` is None."""
    # Lightning announces devices, tips and saved files; only what goes wrong is of interest here.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    callbacks = _watchers(settings, folder, sparsity, watch, announcement is not None)
    # After all that write rows: what a checkpoint knows of has been written.
    callbacks.append(Checkpoints(folder / "checkpoints", stop, settings.checkpoint_every))
    if announcement is not None:
        callbacks.append(announcement)
    if settings.progress:
        callbacks.append(Bar())
    return pl.Trainer(
        accelerator=settings.device,
        devices=1,
        max_epochs=settings.epochs,
        logger=EventFiles(folder, name="", version=""),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        # The loader gets shorter when examples are removed, and Lightning has to ask for its length again.
        reload_dataloaders_every_n_epochs=0 if announcement is None else 1,
        default_root_dir=folder,
    )


def _watchers(
    settings: Settings, folder: Path, sparsity: Sparsity | None, watch: Stopwatch, data_efficient: bool
) -> list[pl.Callback]:
    """What measures and writes, each after those that it asks."""
    layers = None if sparsity is None else LayerHistory(folder, sparsity, settings.exploration)
    callbacks: list[pl.Callback] = [watch] if layers is None else [watch, layers]
    callbacks.append(History(folder, watch, layers, data_efficient))
    callbacks.append(FactSheet(folder, "dense" if sparsity is None else "sparse", settings, watch))
    if sparsity is not None and settings.pictures is not None:
        pictured = settings.pictures.choose(sparsity.layers)
        callbacks.append(PictureBook(folder, pictured, settings.pictures.cells, settings.pictures.epochs(settings.epochs)))
    return callbacks
