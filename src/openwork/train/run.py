"""A whole training run: the sparse model, its dense twin, their files and the table at the end."""

from __future__ import annotations

import copy
import datetime
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import nn

from openwork import methods
from openwork.analysis import active_parameters
from openwork.data.images import Images, ImageSource
from openwork.data.loader import BatchLoader
from openwork.methods import Method
from openwork.names import resolve
from openwork.sparsify import Sparsity, sparsify
from openwork.train.checkpoint import LAST, Interrupted, StopRequest
from openwork.train.classifier import Classifier
from openwork.train.data_efficiency import Announcement
from openwork.train.files import write_text
from openwork.train.history import Stopwatch
from openwork.train.report import Summary, as_text, comparison, measured
from openwork.train.settings import Settings
from openwork.train.trainer import make_trainer

TEST_BATCH = 500


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Args:
        folder: the run folder.
        sparse: figures of the sparse model; None where the sparsity was 0.
        dense: figures of the dense model; None where no twin was asked for.
    """

    folder: Path
    sparse: Summary | None
    dense: Summary | None


def new_folder(settings: Settings) -> Path:
    """The run's folder, made here.

    Raises:
        ValueError: ``run_dir`` exists and is not empty.
    """
    if settings.run_dir is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder = Path("runs") / f"{type(settings.data).__name__.lower()}-{stamp}"
    else:
        folder = Path(settings.run_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"run_dir={str(folder)!r} exists and is not empty; choose another, or continue it with --resume {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train(
    settings: Settings,
    *,
    config: str | None = None,
    resume: Path | None = None,
    checkpoint: Path | None = None,
    console: Console | None = None,
) -> Result:
    """Train as ``settings`` say; write everything to the run folder and print the comparison.

    Args:
        settings: the run; its ``model`` is trained in place.
        config: the settings as YAML, kept in the run folder for ``--resume``.
        resume: a run folder to go on from; runs in it that have finished are not repeated.
        checkpoint: go on from this checkpoint in ``resume`` and not from the last one.
        console: where to print; None: standard output.

    Raises:
        ValueError: an argument that cannot be, found before anything is written.
        CheckpointError: a damaged checkpoint.
        Interrupted: a SIGTERM came; if a step had been made, its checkpoint is written.
    """
    console = console or Console()
    folder = resume
    with StopRequest() as stop:
        try:
            data = settings.data.load("train"), settings.data.load("test")
            check_model(settings.model, settings.data, data[0])
            loader = training_loader(settings, data[0])
            models = _models(settings, len(loader))
            folder = folder or new_folder(settings)
            if config is not None and resume is None:
                write_text(folder / "config.yaml", config)
            found: dict[str, Summary] = {}
            for name, (model, sparsity) in models.items():
                inside = folder / "dense" if len(models) == 2 and name == "dense" else folder
                start = Start(inside, resume is not None, checkpoint)
                found[name] = start.finished or _one(settings, name, model, sparsity, data, start, stop, console)
        except Interrupted as interrupted:
            interrupted.folder = folder
            raise
    result = Result(folder, found.get("sparse"), found.get("dense"))
    _conclude(result, console)
    return result


def _models(settings: Settings, steps_per_epoch: int) -> dict[str, tuple[nn.Module, Sparsity | None]]:
    """What is to be trained, in order; both start from the same weights."""
    models: dict[str, tuple[nn.Module, Sparsity | None]] = {}
    if settings.dense_twin or not settings.sparsity:
        models["dense"] = copy.deepcopy(settings.model), None
    if settings.sparsity:
        sparsity = _sparsify(settings, settings.epochs * steps_per_epoch)
        if settings.pictures is not None:
            # Here too, so that a wrong name is known before anything is written.
            settings.pictures.choose(sparsity.layers)
        models = {"sparse": (settings.model, sparsity), **models}
    return models


@dataclass(frozen=True)
class Start:
    """Where one of the two trainings starts.

    Args:
        folder: of this training.
        resume: whether the run goes on.
        wanted: a checkpoint that the user named.
    """

    folder: Path
    resume: bool
    wanted: Path | None

    @property
    def _named(self) -> bool:
        return self.wanted is not None and self.wanted.resolve().parent.parent == self.folder.resolve()

    @property
    def finished(self) -> Summary | None:
        """The figures, where there is nothing left to train."""
        return Summary.read(self.folder) if self.resume and not self._named else None

    @property
    def checkpoint(self) -> Path | None:
        """Where to go on from; None: from the beginning, which a run stopped before its first checkpoint does too."""
        if self._named:
            return self.wanted
        last = self.folder / "checkpoints" / LAST
        return last if self.resume and last.exists() else None


def _conclude(result: Result, console: Console) -> None:
    table = comparison(result.sparse, result.dense)
    console.print(table)
    if result.sparse is not None and result.sparse.updates:
        share = 100 * result.sparse.evicted_mass
        console.print(f"Topology updates: {result.sparse.updates}; each evicted {share:.2f} % of a layer's |w| on average.")
    console.print(f"Everything is in {result.folder}")
    write_text(result.folder / "result.txt", as_text(table))


def check_model(model: nn.Module, source: ImageSource, images: Images) -> None:
    """Send two images through the model before any time is spent.

    Raises:
        ValueError: the model does not take the images, or does not give one score for each class.
    """
    shape = tuple(images.pixels.shape[1:])
    was_training = model.training
    loader = BatchLoader(images, source, min(2, len(images)), train=False)
    try:
        with torch.no_grad():
            scores = model.eval()(next(iter(loader))[0])
    except RuntimeError as error:
        raise ValueError(f"model={type(model).__name__} does not take images of shape {shape} (C, H, W): {error}") from error
    finally:
        model.train(was_training)
    if scores.dim() != 2 or scores.shape[1] < len(images.classes):
        raise ValueError(
            f"model={type(model).__name__} gives scores of shape {tuple(scores.shape)}, "
            f"the data have {len(images.classes)} classes; most models have num_classes"
        )


def _one(
    settings: Settings,
    name: str,
    model: nn.Module,
    sparsity: Sparsity | None,
    data: tuple[Images, Images],
    start: Start,
    stop: StopRequest,
    console: Console,
) -> Summary:
    """Train one of the two models."""
    folder = start.folder
    loader = training_loader(settings, data[0])
    tests = BatchLoader(data[1], settings.data, TEST_BATCH, train=False)
    if sparsity is not None:
        console.print(sparsity.report())
        write_text(folder / "report.txt", as_text(sparsity.report()))
    # Both trainings draw the same random numbers, for dropout for instance.
    pl.seed_everything(settings.seed, verbose=False)
    module = Classifier(model, sparsity, settings.optimizer, settings.learning_rate, settings.epochs, loader)
    watch = Stopwatch()
    announcement = None if loader.selection is None else Announcement(loader.selection, settings.epochs, console)
    trainer = make_trainer(settings, folder, sparsity, watch, stop, announcement)
    fewer = "" if loader.selection is None else f", fewer from epoch {loader.selection.start + 1} on"
    console.print(f"Training the {name} model: {settings.epochs} epochs of {len(loader)} steps{fewer}")
    with warnings.catch_warnings():
        # Lightning's own use of a torch function that is on its way out; a user can do nothing about it.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        try:
            trainer.fit(module, loader, tests, ckpt_path=start.checkpoint)
        except SIGTERMException as error:
            # Lightning's own answer to a signal that came just after an epoch's checkpoint was written.
            raise Interrupted(signal.SIGTERM) from error
    figures = measured(name, module.tested.accuracy, active_parameters(model), watch.memory, (watch.median, watch.mean), folder)
    figures.save(folder)
    return figures


def training_loader(settings: Settings, images: Images) -> BatchLoader:
    """The training images in batches, at the start of the run.

    Raises:
        ValueError: too few images for a batch, or for what ``data_efficiency`` removes.
    """
    choice = settings.data_efficiency
    selection = None if choice is None else choice.sampler(len(images), settings.batch_size, settings.seed)
    return BatchLoader(images, settings.data, settings.batch_size, train=True, seed=settings.seed, selection=selection)


def _sparsify(settings: Settings, total_steps: int) -> Sparsity:
    method = resolve("method", settings.method, Method, methods)  # type: ignore[type-abstract]
    if method.total_steps is None:
        method.total_steps = total_steps
    return sparsify(
        settings.model,
        sparsity=settings.sparsity,
        layout=settings.layout,
        method=method,
        budget=settings.budget,
        exclude=settings.exclude,
        force=settings.force,
        seed=settings.seed,
        kernel=settings.kernel,
    )
