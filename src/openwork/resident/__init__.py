"""Activations that stay in the kernels' layout from one sparse convolution to the next.

A sparse convolution computes with the batch innermost: ``[ceil(N / 16)][H][C][W][16]``.  Turning that into NCHW and back at
every layer costs as much as the products save, so a sparse convolution hands on a :class:`ResidentTensor`, a tensor of shape
``[N, C, H, W]`` that holds the blocked numbers.  PyTorch's autograd, hooks and modules see a tensor like any other; below
autograd, what batch norm, ReLU, residual additions and pooling do is done on the blocked numbers, most of it not at all until a
convolution reads them (:class:`Formula`).  Every other operation gets the NCHW numbers; the layer's ``conversions`` count it.
"""

from openwork.resident.conv import conv2d as conv2d
from openwork.resident.conv import takes as takes
from openwork.resident.formula import Formula as Formula
from openwork.resident.switch import enabled as enabled
from openwork.resident.switch import resident as resident
from openwork.resident.tensor import ResidentTensor as ResidentTensor
from openwork.resident.tensor import to_nchw as to_nchw
