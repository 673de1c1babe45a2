"""Dense weights of values whose places are kept with the pattern, against weights placed entry by entry."""

import torch
from kernels.problems import dense_weight, random_pattern, random_values

from openwork.nn.unpacking import forget, kept_bytes, unpacked


def test_a_changed_index_is_unpacked_as_it_is_now():
    pattern = random_pattern(10, 27, 4, 0.4)
    values = random_values(pattern)
    assert torch.equal(unpacked(values, pattern), dense_weight(pattern, values))
    assert kept_bytes(pattern) == 8 * values.numel()
    pattern.cols.copy_(26 - pattern.cols)
    assert torch.equal(unpacked(values, pattern), dense_weight(pattern, values))
    forget(pattern)
    assert kept_bytes(pattern) == 0
    with torch.inference_mode():
        made = random_pattern(10, 27, 4, 0.4)
        assert torch.equal(unpacked(values, made), dense_weight(made, values))
        made.cols.copy_(26 - made.cols)
        assert torch.equal(unpacked(values, made), dense_weight(made, values))


def test_gradients_of_unpacked_values():
    pattern = random_pattern(10, 27, 3, 0.4)
    values = random_values(pattern).double().masked_fill(pattern.positions < 0, 0.0).requires_grad_()
    g = torch.randn(10, 27, dtype=torch.float64)
    (found,) = torch.autograd.grad(unpacked(values, pattern), values, g.t().contiguous().t())
    (true,) = torch.autograd.grad(dense_weight(pattern, values), values, g)
    assert torch.equal(found, true)
