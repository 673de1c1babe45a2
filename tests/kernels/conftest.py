"""Every kernel test runs in poisoned memory: what a kernel does not write itself is NaN."""

import pytest
import torch

from openwork import _native


@pytest.fixture(autouse=True)
def _poisoned_memory():
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    _native.poison_scratch(True)
    yield
    _native.poison_scratch(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)
