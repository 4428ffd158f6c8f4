"""Convolutions of weights that stay, which take along what follows them: on a processor, in bfloat16.

oneDNN multiplies by weights that it has laid out for itself, and applies an activation, or adds to a sum, while
products are still in registers. torch has operators for that, which its compiler emits for frozen networks; here they
are called directly, for compiling takes longer than most runs.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedConv:
    """A convolution by the weights that a layer has now."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._settings: list[Any] = [layer.padding, layer.stride, layer.dilation, layer.groups]
        weight = layer.weight.detach().bfloat16().to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._settings)
        self._bias = None if layer.bias is None else layer.bias.detach().bfloat16()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        return self._apply(x_BCHW, "none", [])

    def activated(self, x_BCHW: Tensor, slope: float) -> Tensor:
        """The leaky ReLU of the convolution."""
        return self._apply(x_BCHW, "leaky_relu", [slope])

    def added(self, sum_BCHW: Tensor, x_BCHW: Tensor, in_place: bool) -> Tensor:
        """``sum_BCHW`` and the convolution of ``x_BCHW``."""
        then = (self._weight, self._bias, *self._settings, "add", 1.0, None, [], None)
        if in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(sum_BCHW, x_BCHW, *then)
        return torch.ops.mkldnn._convolution_pointwise.binary(x_BCHW, sum_BCHW, *then)

    def _apply(self, x_BCHW: Tensor, activation: str, scalars: Sequence[float]) -> Tensor:
        then = (*self._settings, activation, scalars, "")
        return torch.ops.mkldnn._convolution_pointwise(x_BCHW, self._weight, self._bias, *then)


@cache
def can_fuse() -> bool:
    """Whether this torch and this processor do that, and rightly as far as can be tried: the operators are internal."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.randn(2, 16, 6, 4, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
        for layer in (nn.Conv2d(16, 32, 1).bfloat16(), nn.Conv2d(16, 16, 3, padding=1, groups=16).bfloat16()):
            expected = layer(x).float()
            total = torch.ones_like(expected, dtype=torch.bfloat16)
            try:
                fused = FusedConv(layer)
                found = (fused(x), fused.activated(x, 0.1), fused.added(total, x, False), fused.added(total, x, True))
            except (AttributeError, NotImplementedError, RuntimeError, TypeError):
                return False
            right = (expected, F.leaky_relu(expected, 0.1), expected + 1, expected + 1)
            if not all(torch.allclose(a.float(), b, rtol=0.02, atol=0.02) for a, b in zip(found, right, strict=True)):
                return False
    return True
