"""The sparse products as PyTorch operators."""

from openwork.kernels.conv2d import conv2d, conv2d_sddmm
from openwork.kernels.linear import linear, sddmm

__all__ = ["conv2d", "conv2d_sddmm", "linear", "sddmm"]
