"""What does not fit is refused with a message that names it."""

import contextlib

import pytest
import torch
from problems import random_pattern, random_values

from openwork.kernels import available, choose, cpu, lookup, ops, register
from openwork.kernels.window import Window
from openwork.pattern import Pattern

PATTERN = random_pattern(10, 27, 4, 0.5)
VALUES = random_values(PATTERN)
X = torch.randn(4, 27)
kernels = pytest.mark.parametrize("kernel", ["reference", "cpu"])


@kernels
@pytest.mark.parametrize(
    ("x", "values", "bias", "message"),
    [
        (torch.randn(4, 26), VALUES, None, r"x has shape \(4, 26\).*\[batch, 27\]"),
        (torch.randn(27), VALUES, None, r"x has shape \(27,\)"),
        (X, VALUES[:-1], None, "values have shape"),
        (X, VALUES, torch.randn(9), r"bias has shape \(9,\); the layer has 10 outputs"),
        (X, VALUES.double(), None, "values is torch.float64"),
        (X.bfloat16(), VALUES, None, "values is torch.float32 .* x is torch.bfloat16"),
    ],
)
def test_linear_refuses(kernel, x, values, bias, message):
    with pytest.raises(ValueError, match=message):
        ops.linear(x, values, PATTERN, bias, kernel)


@kernels
@pytest.mark.parametrize(
    ("x", "window", "message"),
    [
        (torch.randn(2, 3, 5, 5), {"kernel_size": (2, 2)}, "27 columns, no multiple of kernel_size"),
        (torch.randn(2, 4, 5, 5), {"kernel_size": (3, 3)}, r"x has shape \(2, 4, 5, 5\).*\[batch, 3,"),
        (torch.randn(2, 3, 5, 2), {"kernel_size": (3, 3)}, "does not fit an image"),
        (torch.randn(2, 3, 5, 5), {"kernel_size": (3, 3), "stride": (0, 1)}, r"stride=\(0, 1\)"),
        (torch.randn(2, 3, 5, 5), {"kernel_size": (3, 3), "padding": (1, -1)}, r"padding=\(1, -1\)"),
    ],
)
def test_conv_refuses(kernel, x, window, message):
    with pytest.raises(ValueError, match=message):
        ops.conv2d(x, VALUES, PATTERN, None, **window, kernel=kernel)


@kernels
def test_backward_refuses_another_batch(kernel):
    with pytest.raises(ValueError, match="x has a batch of 4, the gradient one of 5"):
        ops.sddmm(X, torch.randn(5, 10), PATTERN, kernel)


def spoilt(name: str, at: int, to: int) -> Pattern:
    parts = {"rows": PATTERN.rows.clone(), "offsets": PATTERN.offsets.clone(), "cols": PATTERN.cols.clone()}
    parts[name].view(-1)[at] = to
    return Pattern(PATTERN.shape, parts["rows"], parts["offsets"], parts["cols"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (spoilt("cols", 3, 27), "columns are out of range"),
        (spoilt("cols", 3, -1), "columns are out of range"),
        (spoilt("cols", 3, 2**31 - 1), "columns are out of range"),
        (spoilt("rows", 0, 10), "rows are out of range"),
        (spoilt("rows", 0, -7), "rows are out of range"),
        (spoilt("rows", 0, int(PATTERN.rows[1, 0])), "row in two groups"),
        (spoilt("offsets", 1, 10**9), "offsets"),
        (spoilt("offsets", -1, len(PATTERN.cols) + 1), "offsets"),
        (spoilt("offsets", 0, 1), "offsets"),
    ],
)
def test_a_corrupt_index_is_never_followed(pattern, message):
    """Indices are checked on every call: overwriting them in place cannot make a kernel read outside its buffers."""
    with pytest.raises(ValueError, match=message):
        ops.linear(X, VALUES, pattern, None, "cpu")
    with pytest.raises(ValueError, match=message):
        ops.sddmm(X, torch.randn(4, 10), pattern, "cpu")
    with pytest.raises(ValueError, match=message):
        ops.conv2d(torch.randn(2, 3, 5, 5), VALUES, pattern, None, kernel_size=(3, 3), kernel="cpu")


@pytest.mark.parametrize("height", [1, 4, 8])
@pytest.mark.parametrize("batch", [1, 16, 17])
@pytest.mark.parametrize("column", [-1, 576, 2**31 - 1])
def test_a_corrupt_column_is_never_sorted(height, batch, column):
    """Padded convolutions sort their columns by taps, and single rows by windows of channels, while they check them."""
    pattern = random_pattern(16, 576, height, 0.5)
    pattern.cols[len(pattern.cols) // 2] = column
    x, values, window = torch.randn(batch, 64, 8, 8), random_values(pattern), {"kernel_size": (3, 3), "padding": (1, 1)}
    with pytest.raises(ValueError, match="columns are out of range"):
        ops.conv2d(x, values, pattern, None, **window, kernel="cpu")
    with pytest.raises(ValueError, match="columns are out of range"):
        cpu.conv2d_backward(torch.randn(batch, 16, 8, 8), x, values, pattern, Window((3, 3), (1, 1), (1, 1), (1, 1)), (8, 8))


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize(("part", "value"), [("cols", 576), ("cols", -1), ("offsets", 0), ("offsets", 4608)])
def test_single_rows_whose_order_is_kept_are_checked_again(batch, part, value):
    """An index may be written to behind PyTorch's back, so that no version tells."""
    pattern, window = random_pattern(16, 576, 1, 0.5), Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, g, values = torch.randn(batch, 64, 8, 8), torch.randn(batch, 16, 8, 8), random_values(pattern)
    cpu.conv2d(x, values, pattern, None, window)
    cpu.conv2d_backward(g, x, values, pattern, window, (8, 8))
    getattr(pattern, part).numpy()[8] = value
    if part == "cols":
        with pytest.raises(ValueError, match="columns are out of range"):
            cpu.conv2d(x, values, pattern, None, window)
        with pytest.raises(ValueError, match="columns are out of range"):
            cpu.conv2d_backward(g, x, None, pattern, window, (8, 8))
        return
    for product in (
        lambda: cpu.conv2d(x, values, pattern, None, window),
        lambda: cpu.conv2d_backward(g, x, None, pattern, window, (8, 8)),
    ):
        with contextlib.suppress(ValueError):  # what comes of it means nothing, but it stays within its buffers
            product()


@pytest.mark.parametrize("batch", [1, 17])
def test_a_kept_transposition_is_checked_again(batch):
    pattern, window = random_pattern(16, 576, 1, 0.5), Window((3, 3), (1, 1), (1, 1), (1, 1))
    g, values = torch.randn(batch, 16, 8, 8), random_values(pattern)
    cpu.conv2d_backward(g, None, values, pattern, window, (8, 8))
    cpu._transposition(pattern, 9)[0][2][5] = len(pattern.cols)
    with pytest.raises(ValueError, match="columns are out of range"):
        cpu.conv2d_backward(g, None, values, pattern, window, (8, 8))


@pytest.mark.parametrize(("part", "value", "message"), [
    ("cols", 380, "columns are out of range"), ("cols", -1, "columns are out of range"), ("rows", 200, "rows are out of range"),
    ("rows", -7, "rows are out of range"), ("offsets", 10**9, "offsets"),
])  # fmt: skip
def test_a_wide_layer_s_index_that_is_overwritten(part, value, message):
    """The windows of columns that single rows are cut into are made again, and checked, after every change in place."""
    pattern = random_pattern(200, 380, 1, 1.0)
    pattern.rows.copy_(torch.arange(200).view(200, 1))
    values, x = random_values(pattern).requires_grad_(), torch.randn(4, 380, requires_grad=True)
    out = ops.linear(x, values, pattern, None, "cpu")
    out.sum().backward()
    getattr(pattern, part)[3] = value
    with pytest.raises(ValueError, match=message):
        ops.linear(x, values, pattern, None, "cpu")
    with pytest.raises(ValueError, match=message):
        torch.ops.openwork.linear_backward(
            out.detach(), None, values.detach(), pattern.rows, pattern.offsets, pattern.cols, pattern.shape, "cpu"
        )


@pytest.mark.parametrize("turned", [False, True])
def test_what_crosses_for_cut_layers_is_checked_too(turned):
    """The kernel trusts no copy of its own either."""
    pattern = random_pattern(200, 380, 1, 0.3)
    values, x = random_values(pattern), torch.randn(4, 380)
    _, index = cpu._windows(pattern, len(x), turned=turned)
    for i, (place, value) in enumerate([(3, 10**9), (3, 380), (3, len(pattern.cols))]):
        kept = index[i].clone()
        index[i][place] = value
        with pytest.raises(ValueError, match="pattern's"):
            cpu._segments_forward(
                x[:, : 200 if turned else 380].contiguous(), values, pattern, None, torch.empty(4, 380), turned=turned
            )
        index[i].copy_(kept)


def test_a_changed_index_is_transposed_again():
    """The transposed structure of height 1 is kept, but not beyond a change in place."""
    pattern = random_pattern(10, 27, 1, 0.5)
    values, g = random_values(pattern), torch.randn(4, 10)

    def input_gradient(kernel):
        x = torch.zeros(4, 27, requires_grad=True)
        ops.linear(x, values, pattern, None, kernel).backward(g)
        return x.grad

    torch.testing.assert_close(input_gradient("cpu"), input_gradient("reference"))
    pattern.cols.copy_(26 - pattern.cols)
    torch.testing.assert_close(input_gradient("cpu"), input_gradient("reference"))


def test_the_cpu_backend_knows_float32_only():
    with pytest.raises(ValueError, match=r"kernel='cpu' computes in torch.float32 on the cpu; got torch.float64"):
        ops.linear(X.double(), VALUES.double(), PATTERN, None, "cpu")


def test_choosing_a_backend():
    assert available() == ("reference", "cpu")
    assert choose("cpu", torch.float32) == choose("cpu", torch.float32, "auto") == "cpu"
    assert choose("cpu", torch.float64, "reference") == "reference"
    with pytest.raises(ValueError, match="kernel='mkl' must be one of reference, cpu"):
        choose("cpu", torch.float32, "mkl")
    with pytest.raises(ValueError, match=r"got torch.float16"):
        choose("cpu", torch.float16, "cpu")


def test_falling_back_warns_once(monkeypatch):
    monkeypatch.setattr("openwork.kernels._warned", set())
    with pytest.warns(UserWarning, match="no sparse kernel for torch.float64 on cpu"):
        assert choose("cpu", torch.float64) == "reference"
    assert choose("cpu", torch.float64) == "reference"


def test_table_names():
    with pytest.raises(ValueError, match="op='spmv' must be one of linear"):
        register("spmv", "cpu")
    with pytest.raises(ValueError, match="has no op 'spmv'"):
        lookup("spmv", "cpu")
