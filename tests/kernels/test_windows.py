"""Linear layers of single rows, which are cut into windows of columns that are the wider, the fewer samples there are."""

import pytest
import torch
from problems import check_linear, random_pattern, random_values

from openwork import _native
from openwork.kernels import cpu, ops

SIZES = [(1100, 90), (90, 1100), (530, 529)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 15, 16, 17, 32, 33, 48, 64, 65, 100, 112, 113, 128, 129, 260])
def test_every_width(size, batch):
    check_linear(random_pattern(*size, 1, 0.1, drop_rows=batch % 2 == 0), batch, bias=batch % 3 != 0)


@pytest.mark.parametrize("batch", [3, 33, 65, 200])
@pytest.mark.parametrize("density", [0.0, 0.001, 1.0])
def test_rows_of_any_length(density, batch):
    check_linear(random_pattern(70, 600, 1, density), batch)


@pytest.mark.parametrize("batch", [5, 33, 100, 200])
def test_threads_change_nothing(batch):
    before = torch.get_num_threads()
    pattern = random_pattern(150, 700, 1, 0.2)
    x, values, g = torch.randn(batch, 700, requires_grad=True), random_values(pattern).requires_grad_(), torch.randn(batch, 150)
    results = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            out = ops.linear(x, values, pattern, None, "cpu")
            results.append([out, *torch.autograd.grad(out, (x, values), g)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_two_widths_are_kept():
    """That of the batches and that of an epoch's last one; whatever is kept is counted."""
    pattern = random_pattern(90, 1100, 1, 0.1)
    values = random_values(pattern)
    kept = []
    for batch in (128, 33, 128, 1, 100, 33):
        ops.linear(torch.randn(batch, 1100), values, pattern, None, "cpu")
        kept.append(cpu.kept_bytes(pattern.cols))
    index = 6 * len(pattern.cols)

    def windows(batch):
        return index + 4 * (90 * -(-1100 // _native.segment_width(batch)) + 1)

    assert kept == [
        windows(128), windows(128) + windows(33), windows(128) + windows(33), windows(33) + windows(1),
        windows(1) + windows(100), windows(100) + windows(33),
    ]  # fmt: skip
