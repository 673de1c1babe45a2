"""Modules with sparse weights."""

from openwork.nn.base import SparseModule
from openwork.nn.conv import SparseConv2d
from openwork.nn.linear import SparseLinear
from openwork.resident import to_nchw
from openwork.resident.switch import resident

__all__ = ["SparseConv2d", "SparseLinear", "SparseModule", "resident", "to_nchw"]
