"""Every product on every backend against dense float64 PyTorch, on random odd shapes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import BATCHES, DENSITIES, HEIGHTS, Conv, check_conv, check_linear, convs, random_pattern

from openwork.pattern import Pattern

random_shapes = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
heights, densities, batches = st.sampled_from(HEIGHTS), st.sampled_from(DENSITIES), st.sampled_from(BATCHES)


@pytest.fixture(autouse=True, params=[1, 3], ids=lambda n: f"{n}-threads")
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@random_shapes
@given(st.integers(1, 50), st.integers(1, 70), heights, densities, batches, st.booleans(), st.booleans())
def test_linear(rows, cols, height, density, batch, drop_rows, bias):
    check_linear(random_pattern(rows, cols, height, density, drop_rows=drop_rows), batch, bias=bias)


@random_shapes
@given(convs(), heights, densities, st.booleans(), st.booleans(), st.booleans())
def test_conv(conv, height, density, drop_rows, bias, channels_last):
    pattern = random_pattern(conv.rows, conv.columns, height, density, drop_rows=drop_rows)
    check_conv(pattern, conv, bias=bias, channels_last=channels_last)


@pytest.mark.parametrize("height", [1, 4, 8, 16, 32])
def test_tuned_heights_at_full_width(height):
    """Whole register tiles, several panels of the batch and more than one reduction of the weight gradient."""
    check_linear(random_pattern(64, 48, height, 0.3), 600)
    conv = Conv(64, 3, 35, (9, 18), (3, 3), (1, 1), (1, 1), (1, 1))
    check_conv(random_pattern(64, 27, height, 0.3), conv)


@pytest.mark.parametrize("batch", [1, 15, 33, 100, 300])
@pytest.mark.parametrize("height", [1, 3, 4, 16])
def test_wide_layers(height, batch):
    """Several windows of columns in all three products, and more than one packed panel."""
    check_linear(random_pattern(400, 1100, height, 0.1, drop_rows=batch == 33), batch, bias=batch != 15)
    check_linear(random_pattern(380, 177, height, 0.2, drop_rows=batch == 100), batch)


@pytest.mark.parametrize("batch", [128, 141])
def test_more_single_rows_than_fit_in_l2(batch):
    """Every window is packed anew for the next rows; here the last window is narrow, some rows are much longer than others."""
    pattern = random_pattern(1500, 190, 1, 0.2, drop_rows=True)
    check_linear(pattern, batch)
    check_linear(Pattern.from_mask((torch.rand(1500, 190) * torch.arange(1500)[:, None] / 1500) > 0.8), batch, bias=False)


@pytest.mark.parametrize("size", [(70, 3), (3, 70), (64, 64)])
@pytest.mark.parametrize("height", [1, 8])
def test_images_larger_than_the_window(size, height):
    """The window of packed lines slides many times, in both directions of the product."""
    conv = Conv(8, 40, 2, size, (3, 3), (1, 1), (1, 1), (1, 1))
    pattern = random_pattern(8, 360, height, 0.05)
    check_conv(pattern, conv)
    check_conv(pattern, Conv(8, 40, 17, size, (3, 3), (2, 2), (1, 1), (1, 1)))


@pytest.mark.parametrize("side", [(9, 11), (4, 4), (5, 40)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_single_rows_are_cut_into_windows_of_channels(side, stride):
    """Forward and, transposed, the input gradient: with ascending columns, and in any order, which leaves the rows whole."""
    conv = Conv(70, 75, 18, side, (3, 3), stride, (1, 1), (1, 1))
    pattern = Pattern.from_mask(torch.rand(70, 75 * 9, generator=torch.Generator().manual_seed(0)) < 0.1)
    check_conv(pattern, conv, bias=True)
    check_conv(random_pattern(70, 75 * 9, 1, 0.1, drop_rows=True), conv)
