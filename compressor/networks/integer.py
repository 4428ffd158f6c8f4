"""Networks in integer arithmetic, for whatever feeds the entropy coder's tables.

A table index must be the same number in the writer and in every reader: another device, batch size, thread
count or torch version. Floating-point sums are not, because their order changes. Here weights, activations and
accumulators are integers carried in floating-point tensors, small enough that every sum is exact, so that the
order does not matter.

Fixed point: an activation counts sixteenths, a weight sixty-fourths.
"""

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.blocks import floor_ste, full_precision, round_ste

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
        Largest magnitude of an input, 127 or less. Where no sum of products can pass 2^24 with it, whatever the
        weights, float32 holds every partial sum and the products are taken in it, three times as fast as in float64.
        A processor with products of eight bits takes those: four times as fast as float32, and integers to begin with.
    groups
        As of ``Conv2d``; of a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, input_max: int, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        inputs = in_channels // groups
        largest = inputs * kernel**2 * WEIGHT_MAX * input_max
        self.fits_float32, self.fits_int32 = largest <= FLOAT32_INTEGERS, largest < 2**31
        bound = (inputs * kernel * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(out_channels, inputs, kernel, kernel).uniform_(-bound, bound))
        self._factors: dict[torch.dtype, list[Tensor]] | None = None

    def fix_weights(self) -> None:
        """They stay as they are from here on: the matrices of them are made once."""
        self._factors = {}

    def integer_weight(self) -> Tensor:
        return round_ste((self.weight * WEIGHT_STEPS).clamp(-WEIGHT_MAX, WEIGHT_MAX))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training:
            weight = self.integer_weight().to(x_BCHW.dtype)
            return F.conv2d(x_BCHW, weight, padding=self.kernel // 2, groups=self.groups)
        if x_BCHW.device.type != "cpu":
            return self._by_matrix(x_BCHW, self._floats)
        if self.fits_int32 and has_exact_bytes():
            return self._by_matrix(x_BCHW, torch.int8)
        return self._by_taps(x_BCHW)

    @property
    def _floats(self) -> torch.dtype:
        return torch.float32 if self.fits_float32 else torch.float64

    @full_precision()
    def _by_taps(self, x_BCHW: Tensor) -> Tensor:
        """As 1x1 convolutions, which oneDNN takes as matrix products: of larger ones it may make Winograd's or an FFT.

        These are not exact. The factors have seven bits, so that even bfloat16 products with float32 sums are.
        """
        work, kernel, margin = self._floats, self.kernel, self.kernel // 2
        x_BCHW = x_BCHW.to(work, memory_format=torch.channels_last)
        weight = self.integer_weight().to(work)
        if kernel == 1:
            return F.conv2d(x_BCHW, weight, groups=self.groups).double()
        height, width = x_BCHW.shape[-2:]
        # All taps at once, at every position: their outputs are then moved to where they belong, and added up.
        taps = F.conv2d(x_BCHW, weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1], 1, 1))
        taps = taps.unflatten(1, (kernel, kernel, -1))
        total = taps[:, margin, margin]
        down, right = ([_moved(tap - margin, side) for tap in range(kernel)] for side in (height, width))
        for row, column in product(range(kernel), repeat=2):
            if (row, column) != (margin, margin):
                (to_row, from_row), (to_column, from_column) = down[row], right[column]
                total[:, :, to_row, to_column] += taps[:, row, column, :, from_row, from_column]
        return total.double()

    @full_precision()
    def _by_matrix(self, x_BCHW: Tensor, work: torch.dtype) -> Tensor:
        """As one product of matrices: of int8, summed up in int32, or of floats, which TF32 keeps exact too.

        A GPU's library may take an FFT for any convolution, and for a product of matrices none.
        """
        multiply = torch._int_mm if work == torch.int8 else torch.matmul
        batch, channels, height, width = x_BCHW.shape
        margin = self.kernel // 2
        x_BHWC = F.pad(x_BCHW.permute(0, 2, 3, 1).to(work), (0, 0, margin, margin, margin, margin))
        places = list(product(range(self.kernel), repeat=2))
        patches = [x_BHWC[:, row : row + height, column : column + width] for row, column in places]
        columns = torch.cat(patches, dim=3).view(-1, len(places) * channels)
        parts = zip(columns.chunk(self.groups, dim=1), self._matrices(work), strict=True)
        total = torch.cat([multiply(part.contiguous(), factor) for part, factor in parts], dim=1)
        return total.view(batch, height, width, -1).permute(0, 3, 1, 2).double()

    def _matrices(self, work: torch.dtype) -> list[Tensor]:
        """The weights of each group as (kernel * kernel * in, out)."""
        if self._factors and work in self._factors:
            return self._factors[work]
        weights = self.integer_weight().detach().to(work).chunk(self.groups)  # (out, in, k, k) of each
        matrices = [weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous() for weight in weights]
        if self._factors is not None:
            self._factors[work] = matrices
        return matrices


def _moved(by: int, size: int) -> tuple[slice, slice]:
    """Where positions of a side lie that have a neighbour at distance ``by``, and these neighbours."""
    return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by))


@cache
def has_exact_bytes() -> bool:
    """Whether this processor and this torch multiply int8 matrices fast, and rightly as far as can be tried.

    Instructions older than VNNI add pairs in 16 bits, and some versions of torch let them overflow.
    """
    if not (hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()):
        return False
    generator = torch.Generator().manual_seed(0)
    for rows, inner, outputs in ((1, 64, 8), (4, 576, 64), (7, 1728, 96), (64, 96, 192), (2048, 1152, 64)):
        a = torch.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, (rows, inner), generator=generator)
        b = torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (inner, outputs), generator=generator)
        for left, right in ((a, b), (a.sign() * ACTIVATION_MAX, torch.full_like(b, WEIGHT_MAX))):
            total = torch._int_mm(left.to(torch.int8), right.to(torch.int8))
            if not torch.equal(total.double(), left.double() @ right.double()):
                return False
    return True


def activate(accumulator: Tensor, steps: int) -> Tensor:
    """ReLU and requantisation: accumulator units -> activation units in [0, 127], rounding half up.

    ``steps`` (integer units of the accumulator to one unit of value) is a power of two, so the division is exact.
    """
    shifted = accumulator * (ACTIVATION_STEPS / steps)
    return floor_ste(shifted + 0.5).clamp(0, ACTIVATION_MAX)
