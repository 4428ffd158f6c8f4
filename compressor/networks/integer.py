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
        # Plain matrix products: a library may choose Winograd or FFT for a convolution, and those are not exact.
        batch, _, height, width = x_BCHW.shape
        margin = self.kernel // 2
        work = torch.float32 if self.fits_float32 else torch.float64
        weight = self.integer_weight().to(work)
        x_BHWC = F.pad(x_BCHW.to(work), (margin, margin, margin, margin)).permute(0, 2, 3, 1)
        total = x_BHWC.new_zeros(batch * height * width, len(weight))
        for row in range(self.kernel):
            for column in range(self.kernel):
                patch = x_BHWC[:, row : row + height, column : column + width].flatten(0, 2)
                total.addmm_(patch, weight[:, :, row, column].T)
        return total.view(batch, height, width, -1).permute(0, 3, 1, 2).double()


def activate(accumulator: Tensor, steps: int) -> Tensor:
    """ReLU and requantisation: accumulator units -> activation units in [0, 127], rounding half up.

    ``steps`` (integer units of the accumulator to one unit of value) is a power of two, so the division is exact.
    """
    shifted = accumulator * (ACTIVATION_STEPS / steps)
    return floor_ste(shifted + 0.5).clamp(0, ACTIVATION_MAX)
