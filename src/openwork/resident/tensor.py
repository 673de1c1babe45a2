"""The tensor that PyTorch sees where an activation is resident."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map, tree_map_only

from openwork.resident.formula import DTYPES, Formula, Size, size_of

Operation = Callable[..., Any]
Handler = Callable[..., Any]
CPU = torch.device("cpu")

HANDLERS: dict[Any, Handler] = {}
"""What is computed on blocked numbers: ``handler(func, args, kwargs)`` returns ``NotImplemented`` for what it cannot take."""
GENERAL: list[Handler] = []
"""Handlers that are asked next, where something resident is handed over."""


def _native() -> Any:
    # Not before it is used: importing openwork loads no native code.
    from openwork.resident import native

    return native


class Content:
    """What a resident tensor holds; those that PyTorch takes for aliases of each other share it.

    Attributes:
        held: a formula, or an NCHW tensor from the moment that an operation wanted one which may keep a view of it.
        moments: of the lines of ``held``, where a convolution has taken them.
        conversions: how often which operation had to be given NCHW numbers; that of the layer where the activation began.
    """

    __slots__ = ("conversions", "held", "moments")

    def __init__(self, held: Formula | Tensor, conversions: Counter[str], moments: Tensor | None = None) -> None:
        self.held, self.conversions, self.moments = held, conversions, moments

    @property
    def size(self) -> Size:
        """``(N, C, H, W)``."""
        return size_of(self.held)

    @property
    def dtype(self) -> torch.dtype:
        """Of the activation."""
        return self.held.dtype

    def formula(self) -> Formula:
        """The blocked activation; made from NCHW where that is what is held, which counts as a conversion."""
        if isinstance(self.held, Formula):
            return self.held
        self.conversions["from NCHW"] += 1
        return _native().numbers(self.held.contiguous())[0]

    def numbers(self) -> Formula:
        """The formula's numbers, from now on instead of it."""
        formula = self.formula()
        if not formula.is_numbers:
            formula, self.moments = _native().numbers(formula)
        if isinstance(self.held, Formula):
            self.held = formula
        return formula

    def nchw(self, why: str) -> Tensor:
        """The NCHW numbers, from now on instead of the formula."""
        if isinstance(self.held, Formula):
            self.conversions[why] += 1
            plain: Tensor = _native().to_nchw(self.held)
            self.held, self.moments = plain, None
        return self.held


class ResidentTensor(Tensor):
    """``[N, C, H, W]``, float32 or bfloat16, held as blocked numbers or as a formula of them.

    It behaves as any tensor does.  Operations on blocked numbers are those of ``HANDLERS``; before all others it turns
    itself into NCHW numbers, for good.  It cannot be handed to code that wants the address of its memory, save through
    ``numpy()`` and the like: :func:`to_nchw` gives a plain tensor.
    """

    content: Content
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, content: Content) -> ResidentTensor:  # noqa: D102  # a magic method, though ruff takes it for another
        tensor: ResidentTensor = Tensor._make_wrapper_subclass(cls, content.size, dtype=content.dtype, device=CPU)
        tensor.content = content
        # Native code that reads memory by itself gets an error, not a null pointer.
        torch._C._set_throw_on_mutable_data_ptr(tensor)
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # its own stub leaves the defaults out
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]  # a stub without its types
        return repr(to_nchw(self))

    def numpy(self, *, force: bool = False) -> Any:
        """Of a copy in NCHW."""
        return to_nchw(self).numpy(force=force)

    def __array__(self, dtype: Any = None) -> Any:
        return to_nchw(self).__array__(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return to_nchw(self.detach()).__dlpack__(**options)

    def untyped_storage(self) -> Any:
        """Of the numbers in NCHW, which are held from now on."""
        return self.content.nchw("untyped_storage").untyped_storage()

    def share_memory_(self) -> Any:
        """Move the numbers, in NCHW from now on, to shared memory."""
        self.content.nchw("share_memory_").share_memory_()
        return self

    def tolist(self) -> Any:
        """Of the numbers in NCHW."""
        return to_nchw(self).tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return to_nchw(self.detach()).requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.content.nchw("deepcopy").clone().requires_grad_(self.requires_grad)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Between the graphs of a model that is compiled in part; what is done to a formula is for no compiler.
    named = HANDLERS.get(func)
    for handler in (*([named] if named is not None else ()), *(GENERAL if any_resident(args) else ())):
        result = handler(func, args, kwargs)
        if result is not NotImplemented:
            return result
    # In inference mode nothing above has taken composite operators apart.
    if torch.is_inference_mode_enabled() and any_resident(args):
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return densely(func, args, kwargs)


def densely(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any operation on NCHW numbers.  What it returns are plain tensors, but for a resident one that it has written to."""
    owners: dict[int, ResidentTensor] = {}

    def turned(tensor: ResidentTensor) -> Tensor:
        plain = tensor.content.nchw(func.__name__)
        owners[id(plain)] = tensor
        return plain

    result = func(*tree_map_only(ResidentTensor, turned, args), **tree_map_only(ResidentTensor, turned, kwargs))
    return tree_map(lambda leaf: owners.get(id(leaf), leaf), result)


def to_nchw(tensor: Tensor) -> Tensor:
    """The numbers of a resident tensor as a plain one that shares nothing with it; any other tensor as it is.

    Differentiable.
    """
    return _Plain.apply(tensor) if isinstance(tensor, ResidentTensor) else tensor


def from_nchw(tensor: Tensor) -> ResidentTensor:
    """The numbers of a float32 or bfloat16 tensor ``[N, C, H, W]`` on the cpu as a resident one, without history.

    Raises:
        ValueError: ``tensor`` is none of that.
    """
    if (
        type(tensor) is not Tensor
        or tensor.dim() != 4
        or tensor.dtype not in DTYPES
        or tensor.device != CPU
        or not tensor.numel()
    ):
        raise ValueError(
            "tensor must be float32 or bfloat16 [N, C, H, W] on the cpu, got "
            f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        )
    from openwork.resident.operations import native

    return ResidentTensor(Content(native.numbers(tensor.detach().contiguous())[0], Counter()))


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: ResidentTensor) -> Tensor:
        held = tensor.content.held
        return _native().to_nchw(held) if isinstance(held, Formula) else held.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Decorator that enters a handler for these operators."""

    def enter(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
        return handler

    return enter


def wrap(formula: Formula, like: Content, moments: Tensor | None = None) -> ResidentTensor:
    """A new resident tensor that counts its conversions where ``like`` does."""
    return ResidentTensor(Content(formula, like.conversions, moments))


def content_of(tensor: Tensor, known: Content) -> Content:
    """That of a resident tensor; that of a plain one is made, and counts its conversion where ``known`` does."""
    return tensor.content if isinstance(tensor, ResidentTensor) else Content(tensor, known.conversions)


def is_resident(tensor: Any) -> TypeGuard[ResidentTensor]:
    """Whether it is a resident tensor that has not become NCHW."""
    return isinstance(tensor, ResidentTensor) and isinstance(tensor.content.held, Formula)


def any_resident(arguments: Any) -> bool:
    """Whether one of them is."""
    return tree_any(is_resident, arguments)
