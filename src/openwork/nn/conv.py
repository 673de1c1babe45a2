"""A two-dimensional convolution with a sparse weight."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from openwork import kernels, resident
from openwork.kernels import ops
from openwork.kernels.window import Window
from openwork.nn.base import SparseModule, check_shape, random_signs
from openwork.pattern import Pattern

Pair = tuple[int, int]


class SparseConv2d(SparseModule):
    """A convolution with a sparse weight, as ``nn.Conv2d``.

    The weight is the matrix ``W[out_channels, in_channels / groups * kh * kw]``, column ``(cin * kh + i) * kw + j``.

    Args:
        pattern: which weights exist.
        values: ``[K, h]``, their values.
        bias: ``[out_channels]`` or None.
        kernel_size: ``(kh, kw)``.
        stride: pixels the window moves by.
        padding: pixels around the image, ``((top, bottom), (left, right))`` or one pair for both sides.
        dilation: pixels between neighbouring taps.
        groups: channel groups.  With more than one, the rows of a row group must belong to the same channel group.
        padding_mode: what the padding holds, as in ``nn.Conv2d``.
        kernel: a backend's name, None for the fastest, or ``"auto"`` to measure that one against the dense product.

    Raises:
        PatternError: ``values`` do not fit ``pattern``.
        ValueError: the pattern does not fit ``kernel_size`` or ``groups``.
    """

    dense_type = nn.Conv2d
    full_cols: Tensor | None

    def __init__(
        self,
        pattern: Pattern,
        values: Tensor,
        bias: Tensor | None = None,
        *,
        kernel_size: Pair,
        stride: Pair = (1, 1),
        padding: Pair | tuple[Pair, Pair] = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        padding_mode: str = "zeros",
        kernel: str | None = None,
    ) -> None:
        super().__init__(pattern, values, bias, kernel)
        taps = kernel_size[0] * kernel_size[1]
        if self.shape[1] % taps or self.shape[0] % groups:
            raise ValueError(f"a {self.shape} pattern fits neither kernel_size={kernel_size} or not groups={groups}")
        self.out_channels, self.in_channels = self.shape[0], self.shape[1] // taps * groups
        self.kernel_size, self.stride, self.dilation, self.groups = kernel_size, stride, dilation, groups
        self.padding_mode = padding_mode
        (top, bottom), (left, right) = (side if isinstance(side, tuple) else (side, side) for side in padding)
        even = top == bottom and left == right and padding_mode == "zeros"
        self.padding = (top, left) if even else (0, 0)
        self.extra_padding = (0, 0, 0, 0) if even else (left, right, top, bottom)
        self.register_buffer("full_cols", None, persistent=False)
        self._place_groups()

    @classmethod
    def from_dense(cls, module: nn.Conv2d, pattern: Pattern, kernel: str | None = None) -> SparseConv2d:
        """The weights of ``module`` at the positions of ``pattern``; the bias parameter itself is kept.

        Raises:
            PatternError: ``pattern`` is of another shape than the weight as a matrix.
        """
        check_shape(pattern, module.weight)
        pattern = pattern.to(module.weight.device)
        sparse = cls(
            pattern,
            pattern.pack(module.weight.detach()),
            None,
            kernel_size=_pair(module.kernel_size),
            stride=_pair(module.stride),
            padding=_sides(module),
            dilation=_pair(module.dilation),
            groups=module.groups,
            padding_mode=module.padding_mode,
            kernel=kernel,
        )
        sparse.values.requires_grad_(module.weight.requires_grad)
        sparse.register_parameter("bias", cast("nn.Parameter | None", module.bias))
        return sparse.train(module.training)

    def to_dense(self) -> nn.Conv2d:
        """``nn.Conv2d`` of the same function; allocates the whole weight and keeps the bias parameter itself.

        Raises:
            ValueError: the padding differs from side to side, which ``nn.Conv2d`` only knows as ``padding="same"``.
        """
        left, right, top, bottom = self.extra_padding
        padding: Pair | Literal["same"] = self.padding
        if left == right and top == bottom:
            padding = (self.padding[0] + top, self.padding[1] + left)
        else:
            if _same_sides(self.kernel_size, self.dilation) != ((top, bottom), (left, right)):
                raise ValueError(f"padding {self.extra_padding} (left, right, top, bottom) has no dense counterpart")
            padding = "same"
        dense = torch.nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=False,
            padding_mode=self.padding_mode,
        )
        dense.weight = nn.Parameter(self.dense_weight().detach(), requires_grad=self.values.requires_grad)
        dense.bias = self.bias
        return dense.train(self.training)

    @property
    def dense_dims(self) -> tuple[int, ...]:
        """``(out_channels, in_channels / groups, kh, kw)``."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    @property
    def kept_bytes(self) -> int:
        """Bytes that products keep beside the pattern."""
        return super().kept_bytes + (0 if self.full_cols is None else kernels.kept_bytes(self.full_cols))

    def replace(self, pattern: Pattern, values: Tensor) -> None:
        """Exchange pattern and values."""
        super().replace(pattern, values)
        self._place_groups()

    def _place_groups(self) -> None:
        """With channel groups, the columns that the kernels see lie in the channels of the row group's own."""
        if self.groups > 1:
            self.full_cols = self._full_columns(self.pattern)

    def _full_columns(self, pattern: Pattern) -> Tensor:
        """The columns of ``pattern`` counted over the channels of all groups."""
        channel_group = (pattern.rows.long() * self.groups).div(self.shape[0], rounding_mode="floor")
        low = torch.where(pattern.rows >= 0, channel_group, self.groups).min(1).values
        if not torch.equal(low, channel_group.max(1).values):
            raise ValueError(f"a row group spans several of groups={self.groups} channel groups")
        return pattern.cols + (low[pattern.group_of_column] * self.shape[1]).int()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` (or without N) to ``[N, out_channels, Ho, Wo]``."""
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [N, in_channels={self.in_channels}, H, W]")
        if x.dim() == 3:
            return self.forward(x[None])[0]
        if any(self.extra_padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self.extra_padding, mode)
        return self._watched(x)

    def product(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of a padded image."""
        pattern = self.pattern
        if self.full_cols is not None:
            pattern = self._among_all_channels(pattern, self.full_cols)
        if resident.takes(x, self.backend, self.conversions):
            window = Window(self.kernel_size, self.stride, self.padding, self.dilation)
            return resident.conv2d(x, values, pattern, bias, window, self.conversions)
        return ops.conv2d(
            x,
            values,
            pattern,
            bias,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            kernel=self.backend,
        )

    def _among_all_channels(self, pattern: Pattern, full_cols: Tensor) -> Pattern:
        return Pattern((self.shape[0], self.shape[1] * self.groups), pattern.rows, pattern.offsets, full_cols)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense convolution of a padded image."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def dense_rows(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        """Rows of the dense weight gradient, by a dense convolution of these output channels alone."""
        if self.groups == 1:
            return self._weight_gradient(x, g[:, rows])
        channels = self.in_channels // self.groups
        out = x.new_empty(len(rows), self.shape[1])
        owner = rows * self.groups // self.shape[0]
        for group in owner.unique().tolist():
            own = owner == group
            out[own] = self._weight_gradient(x[:, group * channels : (group + 1) * channels], g[:, rows[own]])
        return out

    def _weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        size = (g.shape[1], x.shape[1], *self.kernel_size)
        dense = conv2d_weight(x, size, g, stride=self.stride, padding=self.padding, dilation=self.dilation)
        return dense.view(g.shape[1], -1)

    def input_sums(self, x: Tensor) -> Tensor:
        """Sums over all patches, from one shifted window of the batch's sum for each tap: nothing is unfolded.

        Raises:
            ValueError: with channel groups, where a column has no one input.
        """
        if self.groups > 1:
            raise ValueError(f"norms of inputs are not defined for groups={self.groups}")
        (pad_h, pad_w), (step_h, step_w) = self.padding, self.stride
        image = F.pad(x.sum(0), (pad_w, pad_w, pad_h, pad_h))
        height = (image.shape[1] - self.dilation[0] * (self.kernel_size[0] - 1) - 1) // step_h + 1
        width = (image.shape[2] - self.dilation[1] * (self.kernel_size[1] - 1) - 1) // step_w + 1
        taps = [
            image[:, top : top + (height - 1) * step_h + 1 : step_h, left : left + (width - 1) * step_w + 1 : step_w]
            for top in range(0, self.dilation[0] * self.kernel_size[0], self.dilation[0])
            for left in range(0, self.dilation[1] * self.kernel_size[1], self.dilation[1])
        ]
        return torch.stack([tap.sum((1, 2)) for tap in taps], 1).reshape(-1)

    def output_sums(self, g: Tensor) -> Tensor:
        """Sum over batch and positions."""
        return g.sum((0, 2, 3))

    def signed_sums(self, x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One sign for each patch; the patches' sum is a weight gradient of one output channel, so nothing is unfolded.

        Raises:
            ValueError: with channel groups, where a column has no one input.
        """
        if self.groups > 1:
            raise ValueError(f"sums of inputs are not defined for groups={self.groups}")
        signs = random_signs((g.shape[0], 1, *g.shape[2:]), g, generator)
        return self.output_sums(signs * g), self._weight_gradient(x, signs)[0]

    def gradient_at(self, x: Tensor, g: Tensor, pattern: Pattern) -> Tensor:
        """The gradient of the taps that ``pattern`` names."""
        if self.groups > 1:
            pattern = self._among_all_channels(pattern, self._full_columns(pattern))
        return ops.conv2d_sddmm(
            x, g, pattern, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation,
            kernel=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Sizes and density."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, bias={self.bias is not None}, "
            f"density={self.pattern.density:.4g}, height={self.values.shape[1]}"
        )


def _pair(value: tuple[int, ...]) -> Pair:
    return value[0], value[1]


def _sides(module: nn.Conv2d) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) of a dense convolution's padding, ``"same"`` and ``"valid"`` included."""
    if module.padding == "same":
        return _same_sides(_pair(module.kernel_size), _pair(module.dilation))
    if isinstance(module.padding, str):
        return (0, 0), (0, 0)
    return (module.padding[0], module.padding[0]), (module.padding[1], module.padding[1])


def _same_sides(kernel_size: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
