"""What sparse modules share: values and pattern in place of a weight, and how they are watched, saved and exchanged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork import kernels
from openwork.evidence import Collector
from openwork.kernels import choose
from openwork.nn import unpacking
from openwork.nn.auto import Key, Timing, dense_is_faster
from openwork.nn.dense_view import DenseView
from openwork.nn.master import resize, straight_through
from openwork.pattern import Pattern, PatternError, same_pattern
from openwork.resident import to_nchw

_INDEX = ("rows", "offsets", "cols")


class SparseModule(nn.Module, ABC):
    """A module whose weight exists only at the positions of a pattern.

    Attributes:
        values: Parameter ``[K, h]``, the active weights; its gradient and optimizer state have the same shape.
        bias: Parameter ``[R]`` or None.
        shape: ``(R, C)`` of the weight as a matrix.
        kernel: the backend asked for, None for the fastest that there is; ``"auto"`` for whichever of that one and the dense
            product is measured to be faster (see ``openwork.nn.auto``).
        timings: what was measured, the newest last; it is no part of the state.
        conversions: how often its output, where that was resident, was turned to NCHW or back, by what wanted it; and how often
            it was not resident under autocast for want of instructions.
        collector: evidence for a topology update; None unless the layer is armed.
        master: Parameter of the dense weight's shape, for methods that train all weights; ``values`` are then copies of its
            active ones and have no gradient.  None for all other methods; empty once such a method has ended.
    """

    dense_type: ClassVar[type[nn.Module]]
    values: nn.Parameter
    bias: nn.Parameter | None
    master: nn.Parameter | None
    rows: Tensor
    offsets: Tensor
    cols: Tensor

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None, kernel: str | None = None) -> None:
        super().__init__()
        if tuple(values.shape) != pattern.value_shape:
            raise PatternError(f"values have shape {tuple(values.shape)}, the pattern stores {pattern.value_shape}")
        self.shape = pattern.shape
        self.values = nn.Parameter(values)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.register_parameter("master", None)
        for name in _INDEX:
            self.register_buffer(name, getattr(pattern, name).to(values.device))
        self.kernel = kernel
        self.timings: dict[Key, Timing] = {}
        self.conversions: Counter[str] = Counter()
        self.collector: Collector | None = None

    @property
    def pattern(self) -> Pattern:
        """Which weights exist.  A topology update replaces the tensors, so a pattern once read stays as it is."""
        index = self._buffers  # ``nn.Module`` would look for each of them in three places
        return Pattern(self.shape, index["rows"], index["offsets"], index["cols"])  # type: ignore[arg-type]

    @property
    def kept_bytes(self) -> int:
        """Bytes that products keep beside the pattern, as long as it lives: other orders of its index, places to unpack to."""
        return unpacking.kept_bytes(self.pattern) + kernels.kept_bytes(self.cols)

    @property
    def backend(self) -> str:
        """The kernel backend of sparse products where the values are now."""
        return choose(self.values.device, self.values.dtype, self.kernel)

    @property
    def has_master(self) -> bool:
        """Whether a dense weight is trained."""
        return self.master is not None and self.master.numel() > 0

    @property
    def trained(self) -> nn.Parameter:
        """The weight that the optimizer moves: ``master``, or ``values``."""
        return self.master if self.master is not None and self.has_master else self.values

    @property
    def active(self) -> Tensor:
        """The values as the product takes them."""
        return self.values.detach() if self.has_master else self.values

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the active weights of ``master`` to ``values``."""
        assert self.master is not None
        self.values.copy_(self.pattern.pack(self.master))

    @property
    def weight(self) -> Tensor:
        """The dense weight, for code that insists on one: free to look at, unpacked (with a warning) when computed with.

        Writing to it changes nothing.
        """
        # A compiler traces through the copy, and leaves it out where nothing computes with it.
        return self.dense_weight() if torch.compiler.is_compiling() else DenseView(self)

    def dense_weight(self) -> Tensor:
        """The weight in the shape of the dense module's; allocates all of it, and is differentiable in ``values``."""
        return self.pattern.unpack(self.values).view(self.dense_dims)

    @property
    @abstractmethod
    def dense_dims(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    @abstractmethod
    def product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The sparse product of a checked input, bias included; ``values`` stand where those of the module do."""

    @abstractmethod
    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense product of the same input with a dense weight."""

    def unpacked_product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The sparse product computed densely: allocates the dense weight, and in backward its gradient, which is gathered."""
        return self.dense_product(x, unpacking.unpacked(values, self.pattern).view(self.dense_dims), bias)

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """A plain dense module that computes the same function."""

    @abstractmethod
    def dense_rows(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        """The rows ``rows`` of the dense weight gradient, ``[len(rows), C]``, of input ``x`` and output gradient ``g``."""

    @abstractmethod
    def input_sums(self, x: Tensor) -> Tensor:
        """``x`` summed over batch and positions for each column of the weight, ``[C]``."""

    @abstractmethod
    def output_sums(self, g: Tensor) -> Tensor:
        """``g`` summed over batch and positions for each row of the weight, ``[R]``."""

    @abstractmethod
    def signed_sums(self, x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``(Delta s [R], H s [C])`` with one random sign ``s`` for each entry of the batch, patches of an image included."""

    @abstractmethod
    def gradient_at(self, x: Tensor, g: Tensor, pattern: Pattern) -> Tensor:
        """The weight gradient at the positions of ``pattern`` alone, ``[K, h]``."""

    def replace(self, pattern: Pattern, values: Tensor) -> None:
        """Exchange pattern and values, in place of the same ``Parameter``; its gradient is dropped."""
        if pattern.shape != self.shape or tuple(values.shape) != pattern.value_shape:
            raise PatternError(
                f"a {pattern.shape} pattern with {pattern.value_shape} values does not fit values of shape "
                f"{tuple(values.shape)} in a layer of shape {self.shape}"
            )
        with torch.no_grad():
            if values.shape == self.values.shape:
                self.values.copy_(values)
            else:
                resize(self.values, values)
        self.values.grad = None
        for name in _INDEX:
            setattr(self, name, getattr(pattern, name).to(self.values.device))

    def _watched(self, x: Tensor) -> Tensor:
        """The product, with the output's gradient handed to the collector when it comes back."""
        if self.collector is None:
            return self._computed(x)
        return _observe(self, x, self.collector)

    def _computed(self, x: Tensor) -> Tensor:
        """The product; of a master, dense while it has no zeros, and with a gradient for all of it."""
        master = self.master
        if master is None or not master.numel():
            return self._faster(x, self.values)
        if self.values.numel() >= master.numel() and self.pattern.nnz == master.numel():
            return self.dense_product(x, master, self.bias)
        return straight_through(self._faster(x, self.values.detach()), x, master, self)

    def _faster(self, x: Tensor, active: Tensor) -> Tensor:
        """The product of the active values, in the faster way where ``kernel="auto"`` asks for it."""
        if self.kernel == "auto" and dense_is_faster(self, x):
            return self.unpacked_product(x, active, self.bias)
        return self.product(x, active, self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load the pattern with the values: it may differ from the present one, in size too."""
        found = state_dict.get(prefix + "master")
        if self.master is not None and isinstance(found, Tensor) and found.shape != self.master.shape:
            # Another moment of the same training: dense before the method's end, empty after it.
            if found.numel() and tuple(found.shape) != self.dense_dims:
                error_msgs.append(f"{prefix}master has shape {tuple(found.shape)}, the weight {self.dense_dims}")
                return
            resize(self.master, torch.empty_like(found))
        names = (*_INDEX, "values")
        if all(prefix + name in state_dict for name in names):
            try:
                held = [state_dict[prefix + name].clone() for name in names]
                pattern = Pattern(self.shape, *held[:3]).validate()
                if tuple(held[3].shape) != pattern.value_shape:
                    raise PatternError(f"values have shape {tuple(held[3].shape)}, the pattern stores {pattern.value_shape}")
                if not same_pattern(pattern.to(self.cols.device), self.pattern):
                    self.replace(pattern, held[3].to(self.values))
            except (PatternError, TypeError, AttributeError) as error:
                error_msgs.append(f"{prefix[:-1]!r} of shape {self.shape} cannot take this pattern: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def check_shape(pattern: Pattern, weight: Tensor) -> None:
    """Raise ``PatternError`` unless ``pattern`` is one of ``weight`` as a matrix ``[R, C]``."""
    matrix = (weight.shape[0], weight[0].numel() if len(weight) else 0)
    if pattern.shape != matrix:
        raise PatternError(f"pattern has shape {pattern.shape}, the weight is a {matrix} matrix")


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent -1 and 1, drawn on the CPU."""
    return (torch.randint(2, shape, generator=generator) * 2 - 1).to(like)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _observe(module: SparseModule, x: Tensor, collector: Collector) -> Tensor:
    # Outside any compiled graph: a hook with side effects has no place in one, and few steps are watched.
    out = module._computed(x)
    if out.requires_grad:
        seen, dtype = x.detach(), module.values.dtype
        out.register_hook(lambda g: collector.record(to_nchw(seen).to(dtype), to_nchw(g.detach()).to(dtype)))
    return out
