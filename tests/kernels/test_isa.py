"""The builds of the kernels for instruction sets that this processor has, but does not choose by itself."""

import pytest
from builds import assert_runs, python

from openwork import _native

CHECK = """
import torch
from openwork import _native
from problems import Conv, check_conv, check_linear, random_pattern
assert _native.isa() == {isa!r}, _native.isa()
_native.poison_scratch(True)
torch.set_num_threads(2)
for height in (1, 2, 3, 4, 7, 8, 16, 32):
    check_linear(random_pattern(190, 500, height, 0.1), 100)
    for batch in (1, 7, 40, 130):
        check_linear(random_pattern(37, 41, height, 0.4, drop_rows=height == 4), batch)
    for batch in (1, 6, 35):
        for stride, size in (((1, 1), (7, 18)), ((2, 2), (9, 5))):
            check_conv(random_pattern(37, 27, height, 0.4), Conv(37, 3, batch, size, (3, 3), stride, (1, 1), (1, 1)))
"""


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_forced_isa(isa):
    assert_runs(CHECK, isa)


def test_unknown_isa_is_refused():
    done = python("import torch; from openwork import _native; _native.isa()", "mmx")
    assert done.returncode != 0
    assert "OPENWORK_ISA='mmx'" in done.stderr
    assert "baseline" in done.stderr
