"""Random sparse layers, and what dense PyTorch makes of them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from openwork.kernels import ops
from openwork.pattern import Pattern

HEIGHTS = (1, 2, 3, 4, 5, 8, 11, 16, 17, 32, 37)
DENSITIES = (0.0, 0.1, 0.4, 1.0)
BATCHES = (0, 1, 2, 5, 8, 13, 16, 17, 33, 48, 70)


def random_pattern(rows: int, cols: int, height: int, density: float, *, seed: int = 0, drop_rows: bool = False) -> Pattern:
    """Row groups of shuffled rows with random columns in random order; ``drop_rows`` leaves a quarter of the rows out.

    With a density below 1 the first group is empty.
    """
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=draw).int()
    order = order[: max(1, rows - rows // 4)] if drop_rows else order
    groups = -(-len(order) // height)
    members = torch.full((groups * height,), -1, dtype=torch.int32)
    members[: len(order)] = order
    columns = []
    for group in range(groups):
        chosen = torch.randperm(cols, generator=draw)[: round(cols * density * 2 * torch.rand(1, generator=draw).item())]
        columns.append(torch.randperm(cols, generator=draw) if density == 1 else chosen[: 0 if group == 0 else cols])
    offsets = torch.tensor([0, *(len(c) for c in columns)]).cumsum(0).int()
    return Pattern((rows, cols), members.view(groups, height), offsets, torch.cat(columns).int()).validate()


def random_values(pattern: Pattern, seed: int = 0) -> torch.Tensor:
    values = torch.randn(pattern.value_shape, generator=torch.Generator().manual_seed(seed))
    return values.masked_fill(pattern.positions < 0, 0.0)


def dense_weight(pattern: Pattern, values: torch.Tensor) -> torch.Tensor:
    """The dense weight, placed entry by entry and differentiable; shares no code with ``Pattern.unpack``."""
    at, source = [], []
    offsets, cols, height = pattern.offsets.tolist(), pattern.cols.tolist(), pattern.height
    for group, members in enumerate(pattern.rows.tolist()):
        for k in range(offsets[group], offsets[group + 1]):
            for m, row in enumerate(members):
                if row >= 0:
                    at.append(row * pattern.shape[1] + cols[k])
                    source.append(k * height + m)
    dense = torch.zeros(pattern.shape[0] * pattern.shape[1], dtype=values.dtype)
    places, stored = torch.tensor(at, dtype=torch.long), torch.tensor(source, dtype=torch.long)
    return dense.index_add(0, places, values.reshape(-1)[stored]).view(pattern.shape)


@dataclass(frozen=True)
class Conv:
    """One convolution's sizes."""

    rows: int
    channels: int
    batch: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def columns(self) -> int:
        return self.channels * self.kernel_size[0] * self.kernel_size[1]

    @property
    def window(self) -> dict[str, tuple[int, int]]:
        return {key: getattr(self, key) for key in ("kernel_size", "stride", "padding", "dilation")}


def _pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    kernel_size, dilation, padding = draw(_pairs(1, 4)), draw(_pairs(1, 2)), draw(_pairs(0, 3))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel_size, padding, strict=True)]
    size = (draw(st.integers(max(1, reach[0]), 19)), draw(st.integers(max(1, reach[1]), 19)))
    rows, channels, batch = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.sampled_from(BATCHES))
    return Conv(rows, channels, batch, size, kernel_size, draw(_pairs(1, 3)), padding, dilation)


Tensors = list[torch.Tensor | None]


def leaf(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype).clone().requires_grad_()


def run(function, inputs: Tensors, dtype: torch.dtype, seed: int = 1) -> Tensors:
    """The output of ``function`` and the gradients of its inputs, for a fixed random output gradient."""
    leaves = [leaf(tensor, dtype) for tensor in inputs]
    out = function(*leaves)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    out.backward(gradient)
    return [out.detach(), *(None if tensor is None else tensor.grad for tensor in leaves)]


def assert_close(found: Tensors, expected: Tensors) -> None:
    """float32 results against float64 ones, at the rounding error of sums of some thousand terms."""
    for name, a, b in zip(("output", "dx", "dvalues", "dbias"), found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape, name
            scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
            torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")


def check_linear(pattern: Pattern, batch: int, *, bias: bool = True, kernel: str = "cpu") -> None:
    """Output and all gradients of a linear layer against ``F.linear`` in float64."""
    draw = torch.Generator().manual_seed(2)
    inputs: Tensors = [torch.randn(batch, pattern.shape[1], generator=draw), random_values(pattern)]
    inputs.append(torch.randn(pattern.shape[0], generator=draw) if bias else None)
    found = run(lambda x, v, b: ops.linear(x, v, pattern, b, kernel), inputs, torch.float32)
    expected = run(lambda x, v, b: F.linear(x, dense_weight(pattern, v), b), inputs, torch.float64)
    assert_close(found, expected)


def check_conv(pattern: Pattern, conv: Conv, *, bias: bool = True, kernel: str = "cpu", channels_last: bool = False) -> None:
    """Output and all gradients of a convolution against ``F.conv2d`` in float64."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(conv.batch, conv.channels, *conv.size, generator=draw)
    inputs: Tensors = [x, random_values(pattern), torch.randn(conv.rows, generator=draw) if bias else None]

    def sparse(x, v, b):
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        return ops.conv2d(x, v, pattern, b, **conv.window, kernel=kernel)

    def dense(x, v, b):
        weight = dense_weight(pattern, v).view(conv.rows, conv.channels, *conv.kernel_size)
        return F.conv2d(x, weight, b, conv.stride, conv.padding, conv.dilation)

    assert_close(run(sparse, inputs, torch.float32), run(dense, inputs, torch.float64))
