"""The number of threads changes the time, and nothing that a resumed training would notice."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from problems import Conv, random_pattern, random_values, run

from openwork import _native
from openwork.kernels import cpu, ops

CONV = Conv(32, 6, 40, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1))
heights = pytest.mark.parametrize("height", [1, 8])


@pytest.fixture
def results():
    """A function from a number of threads to the results of one linear layer and one convolution."""
    before = torch.get_num_threads()

    def compute(threads, height, batch):
        torch.set_num_threads(threads)
        linear, conv = random_pattern(32, 54, height, 0.4), random_pattern(32, CONV.columns, height, 0.4)
        draw = torch.Generator().manual_seed(3)
        x, images = torch.randn(batch, 54, generator=draw), torch.randn(batch, 6, 9, 7, generator=draw)
        first = run(lambda x, v: ops.linear(x, v, linear, None, "cpu"), [x, random_values(linear)], torch.float32)
        second = run(
            lambda x, v: ops.conv2d(x, v, conv, None, **CONV.window, kernel="cpu"), [images, random_values(conv)], torch.float32
        )
        return first, second

    yield compute
    torch.set_num_threads(before)


@heights
@pytest.mark.parametrize("batch", [3, 16, 40, 130])
def test_one_thread_against_several(results, height, batch):
    (y, dx, dw), (conv_y, conv_dx, conv_dw) = results(1, height, batch)
    for threads in (2, 3, 4):
        (y_n, dx_n, dw_n), (conv_y_n, conv_dx_n, conv_dw_n) = results(threads, height, batch)
        for one, several in ((y, y_n), (dx, dx_n), (dw, dw_n), (conv_y, conv_y_n), (conv_dx, conv_dx_n)):
            assert torch.equal(one, several)
        torch.testing.assert_close(conv_dw, conv_dw_n, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [1, 4, 16])
@pytest.mark.parametrize("batch", [15, 100, 600])
def test_wide_linear_layers(height, batch):
    """Windows of columns, units shared by threads and several reductions."""
    pattern = random_pattern(200, 700, height, 0.1)
    before, draw = torch.get_num_threads(), torch.Generator().manual_seed(3)
    x, bias = torch.randn(batch, 700, generator=draw), torch.randn(200, generator=draw)
    found = []
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        inputs = [x, random_values(pattern), bias]
        found.append(run(lambda x, v, b: ops.linear(x, v, pattern, b, "cpu"), inputs, torch.float32))
    torch.set_num_threads(before)
    for several in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], several, strict=True))


@pytest.mark.parametrize("threads", [5, 7, 12])
@pytest.mark.parametrize("batch", [16, 32, 48, 80])
def test_fewer_units_of_samples_than_threads(results, threads, batch):
    """Threads that had none of the input gradient take the weight gradient, each part of it once."""
    for one, several in zip(results(1, 8, batch)[0], results(threads, 8, batch)[0], strict=True):
        assert torch.equal(one, several)


@heights
def test_same_threads_same_bits(results, height):
    first, again = results(3, height, 70), results(3, height, 70)
    for a, b in zip(chain(*first), chain(*again), strict=True):
        assert torch.equal(a, b)


def test_calls_from_several_python_threads(results):
    """Concurrent calls have scratch memory of their own."""
    torch.set_num_threads(1)
    pattern = random_pattern(64, 90, 8, 0.4)
    values, xs = random_values(pattern), [torch.randn(50, 90) for _ in range(8)]

    def call(x):
        return [ops.linear(x, values, pattern, None, "cpu") for _ in range(20)]

    expected = [ops.linear(x, values, pattern, None, "cpu") for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(call, xs), expected, strict=True):
            assert all(torch.equal(y, right) for y in found)


def test_scratch_memory_is_bounded_and_given_back():
    pattern = random_pattern(64, 90, 8, 0.4)
    ops.linear(torch.randn(50, 90), random_values(pattern), pattern, None, "cpu")
    assert 0 < cpu.scratch_bytes() <= _native.SCRATCH_LIMIT
    cpu.release_scratch()
    assert cpu.scratch_bytes() == 0
