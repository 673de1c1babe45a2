"""Stopping a training run from within."""

import signal

from openwork.train.classifier import Classifier


def kill_after(monkeypatch, steps):
    """A SIGTERM during the forward pass of training step ``steps``, counted from now on."""
    plain = Classifier.training_step
    done = []

    def training_step(self, batch, batch_idx):
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
