"""Sparse times dense, as in GSE's Figure 8: an ``n x n`` sparse matrix times ``n x 128``, one product.

    python benchmarks/spmm.py

Dense (the faster of PyTorch's matrix product and oneDNN's linear), COO and CSR of PyTorch, CSR of SciPy, and openwork's
unstructured and vector layouts through their public operator, which takes its input as ``128 x n``.  All take turns; results
are compared before they are timed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.sparse
import torch
from timing import RESULTS, assert_right, interleaved, report, warm_allocator

from openwork import layouts
from openwork.kernels import ops

BATCH = 128
SIZES = (512, 1024, 2048, 4096)
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
OURS: dict[str, layouts.Layout] = {"openwork": layouts.Unstructured(), "openwork, vectors of 8": layouts.OutVector(8)}

SHOWN = ("dense", "torch COO", "torch CSR", "SciPy CSR", *OURS)


def contenders(size: int, sparsity: float) -> dict[str, Callable[[], Any]]:
    """The same product in every way there is; vectors are a matrix of their own."""
    x = torch.randn(size, BATCH)
    turned = x.t().contiguous()
    made: dict[str, Callable[[], Any]] = {}
    for name, layout in OURS.items():
        dims, generator = (size, size), torch.Generator().manual_seed(0)
        pattern = layout.initial(dims, layout.fit(dims, 1 - sparsity), torch.empty(dims), generator)
        values = torch.randn(pattern.value_shape)
        dense = pattern.unpack(values)
        made[name] = lambda values=values, pattern=pattern: ops.linear(turned, values, pattern, None, "cpu")
        assert_right(name, made[name](), turned @ dense.t())
        if name == "openwork":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its CSR a beta
                coo, csr = dense.to_sparse_coo(), dense.to_sparse_csr()
            theirs, array = scipy.sparse.csr_array(dense.numpy()), x.numpy()
            made |= {
                "dense": lambda dense=dense: dense @ x,
                "dense, oneDNN": lambda dense=dense: torch.ops.mkldnn._linear_pointwise(turned, dense, None, "none", [], ""),
                "torch COO": lambda coo=coo: coo @ x,
                "torch CSR": lambda csr=csr: csr @ x,
                "SciPy CSR": lambda theirs=theirs, array=array: theirs @ array,
            }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, two sparsities")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for spmm.csv and spmm.md")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows: list[tuple[Any, ...]] = []
    for size in (512,) if arguments.quick else SIZES:
        for sparsity in (0.9, 0.99) if arguments.quick else SPARSITIES:
            times = interleaved(contenders(size, sparsity), arguments.repeats)
            times["dense"] = min(times["dense"], times["dense, oneDNN"])
            rows.append((size, f"{sparsity:g}", *(times[name] for name in SHOWN), times["dense"] / times["openwork"]))
    columns = ("n", "sparsity", *(f"{name} ms" for name in SHOWN), "x")
    title = "n x n sparse times n x 128 (medians; x = openwork, unstructured, against dense)"
    report("spmm", title, columns, rows, arguments.output)


if __name__ == "__main__":
    warm_allocator()
    main()
