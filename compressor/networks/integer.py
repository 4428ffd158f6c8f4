"""Networks in integer arithmetic, for whatever feeds the entropy coder's tables.

A table index must be the same number in the writer and in every reader: another device, batch size, thread
count or torch version. Floating-point sums are not, because their order changes. Here weights, activations and
accumulators are integers carried in floating-point tensors, small enough that every sum is exact, so that the
order does not matter.

Fixed point: an activation counts sixteenths, a weight sixty-fourths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.blocks import floor_ste, round_ste

ACTIVATION_STEPS = 16  # integer units to one unit of value
WEIGHT_STEPS = 64
OVER_INTEGERS = WEIGHT_STEPS  # units of the accumulator of a convolution over plain integers
OVER_ACTIVATIONS = WEIGHT_STEPS * ACTIVATION_STEPS  # and of one over activations
ACTIVATION_MAX = 127
WEIGHT_MAX = 127
FLOAT32_INTEGERS = 2**24  # float32 holds every integer up to here


class IntegerConv(nn.Module):
    """Convolution with int8 weights and integer input; returns the integer accumulator, in use as float64.

    Parameters keep real values and are rounded on the way (straight-through), in training and in use alike.

    Parameters
    ----------
    input_max
        Largest magnitude of an input. Where no sum of products can pass 2^24 with it, whatever the weights, float32
        holds every partial sum and the products are taken in it, three times as fast as in float64.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, input_max: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.fits_float32 = in_channels * kernel**2 * WEIGHT_MAX * input_max <= FLOAT32_INTEGERS
        bound = (in_channels * kernel * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel).uniform_(-bound, bound))

    def integer_weight(self) -> Tensor:
        return round_ste((self.weight * WEIGHT_STEPS).clamp(-WEIGHT_MAX, WEIGHT_MAX))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training:
            return F.conv2d(x_BCHW, self.integer_weight().to(x_BCHW.dtype), padding=self.kernel // 2)
        # 1x1 convolutions, that is matrix products: a library may take Winograd or FFT for larger ones, which are not
        # exact. The factors have seven bits, so that even TF32 or bfloat16 products with float32 sums are.
        height, width = x_BCHW.shape[-2:]
        margin = self.kernel // 2
        work = torch.float32 if self.fits_float32 else torch.float64
        weight = self.integer_weight().to(work)
        x_BCHW = x_BCHW.to(work, memory_format=torch.channels_last)
        padded = F.pad(x_BCHW, (margin, margin, margin, margin))
        total: Tensor | float = 0.0
        for row in range(self.kernel):
            for column in range(self.kernel):
                patch = padded[:, :, row : row + height, column : column + width]
                total = total + F.conv2d(patch, weight[:, :, row : row + 1, column : column + 1])
        return torch.as_tensor(total, dtype=torch.float64)


def activate(accumulator: Tensor, steps: int) -> Tensor:
    """ReLU and requantisation: accumulator units -> activation units in [0, 127], rounding half up.

    ``steps`` (integer units of the accumulator to one unit of value) is a power of two, so the division is exact.
    """
    shifted = accumulator * (ACTIVATION_STEPS / steps)
    return floor_ste(shifted + 0.5).clamp(0, ACTIVATION_MAX)
