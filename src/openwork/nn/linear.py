"""A linear layer with a sparse weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.kernels import ops
from openwork.nn.base import SparseModule, check_shape, random_signs
from openwork.pattern import Pattern


class SparseLinear(SparseModule):
    """``y = x W^T + b`` with a sparse ``W[R, C]``, as ``nn.Linear``.

    Args:
        pattern: which weights exist, of shape ``(out_features, in_features)``.
        values: ``[K, h]``, their values.
        bias: ``[out_features]`` or None.
        kernel: a backend's name, None for the fastest, or ``"auto"`` to measure that one against the dense product.

    Raises:
        PatternError: ``values`` do not fit ``pattern``.
    """

    dense_type = nn.Linear

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None = None, kernel: str | None = None) -> None:
        super().__init__(pattern, values, bias, kernel)
        self.out_features, self.in_features = pattern.shape

    @classmethod
    def from_dense(cls, module: nn.Linear, pattern: Pattern, kernel: str | None = None) -> SparseLinear:
        """The weights of ``module`` at the positions of ``pattern``; the bias parameter itself is kept.

        Raises:
            PatternError: ``pattern`` is of another shape than the weight as a matrix.
        """
        check_shape(pattern, module.weight)
        pattern = pattern.to(module.weight.device)
        sparse = cls(pattern, pattern.pack(module.weight.detach()), None, kernel)
        sparse.values.requires_grad_(module.weight.requires_grad)
        sparse.register_parameter("bias", module.bias)
        return sparse.train(module.training)

    def to_dense(self) -> nn.Linear:
        """``nn.Linear`` of the same function; allocates the whole weight and keeps the bias parameter itself."""
        dense = torch.nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=False)
        dense.weight = nn.Parameter(self.dense_weight().detach(), requires_grad=self.values.requires_grad)
        dense.bias = self.bias
        return dense.train(self.training)

    @property
    def dense_dims(self) -> tuple[int, ...]:
        """``(R, C)``."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be in_features={self.in_features}")
        if x.dim() == 2:
            return self._watched(x)
        return self._watched(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """``[B, C]`` to ``[B, R]``."""
        return ops.linear(x, values, self.pattern, bias, self.backend)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b``."""
        return F.linear(x, weight, bias)

    def dense_rows(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        """Rows of ``g^T x``."""
        return g[:, rows].t() @ x

    def input_sums(self, x: Tensor) -> Tensor:
        """Sum over the batch."""
        return x.sum(0)

    def output_sums(self, g: Tensor) -> Tensor:
        """Sum over the batch."""
        return g.sum(0)

    def signed_sums(self, x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One sign for each sample."""
        signs = random_signs((len(g),), g, generator)
        return signs @ g, signs @ x

    def gradient_at(self, x: Tensor, g: Tensor, pattern: Pattern) -> Tensor:
        """``g^T x`` where ``pattern`` says."""
        return ops.sddmm(x, g, pattern, self.backend)

    def extra_repr(self) -> str:
        """Sizes and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.pattern.density:.4g}, height={self.values.shape[1]}"
        )
