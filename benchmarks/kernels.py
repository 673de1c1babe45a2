"""Single layers: forward and backward through the public operators, against the fastest dense way.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --dtype bfloat16

Everything starts and ends in plain tensors, [batch, features] or NCHW, so conversions to the kernels' own layout are paid;
but for ``chain``, which is a convolution between others, whose input and output gradient come in that layout (all three
products, too, through the module and autograd).
Dense is the best of: for linear layers F.linear, oneDNN's linear with operands already transposed for it, and a 1 x 1
convolution; for convolutions NCHW and channels_last.  ``all`` is forward, input gradient and weight gradient.  Before a layer
is timed, its results are compared with dense ones; a wrong result stops the benchmark.  Every way is called five
times in its turn and the mean of the last four counts, as a layer of a network finds its input in the caches.

With ``--dtype bfloat16``: modules with bias and autograd under autocast, from bfloat16 to bfloat16, beside nn.Linear and
nn.Conv2d under it, the latter in the faster of both memory formats.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import RESULTS, WARM, assert_right, interleaved, report, warm_allocator
from torch import Tensor

from openwork import resident
from openwork.kernels import ops
from openwork.nn import SparseConv2d, SparseLinear
from openwork.pattern import Pattern, consecutive_rows

Functions = dict[str, Callable[[], Any]]
HEIGHTS = {"blocks 16": 16, "vectors 4": 4, "unstructured": 1}
COLUMNS = (
    "layer", "sparsity", "layout", "dense forward ms", "dense all ms", "forward ms", "all ms", "forward x", "all x",
    "chain ms", "chain x",
)  # fmt: skip


class Linear(NamedTuple):
    """A linear layer's sizes."""

    outputs: int
    inputs: int
    batch: int

    def __str__(self) -> str:
        return f"linear {self.inputs}-{self.outputs} B{self.batch}"

    @property
    def matrix(self) -> tuple[int, int]:
        return self.outputs, self.inputs

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.randn(self.batch, self.inputs), torch.randn(self.batch, self.outputs)

    def sparse(self, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        return ops.linear(x, values, pattern, None, "cpu")

    def sparse_module(self, pattern: Pattern) -> SparseLinear:
        return SparseLinear(pattern, torch.randn(pattern.value_shape), torch.randn(self.outputs), "cpu")

    def dense_modules(self) -> dict[torch.memory_format, torch.nn.Module]:
        return {torch.contiguous_format: torch.nn.Linear(self.inputs, self.outputs)}

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def dense(self, x: Tensor, g: Tensor) -> tuple[Functions, Functions]:
        """The dense ways: forward alone, and all three products."""
        weight = torch.randn(self.matrix)
        forward: Functions = {"F.linear": lambda: F.linear(x, weight)}
        both: Functions = {"F.linear": lambda: (F.linear(x, weight), g @ weight, g.t() @ x)}
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            turned, x_turned, g_turned = weight.t().contiguous(), x.t().contiguous(), g.t().contiguous()

            def product(a: Tensor, b: Tensor) -> Tensor:
                return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

            forward["mkldnn"] = lambda: product(x, weight)
            both["mkldnn"] = lambda: (product(x, weight), product(g, turned), product(g_turned, x_turned))
        pixels = 16 if self.batch % 16 == 0 else 1

        def image(t: Tensor) -> Tensor:
            return t.view(self.batch // pixels, 1, pixels, -1).permute(0, 3, 1, 2)

        kernel = weight.view(*self.matrix, 1, 1).contiguous(memory_format=torch.channels_last)
        forward["conv1x1"] = lambda: F.conv2d(image(x), kernel)
        both["conv1x1"] = lambda: (F.conv2d(image(x), kernel), backward(image(g), image(x), kernel, 1, 0))
        return forward, both


class Conv(NamedTuple):
    """A 3 x 3 convolution's sizes."""

    outputs: int
    inputs: int
    size: int
    stride: int
    batch: int

    def __str__(self) -> str:
        return f"conv {self.inputs}-{self.outputs} @{self.size} /{self.stride} N{self.batch}"

    @property
    def matrix(self) -> tuple[int, int]:
        return self.outputs, 9 * self.inputs

    def tensors(self) -> tuple[Tensor, Tensor]:
        out = (self.size - 1) // self.stride + 1
        return torch.randn(self.batch, self.inputs, self.size, self.size), torch.randn(self.batch, self.outputs, out, out)

    def sparse(self, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        stride = (self.stride, self.stride)
        return ops.conv2d(x, values, pattern, None, kernel_size=(3, 3), stride=stride, padding=(1, 1), kernel="cpu")

    def chain(self, x: Tensor, g: Tensor, values: Tensor, pattern: Pattern) -> Callable[[], Any]:
        """All three products, from resident tensors to resident tensors."""
        module = self.module(pattern, values.detach().clone(), None)
        image, gradient = resident.from_nchw(x).requires_grad_(), resident.from_nchw(g)
        return lambda: torch.autograd.grad(module(image), (image, module.values), gradient)

    def module(self, pattern: Pattern, values: Tensor, bias: Tensor | None) -> SparseConv2d:
        stride = (self.stride, self.stride)
        return SparseConv2d(pattern, values, bias, kernel_size=(3, 3), stride=stride, padding=(1, 1), kernel="cpu")

    def sparse_module(self, pattern: Pattern) -> SparseConv2d:
        return self.module(pattern, torch.randn(pattern.value_shape), torch.randn(self.outputs))

    def dense_modules(self) -> dict[torch.memory_format, torch.nn.Module]:
        return {
            order: torch.nn.Conv2d(self.inputs, self.outputs, 3, self.stride, 1).to(memory_format=order)
            for order in (torch.contiguous_format, torch.channels_last)
        }

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight.view(self.outputs, self.inputs, 3, 3), None, self.stride, 1)

    def dense(self, x: Tensor, g: Tensor) -> tuple[Functions, Functions]:
        """The dense ways: forward alone, and all three products."""
        forward: Functions = {}
        both: Functions = {}
        for name, order in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
            weight = torch.randn(self.outputs, self.inputs, 3, 3)
            forward[name], both[name] = self._dense(*(t.contiguous(memory_format=order) for t in (x, g, weight)))
        return forward, both

    def _dense(self, x: Tensor, g: Tensor, weight: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
        def forward() -> Tensor:
            return F.conv2d(x, weight, None, self.stride, 1)

        return forward, lambda: (forward(), backward(g, x, weight, self.stride, 1))


def backward(g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Any:
    """Both gradients of a dense convolution."""
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
    )


LINEARS = (
    Linear(1024, 1024, 128),
    Linear(1024, 1024, 512),
    Linear(2048, 2048, 512),
    Linear(4096, 4096, 128),
    Linear(2048, 2048, 2048),
)
CONVS = (
    Conv(64, 64, 32, 1, 128), Conv(128, 128, 16, 1, 128), Conv(256, 256, 8, 1, 128), Conv(512, 512, 4, 1, 128),
    Conv(128, 64, 32, 2, 128), Conv(512, 256, 8, 2, 128),
)  # fmt: skip
QUICK: tuple[Linear | Conv, ...] = (LINEARS[0], CONVS[3])


def random_pattern(shape: tuple[int, int], height: int, density: float) -> Pattern:
    """Shuffled rows in groups of ``height``, with as many random columns in each; single rows have a random number."""
    rows = consecutive_rows(shape[0], height)
    rows = rows if height == 1 else torch.randperm(shape[0]).int()[rows.long()]
    chosen = torch.rand(len(rows), shape[1])
    mask = chosen < density if height == 1 else chosen.argsort(1).argsort(1) < round(density * shape[1])
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int32)
    offsets[1:] = mask.sum(1).cumsum(0)
    return Pattern(shape, rows, offsets, mask.nonzero()[:, 1].int()).validate()


def check(layer: Linear | Conv, x: Tensor, g: Tensor, values: Tensor, pattern: Pattern) -> None:
    """Output and gradients against dense autograd."""
    sparse_x, dense_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = pattern.unpack(values.detach()).requires_grad_()
    out, expected = layer.sparse(sparse_x, values, pattern), layer.reference(dense_x, weight)
    dx, dvalues = torch.autograd.grad(out, (sparse_x, values), g)
    expected_dx, dweight = torch.autograd.grad(expected, (dense_x, weight), g)
    for name, found, right in (("output", out, expected), ("dx", dx, expected_dx), ("dw", dvalues, pattern.pack(dweight))):
        assert_right(f"{layer}, height {pattern.height}, {name}", found.detach(), right.detach())


def measure(layer: Linear | Conv, sparsities: Sequence[float], repeats: int) -> list[tuple[Any, ...]]:
    """One row for each sparsity and layout."""
    x, g = layer.tensors()
    x_wanted = x.clone().requires_grad_()
    forward, both = layer.dense(x, g)
    functions = {("dense forward", way): f for way, f in forward.items()} | {("dense both", way): f for way, f in both.items()}
    for sparsity in sparsities:
        for name, height in HEIGHTS.items():
            pattern = random_pattern(layer.matrix, height, 1 - sparsity)
            values = torch.randn(pattern.value_shape).requires_grad_()
            check(layer, x, g, values, pattern)

            def once(values: Tensor = values, pattern: Pattern = pattern) -> Tensor:
                return layer.sparse(x_wanted, values, pattern)

            def twice(values: Tensor = values, once: Callable[[], Tensor] = once) -> Any:
                return torch.autograd.grad(once(), (x_wanted, values), g)

            if isinstance(layer, Conv):
                functions["chain", sparsity, name] = layer.chain(x, g, values, pattern)
            functions |= {("forward", sparsity, name): once, ("both", sparsity, name): twice}
    times = interleaved(functions, repeats, warm=WARM)
    dense_forward, dense_both = (min(times[kind, way] for way in forward) for kind in ("dense forward", "dense both"))
    rows = []
    for sparsity in sparsities:
        for name in HEIGHTS:
            one, all_three = times["forward", sparsity, name], times["both", sparsity, name]
            ratios = (dense_forward / one, dense_both / all_three)
            chain = times.get(("chain", sparsity, name))
            between = ("", "") if chain is None else (chain, dense_both / chain)
            rows.append((str(layer), f"{sparsity:g}", name, dense_forward, dense_both, one, all_three, *ratios, *between))
    return rows


def autocast_step(module: torch.nn.Module, x: Tensor, g: Tensor | None = None) -> Any:
    """Forward under autocast to bfloat16 and, given the output's gradient, all gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    return out if g is None else torch.autograd.grad(out, (x, *module.parameters()), g)


def plain_step(module: torch.nn.Module, x: Tensor, g: Tensor | None = None) -> Any:
    """The same from plain tensors to plain tensors."""
    with resident.resident(False):
        return autocast_step(module, x, g)


def check_bf16(layer: Linear | Conv, sparse: SparseLinear | SparseConv2d, x: Tensor, g: Tensor) -> None:
    """Output and gradients against those of the dense module in float32."""
    dense, wide = sparse.to_dense(), x.detach().float().requires_grad_()
    out = dense(wide)
    dx, dweight = torch.autograd.grad(out, (wide, dense.weight), g.float())
    expected = (out.detach(), dx, sparse.pattern.pack(dweight.view(layer.matrix)))
    found = (autocast_step(sparse, x).detach(), *autocast_step(sparse, x, g))
    for what, one, right in zip(("output", "dx", "dw"), found, expected, strict=False):
        assert_right(f"{layer}, height {sparse.pattern.height}, {what}", resident.to_nchw(one).float(), right, 2e-2)


def measure_bf16(layer: Linear | Conv, sparsities: Sequence[float], repeats: int) -> list[tuple[Any, ...]]:
    """One row for each sparsity and layout, of modules under autocast."""
    x, g = (t.bfloat16() for t in layer.tensors())
    functions: dict[Any, Callable[[], Any]] = {}

    def enter(key: Any, module: torch.nn.Module, order: torch.memory_format = torch.contiguous_format) -> None:
        own_x, own_g = (t.contiguous(memory_format=order) for t in (x, g))
        own_x = own_x.detach().requires_grad_()
        functions[key, "forward"] = lambda: plain_step(module, own_x)
        functions[key, "all"] = lambda: plain_step(module, own_x, own_g)

    ways = layer.dense_modules()
    for order, module in ways.items():
        enter(order, module, order)
    for sparsity in sparsities:
        for name, height in HEIGHTS.items():
            sparse = layer.sparse_module(random_pattern(layer.matrix, height, 1 - sparsity))
            check_bf16(layer, sparse, x.clone().requires_grad_(), g)
            enter((sparsity, name), sparse)
            if isinstance(layer, Conv):
                blocked_x, blocked_g = resident.from_nchw(x).requires_grad_(), resident.from_nchw(g)
                chain = functools.partial(autocast_step, sparse, blocked_x, blocked_g)
                functions[(sparsity, name), "chain"] = chain
    times = interleaved(functions, repeats, warm=WARM)
    dense = [min(times[order, kind] for order in ways) for kind in ("forward", "all")]
    rows = []
    for sparsity in sparsities:
        for name in HEIGHTS:
            own = [times[(sparsity, name), kind] for kind in ("forward", "all")]
            chain_time = times.get(((sparsity, name), "chain"))
            between = ("", "") if chain_time is None else (chain_time, dense[1] / chain_time)
            rows.append((str(layer), f"{sparsity:g}", name, *dense, *own, dense[0] / own[0], dense[1] / own[1], *between))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two layers, two sparsities, few repeats")
    parser.add_argument("--only", choices=("linear", "conv"), help="one kind of layer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: modules under autocast")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for kernels.csv and kernels.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layers: tuple[Linear | Conv, ...] = QUICK if arguments.quick else LINEARS + CONVS
    sparsities, repeats = ([0.5, 0.9], 3) if arguments.quick else ([0.5, 0.75, 0.9, 0.95], arguments.repeats)
    narrow = arguments.dtype == "bfloat16"
    rows: list[tuple[Any, ...]] = []
    for layer in layers:
        if arguments.only is None or arguments.only == type(layer).__name__.lower():
            rows += (measure_bf16 if narrow else measure)(layer, sparsities, repeats)
    name = "kernels-bfloat16" if narrow else "kernels"
    if arguments.only is not None:
        name += f"-{arguments.only}"
    title = "Sparse layers against the fastest dense ones (medians; x = times faster)"
    if narrow:
        title = "Sparse layers under autocast to bfloat16 against the fastest dense ones (medians; x = times faster)"
    report(name, title, COLUMNS, rows, arguments.output)


if __name__ == "__main__":
    warm_allocator()
    main()
