"""Quality steps: what each trades, which ones training draws, and vectors that change with them."""

import torch
from torch import Tensor, nn

from compressor.networks.blocks import floor_ste, round_ste

QUALITY_STEPS = 64
LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.8  # bits per pixel that one unit of squared error (0..255) is worth


def quality_to_lambda(quality: Tensor) -> Tensor:
    """Rate-distortion trade-off of quality steps 0..63, spaced evenly in the logarithm."""
    return LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** (quality / (QUALITY_STEPS - 1))


def draw_qualities(count: int, generator: torch.Generator) -> Tensor:
    """Random quality steps (B,): eight in ten from a triangle over 0 to 51, where archives are made."""
    draws = torch.rand(3, count, generator=generator, device=generator.device)
    share = torch.where(draws[2] < 0.8, 0.4 * (draws[0] + draws[1]), draws[0])
    return (share * QUALITY_STEPS).floor().clamp(max=QUALITY_STEPS - 1)


def evening(trade_off: Tensor) -> Tensor:
    """Weight of a loss: both its terms grow about as the square root of lambda, and top rates would drown low ones."""
    return (trade_off / 0.01) ** -0.4


class QualityCurve(nn.Module):
    """A vector per quality step, interpolated linearly between a few learned anchors.

    Parameters
    ----------
    channels
        Length of each vector.
    start, stop
        Values of the first and the last anchor before training, linear in between.
    """

    anchors = 9

    def __init__(self, channels: int, start: float = 0.0, stop: float = 0.0) -> None:
        super().__init__()
        # Where artifacts are checked, on the device "meta", linspace and repeat would import sympy: a second a process.
        ramp_Q = torch.tensor([start + (stop - start) * at / (self.anchors - 1) for at in range(self.anchors)])
        self.values = nn.Parameter(ramp_Q[:, None].expand(-1, channels).contiguous())

    def forward(self, quality_B: Tensor) -> Tensor:
        """Vectors (B, C, 1, 1) for quality steps (B,), which may be fractional."""
        position = quality_B.to(torch.float32) * ((self.anchors - 1) / (QUALITY_STEPS - 1))
        if self.training:
            return self._blended(self.values, position, 1)
        left = position.floor().clamp(0, self.anchors - 2).long()
        share = (position - left)[:, None]
        values = self.values[left] * (1 - share) + self.values[left + 1] * share
        return values[:, :, None, None]

    def scaled(self, x_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """``x_BCHW`` times the exponential of the curve.

        In use the result keeps the precision of ``x_BCHW``, and so do the blocks behind it, which halves what they
        read and write; in training it takes that of the curve, so that a trunk adds up in float32 under autocast.
        """
        factor = self(quality_B).exp()
        return x_BCHW * (factor if self.training else factor.to(x_BCHW.dtype))

    def integers(self, quality_B: Tensor, unit: int) -> Tensor:
        """Vectors (B, C, 1, 1) in whole parts of 1/``unit`` for eighths of quality steps: the same on every machine.

        Anchors are rounded first and mixed by integer weights (eight times the quality is one), so that float64 holds
        every number exactly.
        """
        span = QUALITY_STEPS - 1
        anchors = round_ste(self.values.double() * unit)
        scaled = quality_B.double() * (self.anchors - 1)
        return floor_ste((self._blended(anchors, scaled, span) + span // 2) / span)

    def _blended(self, anchors_QC: Tensor, position_B: Tensor, span: int) -> Tensor:
        """Anchors, ``span`` apart, mixed by how near they are, times ``span``: (B, C, 1, 1).

        Not by index, whose gradient a GPU sorts and adds up place by place.
        """
        knots_Q = torch.arange(self.anchors, device=position_B.device) * span
        share_BQ = (span - (position_B[:, None] - knots_Q).abs()).clamp(min=0)
        return (share_BQ[:, :, None] * anchors_QC).sum(dim=1)[:, :, None, None]
