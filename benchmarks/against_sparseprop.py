"""Unstructured sparsity against SparseProp's kernels: the same weights, forward and backward, beside the fastest dense way.

SparseProp (Nikdan et al., 2023; PyPI ``sparseprop`` 0.1.14) is no dependency of openwork.  It goes into an environment of its
own, because its ``setup.py`` calls ``pip`` and ``python3`` by name: the environment has to be active while it is built,
pybind11 has to be there already, and ``PIP_REQUIRE_VIRTUALENV`` keeps it from touching any other Python.

    python3 -m venv .venv-sparseprop && source .venv-sparseprop/bin/activate
    pip install -c constraints.txt torch numpy rich safetensors scipy setuptools wheel pybind11
    PIP_REQUIRE_VIRTUALENV=1 pip install --no-build-isolation sparseprop==0.1.14
    pip install --no-deps -c constraints.txt .
    python benchmarks/against_sparseprop.py

Everything starts and ends in plain tensors, [batch, features] or NCHW, so either side pays for its own layouts.  SparseProp
has one way for linear layers and two for convolutions, along the batch and along a row of pixels; each is compared with dense
before it is timed, and one that is wrong is left out and named.  Along the batch, it is right for multiples of 8 alone.  The
output of that way is a view with the batch innermost, which the backward pass here does not mind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import CONVS, LINEARS, Conv, Functions, Linear, check, random_pattern
from timing import RESULTS, WARM, assert_right, interleaved, report, warm_allocator
from torch import Tensor, nn

try:
    from sparseprop.modules.conv2d import SparseConv2d
    from sparseprop.modules.linear import SparseLinear
except ImportError as error:
    raise SystemExit(f"{error}: the head of {Path(__file__).name} says how to install SparseProp") from error

LAYERS: tuple[Linear | Conv, ...] = (*LINEARS[1:3], *CONVS[:4])
COLUMNS = ("layer", "density", "dense ms", "SparseProp ms", "its way", "ms", "SparseProp x", "x", "SparseProp / openwork")


def theirs(layer: Linear | Conv, weight: Tensor) -> dict[str, nn.Module]:
    """SparseProp's ways to compute the layer."""
    if isinstance(layer, Linear):
        return {"csr": SparseLinear(weight)}
    kernel = weight.view(layer.outputs, layer.inputs, 3, 3)
    return {
        name: SparseConv2d(kernel, padding=1, stride=layer.stride, vectorizing_over_on=along_rows)
        for name, along_rows in (("along batch", False), ("along rows", True))
    }


def right(name: str, module: nn.Module, layer: Linear | Conv, x: Tensor, g: Tensor, weight: Tensor) -> bool:
    """Whether output, input gradient and weight gradient are those of dense autograd; says so if not."""
    mine, other, dense = x.clone().requires_grad_(), x.clone().requires_grad_(), weight.clone().requires_grad_()
    out, expected = module(mine), layer.reference(other, dense)
    dx, dw = torch.autograd.grad(out, (mine, module.W_val), g)
    expected_dx, expected_dw = torch.autograd.grad(expected, (other, dense), g)
    # Values lie in the order of the weights as a matrix, whose pattern is sorted.
    pairs = (("output", out, expected), ("dx", dx, expected_dx), ("dw", dw, expected_dw[weight != 0]))
    try:
        for part, found, wanted in pairs:
            assert_right(f"{layer}, SparseProp {name}, {part}", found.detach(), wanted.detach())
    except SystemExit as error:
        print(error)
        return False
    return True


def measure(layer: Linear | Conv, density: float, repeats: int) -> tuple[Any, ...]:
    """One row; dense and SparseProp are the best of their ways."""
    x, g = layer.tensors()
    pattern = random_pattern(layer.matrix, 1, density)
    values = torch.randn(pattern.value_shape).requires_grad_()
    check(layer, x, g, values, pattern)
    weight, wanted = pattern.unpack(values.detach()), x.clone().requires_grad_()
    dense = layer.dense(x, g)[1]
    functions: Functions = {("dense", way): run for way, run in dense.items()}  # type: ignore[misc]
    functions["openwork"] = lambda: torch.autograd.grad(layer.sparse(wanted, values, pattern), (wanted, values), g)
    modules = {name: module for name, module in theirs(layer, weight).items() if right(name, module, layer, x, g, weight)}
    functions |= {("it", name): _both(module, wanted, g) for name, module in modules.items()}  # type: ignore[misc]
    times: dict[Any, float] = interleaved(functions, repeats, warm=WARM)  # type: ignore[assignment]
    fastest, ours = min(times["dense", way] for way in dense), times["openwork"]
    best = min(modules, key=lambda name: times["it", name], default=None)
    if best is None:
        return str(layer), f"{density:g}", fastest, "wrong", "none", ours, "", fastest / ours, ""
    it = times["it", best]
    return str(layer), f"{density:g}", fastest, it, best, ours, fastest / it, fastest / ours, it / ours


def _both(module: nn.Module, x: Tensor, g: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(module(x), (x, module.W_val), g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one linear layer and one convolution, few repeats")
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder for sparseprop.csv, sparseprop.md and sparseprop.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layers, repeats = ((LAYERS[0], LAYERS[5]), 3) if arguments.quick else (LAYERS, arguments.repeats)
    rows = [measure(layer, density, repeats) for layer in layers for density in arguments.densities]
    title = "Unstructured, forward and backward: openwork and SparseProp (medians; x = times faster than the fastest dense way)"
    report("sparseprop", title, COLUMNS, rows, arguments.output)


if __name__ == "__main__":
    warm_allocator()
    main()
