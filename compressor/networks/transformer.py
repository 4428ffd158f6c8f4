"""V6: V5 with attention where it is cheap, in the blocks at 1/16 of the picture's resolution.

There a 128x128 picture is one window of 8x8 positions, so that every position sees the whole face. Larger pictures
are cut into such windows (Liu et al., Swin, 2021, without the shift: the 3x3 convolutions at 1/8 cross the borders).
Means, scales and everything that feeds a table are V5's.
"""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.blocks import PointwiseConv, added, faint
from compressor.networks.hyperprior import Hyperprior

WINDOW = 8


class AttentionBlock(nn.Module):
    """Self-attention within windows of 8x8 positions, then channel mixing by two 1x1; both residual.

    8 C^2 + 128 C multiply-adds a position. Scores carry a learned bias for each head and relative place.
    """

    _relative: Tensor

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared among {heads} heads")
        self.heads = heads
        self.normalise = nn.LayerNorm(channels)
        self.enter = PointwiseConv(channels, 3 * channels)
        self.place = nn.Parameter(torch.zeros(heads, (2 * WINDOW - 1) ** 2))
        self.leave = faint(PointwiseConv(channels, channels))
        self.expand = PointwiseConv(channels, 2 * channels)
        self.contract = faint(PointwiseConv(2 * channels, channels))
        places = np.array(list(product(range(WINDOW), repeat=2)))  # rows and columns
        down, right = np.moveaxis(places[:, None] - places + WINDOW - 1, 2, 0)
        self.register_buffer("_relative", torch.tensor(down * (2 * WINDOW - 1) + right), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.normalise(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = added(x, self.leave(self._attend(self.enter(normal))))
        return added(x, self.contract(F.leaky_relu(self.expand(x), 0.1, inplace=True)))

    def _attend(self, qkv_BCHW: Tensor) -> Tensor:
        """Queries, keys and values (B, 3C, H, W) -> attended values (B, C, H, W)."""
        batch, triple, height, width = qkv_BCHW.shape
        bottom, right = -height % WINDOW, -width % WINDOW
        rows, columns = (height + bottom) // WINDOW, (width + right) // WINDOW
        padded = F.pad(qkv_BCHW, (0, right, 0, bottom))
        windows = padded.view(batch, triple, rows, WINDOW, columns, WINDOW).permute(0, 2, 4, 3, 5, 1)
        shape = (batch * rows * columns, WINDOW**2, 3, self.heads, triple // 3 // self.heads)
        query, key, value = windows.reshape(shape).permute(2, 0, 3, 1, 4)
        bias = self.place[:, self._relative].to(query.dtype)[None]
        if bottom or right:
            inside = F.pad(torch.ones(height, width, dtype=torch.bool, device=padded.device), (0, right, 0, bottom))
            inside = inside.view(rows, WINDOW, columns, WINDOW).transpose(1, 2).reshape(-1, 1, 1, WINDOW**2)
            bias = bias.masked_fill(~inside.repeat(batch, 1, 1, 1), float("-inf"))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        merged = attended.transpose(1, 2).reshape(batch, rows, columns, WINDOW, WINDOW, triple // 3)
        merged = merged.permute(0, 5, 1, 3, 2, 4).reshape(batch, triple // 3, height + bottom, width + right)
        return merged[:, :, :height, :width]


def transformer_hyperprior(heads: int = 8, **options: Any) -> Hyperprior:
    """The V6 network; ``options`` are those of :class:`~compressor.networks.hyperprior.Hyperprior`."""
    return Hyperprior(deep_block=partial(AttentionBlock, heads=heads), **options)
