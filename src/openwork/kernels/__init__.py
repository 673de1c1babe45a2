"""The kernel table: which function computes which product on which backend.

Four products cover every layout, because every layout is stored as one :class:`~openwork.pattern.Pattern`:

=====================  ==========================================================================================
``linear``             ``(x[B, C], values[K, h], pattern, bias | None) -> y[B, R]``
``linear_backward``    ``(g[B, R], x | None, values | None, pattern) -> (dx | None, dvalues | None)``
``conv2d``             ``(x[N, Cin, H, W], values, pattern, bias | None, window) -> y[N, R, Ho, Wo]``
``conv2d_backward``    ``(g, x | None, values | None, pattern, window, input_size) -> (dx | None, dvalues | None)``
=====================  ==========================================================================================

A backward without ``values`` skips the input gradient, one without ``x`` skips the weight gradient; the latter alone is the
sampled product (sddmm).  A backend may also have each of them with ``_bf16`` at the end of the name, the same for bfloat16
activations with float32 values, bias and ``dvalues``, as autocast has them, and ``channel_sums_bf16``, the sums of
``g[N, R, Ho, Wo]`` over all but its channels in float32.  ``linear_backward_bf16`` takes one tensor more, or none: float32
``[R]`` that it fills with the sums of ``g`` over the batch.  Adding a backend is one module that registers
the four names, and one line in ``MODULES``.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Kernel = Callable[..., Any]
F = TypeVar("F", bound=Kernel)

MODULES = {"reference": ("openwork.kernels.reference",), "cpu": ("openwork.kernels.cpu", "openwork.kernels.cpu_bf16")}
OPS = ("linear", "linear_backward", "conv2d", "conv2d_backward")
OPTIONAL = ("linear_bf16", "linear_backward_bf16", "conv2d_bf16", "conv2d_backward_bf16", "channel_sums_bf16")

_table: dict[tuple[str, str], Kernel] = {}
_loaded: dict[str, bool] = {}
_warned: set[tuple[str, torch.dtype]] = set()


def register(op: str, backend: str) -> Callable[[F], F]:
    """Decorator that enters a function in the table.

    Raises:
        ValueError: ``op`` is not one of ``OPS`` and ``OPTIONAL``.
    """
    if op not in OPS + OPTIONAL:
        raise ValueError(f"op={op!r} must be one of {', '.join(OPS + OPTIONAL)}")

    def enter(function: F) -> F:
        _table[op, backend] = function
        return function

    return enter


def lookup(op: str, backend: str) -> Kernel:
    """The function for ``op`` on ``backend``; imports the backend at first use.

    Raises:
        ValueError: the backend is unknown or cannot be loaded here, or it lacks ``op``.
    """
    try:
        return _table[op, backend]
    except KeyError:
        pass
    if backend not in MODULES:
        raise ValueError(f"kernel={backend!r} must be one of {', '.join(MODULES)}")
    if not _loads(backend):
        raise ValueError(f"kernel={backend!r} cannot be used here; available: {', '.join(available())}")
    if (op, backend) not in _table:
        raise ValueError(f"kernel={backend!r} has no op {op!r}")
    return _table[op, backend]


def _loads(backend: str) -> bool:
    # Not functools.cache: torch.compile looks behind it, and warns.
    if backend not in _loaded:
        _loaded[backend] = _imported(backend)
    return _loaded[backend]


def _imported(backend: str) -> bool:
    try:
        for module in MODULES[backend]:
            importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.startswith("openwork._"):
            return False
        raise
    return True


def kept_bytes(cols: Tensor) -> int:
    """Bytes of index that backends keep beside the pattern with these columns, as long as it lives."""
    loaded = [sys.modules[module] for modules in MODULES.values() for module in modules if module in sys.modules]
    return sum(module.kept_bytes(cols) for module in loaded if hasattr(module, "kept_bytes"))


def available() -> tuple[str, ...]:
    """Names of the backends that load on this machine."""
    return tuple(name for name in MODULES if _loads(name))


def offers(op: str, backend: str) -> bool:
    """Whether ``backend`` has ``op``, one of ``OPTIONAL``."""
    return backend in MODULES and _loads(backend) and (op, backend) in _table


def supports(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``backend`` computes in ``dtype`` on ``device``."""
    return backend == "reference" or (device.type == backend and dtype == torch.float32)


def choose(device: torch.device | str, dtype: torch.dtype, requested: str | None = None) -> str:
    """The backend for tensors of ``dtype`` on ``device``.

    Args:
        device: where the layer's values are.
        dtype: their type.
        requested: a backend's name, or None for the fastest that there is.  Where that is only ``reference``, which unpacks
            every weight to dense, a warning says so once for each device type and dtype.  ``"auto"``, by which modules measure
            that backend against the dense product, means the same here.

    Raises:
        ValueError: ``requested`` is unknown, does not load, or does not support this device and dtype.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    if requested is not None and requested != "auto":
        if not isinstance(requested, str) or ("linear", requested) not in _table:
            if requested not in (*MODULES, *(backend for _, backend in _table)):
                raise ValueError(f"kernel={requested!r} must be one of {', '.join(MODULES)}, auto")
            lookup("linear", requested)
        if not supports(requested, device, dtype):
            raise ValueError(f"kernel={requested!r} computes in torch.float32 on the {requested}; got {dtype} on {device.type}")
        return requested
    for backend in MODULES:
        if backend != "reference" and supports(backend, device, dtype) and _loads(backend):
            return backend
    if (device.type, dtype) not in _warned:
        _warned.add((device.type, dtype))
        warnings.warn(
            f"no sparse kernel for {dtype} on {device.type}: using kernel='reference', which computes densely",
            stacklevel=2,
        )
    return "reference"
