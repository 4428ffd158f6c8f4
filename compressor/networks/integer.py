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


class IntegerConv(nn.Module):
    """Convolution with int8 weights and integer input; returns the integer accumulator.

    Parameters keep real values and are rounded on the way (straight-through), in training and in use alike.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        bound = (in_channels * kernel * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel).uniform_(-bound, bound))

    def integer_weight(self) -> Tensor:
        return round_ste((self.weight * WEIGHT_STEPS).clamp(-WEIGHT_MAX, WEIGHT_MAX))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = self.integer_weight().to(x_BCHW.dtype)
        if self.training:
            return F.conv2d(x_BCHW, weight, padding=self.kernel // 2)
        # Plain matrix products: a library may choose Winograd or FFT for a convolution, and those are not exact.
        batch, _, height, width = x_BCHW.shape
        margin = self.kernel // 2
        x_BHWC = F.pad(x_BCHW, (margin, margin, margin, margin)).permute(0, 2, 3, 1)
        total = x_BCHW.new_zeros(batch * height * width, len(weight))
        for row in range(self.kernel):
            for column in range(self.kernel):
                patch = x_BHWC[:, row : row + height, column : column + width].flatten(0, 2)
                total.addmm_(patch, weight[:, :, row, column].T)
        return total.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def worst_case(self, input_max: int) -> int:
        """Largest magnitude that an accumulator can reach for inputs in [-input_max, input_max]."""
        return int(self.integer_weight().detach().double().abs().sum(dim=(1, 2, 3)).max() * input_max)


def activate(accumulator: Tensor, steps: int) -> Tensor:
    """ReLU and requantisation: accumulator units -> activation units in [0, 127], rounding half up.

    ``steps`` (integer units of the accumulator to one unit of value) is a power of two, so the division is exact.
    """
    shifted = accumulator * (ACTIVATION_STEPS / steps)
    return floor_ste(shifted + 0.5).clamp(0, ACTIVATION_MAX)
