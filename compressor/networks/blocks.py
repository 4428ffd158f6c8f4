"""Building blocks shared by the learned codecs: residual blocks, patches, exact rounding.

Shapes are named in the suffix of a tensor: B batch, C channels, H and W at the resolution at hand. Nothing here knows
about entropy coding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.fused import FusedConv, can_fuse


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties to even; gradients pass unchanged (straight-through, Theis et al., 2017)."""
    return torch.round(x).detach() + (x - x.detach()) if x.requires_grad else torch.round(x)


def floor_ste(x: Tensor) -> Tensor:
    """Round down; gradients pass unchanged."""
    return torch.floor(x).detach() + (x - x.detach()) if x.requires_grad else torch.floor(x)


@contextmanager
def full_precision() -> Iterator[None]:
    """Without autocast, whatever is in force.

    A GPU may still round factors to TF32's ten bits. Integers here have seven; of the means it cost 0.007 dB at most
    (emulated, 12 portraits at steps 8 to 62), which what a search keeps in hand covers.
    """
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution; for a compiler a product of matrices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x_BCHW)
        return F.linear(x_BCHW.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """A 3x3 convolution of each channel by itself; for a compiler nine shifted products, which it makes one loop of."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x_BCHW)
        assert self.bias is not None
        height, width = x_BCHW.shape[-2:]
        padded = F.pad(x_BCHW, (1, 1, 1, 1)).float()
        total = self.bias[:, None, None]
        for row, column in product(range(3), repeat=2):
            tap = padded[:, :, row : row + height, column : column + width]
            total = total + tap * self.weight[:, :, row, column, None]
        return total.to(x_BCHW.dtype)


class ResidualBlock(nn.Module):
    """Spatial mixing by a depthwise 3x3, then channel mixing by two 1x1; both residual.

    6 C^2 + 9 C multiply-adds a position. The last layer of each branch starts at a tenth of the usual scale, so
    that a deep trunk starts near the identity and needs no normalisation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = PointwiseConv(channels, channels)
        self.spatial = DepthwiseConv(channels)
        self.leave = faint(PointwiseConv(channels, channels))
        self.expand = PointwiseConv(channels, 2 * channels)
        self.contract = faint(PointwiseConv(2 * channels, channels))
        self._fixed = False
        self._fused: list[FusedConv] = []

    def fix_weights(self) -> None:
        """They stay as they are from here on: for bfloat16 on a processor they are laid out once."""
        self._fixed = True

    def forward(self, x: Tensor) -> Tensor:
        if self._fixed and x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled():
            if not self._fused and can_fuse():
                layers = (self.enter, self.spatial, self.leave, self.expand, self.contract)
                self._fused = [FusedConv(layer) for layer in layers]
            if self._fused:
                return self._forward_fused(as_multiplied(x))
        x = added(x, self.leave(self.spatial(F.leaky_relu(self.enter(x), 0.1, inplace=True))))
        return added(x, self.contract(F.leaky_relu(self.expand(x), 0.1, inplace=True)))

    def _forward_fused(self, x: Tensor) -> Tensor:
        enter, spatial, leave, expand, contract = self._fused
        x = leave.added(x, spatial(enter.activated(x, 0.1)), in_place=False)  # what came in is another's
        return contract.added(x, expand.activated(x, 0.1), in_place=True)


def as_multiplied(x: Tensor) -> Tensor:
    """In the number format that convolutions take, to which each would cast it after it was moved about."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def added(x: Tensor, fresh: Tensor) -> Tensor:
    """``x + fresh``, in the memory of ``fresh``, which nothing else reads, where it has the precision of the sum."""
    return fresh.add_(x) if fresh.dtype == x.dtype else x + fresh


class UnshuffledConv(nn.Conv2d):
    """A 1x1 convolution over ``F.pixel_unshuffle`` by ``side``, and by ``outer`` after it.

    The weights are in that order. What they are multiplied by is not brought into it: in channels-last memory a row of
    a patch lies together, and moving whole rows takes a fifth of the time.
    """

    def __init__(self, channels: int, outputs: int, side: int, outer: int = 1, bias: bool = True) -> None:
        super().__init__(channels * (side * outer) ** 2, outputs, 1, bias=bias)
        self.side, self.outer = side, outer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        sides = (self.side, self.side, self.outer, self.outer)
        weight = self.weight.view(-1, x_BCHW.shape[1], *sides).permute(0, 4, 5, 2, 3, 1).reshape(self.weight.shape)
        for side in (self.side, self.outer):
            x_BCHW = _patches(x_BCHW, side)
        return F.conv2d(x_BCHW, weight, self.bias)


class ShuffledConv(nn.Conv2d):
    """``F.pixel_shuffle`` by ``outer`` and by ``side`` after it, of a 1x1 convolution: see :class:`UnshuffledConv`."""

    def __init__(self, channels: int, outputs: int, side: int, outer: int = 1, bias: bool = True) -> None:
        super().__init__(channels, outputs * (side * outer) ** 2, 1, bias=bias)
        self.side, self.outer = side, outer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        batch, _, height, width = x_BCHW.shape
        whole = self.side * self.outer
        bias = None if self.bias is None else self._by_place(self.bias)
        y = F.conv2d(x_BCHW, self._by_place(self.weight), bias).permute(0, 2, 3, 1)
        rows = y.reshape(batch, height, width, whole, -1).transpose(2, 3)
        return rows.reshape(batch, height * whole, width * whole, -1).permute(0, 3, 1, 2)

    def _by_place(self, values: Tensor) -> Tensor:
        """Outputs in the order of row, column and colour instead of colour, row and column."""
        parts = values.view(-1, self.side, self.side, self.outer, self.outer, *values.shape[1:])
        return parts.movedim((3, 1, 4, 2, 0), (0, 1, 2, 3, 4)).reshape(values.shape)


def _patches(x_BCHW: Tensor, side: int) -> Tensor:
    """(B, side * side * C, H/side, W/side), the channels of a patch by row, column and channel of ``x_BCHW``."""
    batch, channels, height, width = x_BCHW.shape
    strips = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height // side, side, width // side, side * channels)
    return strips.transpose(2, 3).reshape(batch, height // side, width // side, -1).permute(0, 3, 1, 2)


@torch.no_grad()
def faint(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer at a tenth of its usual scale, without bias."""
    layer.weight.mul_(0.1)
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


def to_bytes(x: Tensor) -> Tensor:
    """Values of [0, 1] as the nearest of uint8's 0 to 255; what lies outside is clipped."""
    return x.float().mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(x_BCHW: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``multiple``."""
    height, width = x_BCHW.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom or right:
        x_BCHW = F.pad(x_BCHW, (0, right, 0, bottom), mode="replicate")
    return x_BCHW
