"""bfloat16 beside float32, as autocast to it on the CPU has them: activations are bfloat16, values and bias stay float32.

Where the backend offers that, it computes so; the input gradient is bfloat16 then, the weight gradient float32.  Other backends
compute in float32 and round the result.  Autocast to float16 computes in float32 and rounds nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import Kernel, lookup, offers
from openwork.kernels.operator import cast, check, direct, eager, fits
from openwork.pattern import Pattern


def narrows(op: str, kernel: str, x: Tensor, *weights: Tensor | None) -> bool:
    """Whether nothing but autograd and autocast to bfloat16 watches, and the weights are the float32 ones of a layer.

    Then a layer that computes in bfloat16 can be called as directly as one under autograd alone.
    """
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and direct(x)
        and x.dtype != torch.float64
        and all(weight is None or weight.dtype == torch.float32 for weight in weights)
        and offers(f"{op}_bf16", kernel)
    )


def check_uniform(pattern: Pattern, x: Tensor, **weights: Tensor | None) -> None:
    """Raise ``ValueError`` for a bfloat16 input beside float32 weights where no autocast has made it so, as dense layers do."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        check(pattern, x=x, **weights)


def narrow(op: str, kernel: str, *activations: Tensor | None) -> bool:
    """Whether this is bfloat16 beside float32; a backend that offers it has no bfloat16 values."""
    given = [tensor for tensor in activations if tensor is not None]
    return all(tensor.dtype == torch.bfloat16 for tensor in given) and offers(f"{op}_bf16", kernel)


def checked(
    op: str, kernel: str, pattern: Pattern, activations: dict[str, Tensor | None], weights: dict[str, Tensor | None]
) -> Kernel:
    """The function that computes, once dtypes, devices and sizes are known to fit."""
    given = weights["values"], weights.get("bias"), *activations.values()
    if fits(pattern, *given):
        return lookup(op, kernel)
    if fits(pattern, *given, dtype=torch.bfloat16) and offers(f"{op}_bf16", kernel):
        return lookup(f"{op}_bf16", kernel)
    if not narrow(op, kernel, *activations.values()):
        check(pattern, **activations, **weights)
        return lookup(op, kernel)
    check(pattern, **activations)
    for name, weight in weights.items():
        if weight is not None:
            check(pattern, **{name: weight})
            if weight.dtype != torch.float32:
                raise ValueError(f"{name} is {weight.dtype}; kernel={kernel!r} takes torch.float32 beside torch.bfloat16")
    return lookup(f"{op}_bf16", kernel)


def direct_backward(g: Tensor) -> bool:
    """Whether a gradient may be computed without the dispatcher; autocast would cast no bfloat16."""
    return not torch.is_grad_enabled() and (eager(g) or (g.dtype == torch.bfloat16 and direct(g)))


def forward_under(operator: Any, op: str, x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """A forward ``operator`` under autocast; the last of its arguments is the backend."""
    # Half precision on the CPU is left to bfloat16; float64 is never cast.
    to_bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.float64 not in (x.dtype, values.dtype)
    wanted = torch.bfloat16 if to_bf16 and offers(f"{op}_bf16", rest[-1]) else torch.float32
    with torch.autocast("cpu", enabled=False):
        out: Tensor = operator(cast(x, wanted), cast(values, torch.float32), cast(bias, torch.float32), *rest)
        return out.to(torch.bfloat16) if to_bf16 else out


def backward_under(
    operator: Any, op: str, g: Tensor, x: Tensor | None, values: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """A backward ``operator`` under autocast."""
    wanted = torch.bfloat16 if narrow(op, rest[-1], g, x) else torch.float32
    with torch.autocast("cpu", enabled=False):
        both: tuple[Tensor, Tensor] = operator(cast(g, wanted), cast(x, wanted), cast(values, torch.float32), *rest)
        return both
