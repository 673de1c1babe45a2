"""``kernel="auto"``: a layer's sparse product timed against the dense one, once for each kind of input; the faster is taken.

What is timed is what a training step does: forward, and backward to whatever wants a gradient.  The dense way unpacks the
values and gathers their gradient, which is part of its price; it allocates the dense weight, and its gradient, while it
computes.  Which way is faster depends on the machine and on what else it does: two runs may differ by rounding.

Nothing is timed where something other than autograd watches (a compiler or tracer, autocast, a dispatch mode, the capture of a
CUDA graph): the sparse product is taken there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from openwork.kernels.operator import eager, unwatched
from openwork.nn.unpacking import forget
from openwork.pattern import Pattern
from openwork.resident import ResidentTensor

WARM_UP = 2
"""Rounds whose times do not count."""
REPEATS = 5
"""Rounds whose median does."""
BUDGET = 0.2
"""Seconds after which no further round is started; there are two at the least, of which the first is then the warm-up."""


class Measurable(Protocol):
    """What is timed of a module: two functions of an input, values ``[K, h]`` and a bias."""

    values: nn.Parameter
    bias: nn.Parameter | None
    timings: dict[Key, Timing]

    @property
    def pattern(self) -> Pattern:
        """Which weights exist."""

    @property
    def active(self) -> Tensor:
        """The values as the product takes them."""

    def product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The sparse product."""

    def unpacked_product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The dense product of the unpacked values."""


class Key(NamedTuple):
    """Inputs that are taken to be equally fast.

    Attributes:
        shape: of the input.
        dtype: of the input.
        device: of the input.
        wanted: whether input, values and bias want a gradient.
        threads: that PyTorch computes with.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    wanted: tuple[bool, ...]
    threads: int


@dataclass(frozen=True)
class Timing:
    """What one kind of input takes a layer.

    Attributes:
        shape: of the input.
        backward: whether a backward pass is counted.
        threads: that computed.
        stored: numbers in the values at the time.
        sparse: seconds of the sparse product.
        dense: seconds of the dense one.
    """

    shape: tuple[int, ...]
    backward: bool
    threads: int
    stored: int
    sparse: float
    dense: float

    @property
    def dense_wins(self) -> bool:
        """Whether the dense product is taken; the sparse one wins a tie."""
        return self.dense < self.sparse

    def outdated(self, stored: int) -> bool:
        """Whether the number of values has changed by more than a tenth."""
        return 10 * abs(stored - self.stored) > self.stored

    def __str__(self) -> str:
        passes = "forward and backward" if self.backward else "forward"
        taken = "dense" if self.dense_wins else "sparse"
        return (
            f"input {'x'.join(map(str, self.shape))}, {passes}, threads {self.threads}: sparse {1e3 * self.sparse:.3f} ms, "
            f"dense {1e3 * self.dense:.3f} ms, {taken} is taken"
        )


def dense_is_faster(module: Measurable, x: Tensor) -> bool:
    """Whether the dense product of this input is the faster one; times both if that is not known.

    Args:
        module: its ``timings`` take the result, the newest last; nothing else of it is changed.
        x: the input as its products take it.
    """
    if not _undisturbed(x):
        return False
    inputs = (x, module.active, module.bias)
    grad = torch.is_grad_enabled()
    wanted = tuple(grad and tensor is not None and tensor.requires_grad for tensor in inputs)
    key = Key(tuple(x.shape), x.dtype, x.device, wanted, torch.get_num_threads())
    known, stored = module.timings.get(key), module.values.numel()
    if known is None or known.outdated(stored):
        with _no_hooks():
            times = measure(*_passes(module, inputs, wanted), x.device)
        known = Timing(key.shape, any(wanted), key.threads, stored, *times)
        module.timings.pop(key, None)
        module.timings[key] = known
        if not any(timing.dense_wins for timing in module.timings.values()):
            forget(module.pattern)
    return known.dense_wins


def measure(sparse: Callable[[], None], dense: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Median seconds of both, run in turns so that whatever else the machine does meets both."""
    rounds: list[tuple[float, float]] = []
    while len(rounds) < WARM_UP + REPEATS and (len(rounds) < 2 or sum(map(sum, rounds)) < BUDGET):
        rounds.append((seconds(sparse, device), seconds(dense, device)))
    first, second = zip(*rounds[min(WARM_UP, len(rounds) - 1) :], strict=True)
    return statistics.median(first), statistics.median(second)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long one run takes, all of its work on ``device`` included."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _undisturbed(x: Tensor) -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # public, though not exported
        return False
    if not (eager(x) or (isinstance(x, ResidentTensor) and unwatched(x.device))):
        return False
    return x.numel() > 0 and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _passes(
    module: Measurable, inputs: tuple[Tensor, Tensor, Tensor | None], wanted: tuple[bool, ...]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward of the sparse and of the dense product, on leaves of their own that share memory with ``inputs``."""
    with torch.no_grad():
        out = module.product(*_leaves(inputs, wanted))  # type: ignore[arg-type]  # the bias alone may be None
    # A generator of its own: the global random state stays as it is.
    own = torch.Generator(out.device).manual_seed(0)
    gradient = torch.randn(out.shape, generator=own, dtype=out.dtype, device=out.device) if any(wanted) else None

    def passes(product: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            leaves = _leaves(inputs, wanted)
            result = product(*leaves)
            sought = [leaf for leaf, want in zip(leaves, wanted, strict=True) if leaf is not None and want]
            if sought:
                torch.autograd.grad(result, sought, gradient)

        return run

    return passes(module.product), passes(module.unpacked_product)


def _leaves(inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """The inputs without their history; a resident one anew: the dense way turns it to NCHW, which is part of its price."""
    leaves = [tensor.clone() if isinstance(tensor, ResidentTensor) else tensor for tensor in inputs]
    return [None if t is None else t.detach().requires_grad_(want) for t, want in zip(leaves, wanted, strict=True)]


def _no_hooks() -> AbstractContextManager[Any]:
    """Hide what is saved for backward from hooks of the caller: checkpointing counts it."""
    # Where hooks are forbidden there are none, and to add these would be an error.
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_same, _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor
