"""The table of all runs."""

from __future__ import annotations

from collections.abc import Sequence

from openwork.train.page.colours import looks
from openwork.train.page.html import Section, paragraph, table
from openwork.train.runs import Run, twin_of

HEADINGS = (
    "run", "test accuracy", "epochs", "sparsity", "R_s", "trained numbers", "bytes trained", "of dense", "bytes of indices",
    "FLOPs a step", "of dense", "ms a step", "of dense",
)  # fmt: skip


def summary(runs: Sequence[Run]) -> Section:
    """Accuracy, sparsity, bytes, FLOPs and step time, with the ratio to the dense twin."""
    rows = [(look, _cells(run, twin_of(run, runs))) for run, look in zip(runs, looks(runs), strict=True)]
    words = (
        "Accuracy is that of the last epoch. Bytes trained: weights, gradients and optimizer state, the most that was counted "
        "after a step. FLOPs: of the average training step by image, topology updates included, against the same model dense. "
        "ms: the median step without a topology update, against the dense twin trained on the same machine."
    )
    return Section("summary", "Summary", table(HEADINGS, rows) + paragraph(words, note=True) + _settings(runs))


def _settings(runs: Sequence[Run]) -> str:
    """What all sparse trainings, or where there are none all dense ones, have in common, and a table of what they have not."""
    known = [(run, look, run.facts.settings) for run, look in zip(runs, looks(runs), strict=True) if run.facts is not None]
    shown = [entry for entry in known if not entry[0].is_dense] or known
    names = list(dict.fromkeys(name for _, _, settings in shown for name in settings))
    values = {name: [str(settings.get(name)) for _, _, settings in shown] for name in names}
    common = {name: held[0] for name, held in values.items() if len(set(held)) == 1 and held[0] != "None"}
    text = "; ".join(f"{name} {value}" for name, value in common.items())
    differing = [name for name, held in values.items() if len(set(held)) > 1]
    rows = [(look, [run.title, *(values[name][i] for name in differing)]) for i, (run, look, _) in enumerate(shown)]
    said = paragraph(f"Settings{' of all' if len(shown) > 1 else ''}: {text}", note=True) if text else ""
    return said + (table(["run", *differing], rows) if differing else "")


def _cells(run: Run, twin: Run | None) -> list[str]:
    last, facts = run.epochs[-1] if run.epochs else None, run.facts
    epochs = f"{0 if last is None else last.epoch}{'' if facts is None else f'/{facts.epochs}'}"
    return [
        run.title,
        "" if last is None else f"{100 * last.test_accuracy:.2f} %",
        epochs,
        "" if last is None or last.sparsity is None else f"{last.sparsity:.4f}",
        "" if last is None or last.exploration_rate is None else f"{last.exploration_rate:.4f}",
        "" if last is None else f"{last.parameters:,}",
        *_bytes(run, twin),
        *_flops(run),
        "" if run.step_ms is None else f"{run.step_ms:.2f}",
        ratio(run.step_ms, None if twin is None else twin.step_ms),
    ]


def _bytes(run: Run, twin: Run | None) -> list[str]:
    """Trained bytes, over those of the twin, and bytes of indices."""
    held = run.facts.memory if run.facts is not None else None
    dense = twin.facts.memory if twin is not None and twin.facts is not None else None
    if held is None:
        return ["", "", ""]
    return [f"{held.trained:,}", ratio(held.trained, None if dense is None else dense.trained), f"{held.indices:,}"]


def _flops(run: Run) -> list[str]:
    """FLOPs of a step, and over those of a dense one."""
    step = run.facts.training_step if run.facts is not None else None
    if run.facts is None or run.facts.flops is None or step is None:
        return ["", ""]
    return [f"{step:,.0f}", "" if run.is_dense else ratio(step, run.facts.flops.dense_training)]


def ratio(value: float | None, dense: float | None) -> str:
    """``value`` over ``dense``, where both are known."""
    return f"{value / dense:.3f}x" if value is not None and dense else ""
