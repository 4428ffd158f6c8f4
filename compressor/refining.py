"""Latents that cost less than those of the analysis network, by gradient descent on what is stored of a picture.

The analysis network answers in one pass for all pictures; for any one of them better latents exist, and a decoder
takes them as it takes all others (Campos et al. 2019; Yang et al., "Improving Inference for Neural Image
Compression", 2020). Rounding is softened to have a gradient, and hardens as the descent goes on.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.networks.hyperprior import RESIDUAL_MAX, SKIP_LEVEL, Hyperprior, level_to_scale, residual_probability
from compressor.networks.logistic import bits
from compressor.networks.qualities import quality_to_lambda

REFINED_PIXELS = 2**20  # of a picture; 6 MB of activations for every 2**14
_SOFT, _HARD = 1.0, 0.1  # temperature of rounding at first and at last
_MOMENTUM, _POWER = 0.9, 0.95
_PRESSURE = 3.0  # exponent by which missing the goal weighs more on the distortion, and exceeding it less


def expected_gain(rounds: int) -> float:
    """PSNR in dB to count on at one quality; of what was tried, what left the fewest bytes at a target."""
    return 0.4 * (1 - math.exp(-rounds / 6))


def refine(
    network: Hyperprior,
    x_BCHW: Tensor,
    y_BCHW: Tensor,
    z_BCHW: Tensor,
    quality_B: Tensor,
    rounds: int,
    low_precision: bool,
    goal_B: Tensor | None = None,
) -> Tensor:
    """Latents y to store instead of ``y_BCHW``, float32 of its shape.

    Parameters
    ----------
    network
        Frozen: none of its parameters requires a gradient.
    x_BCHW
        Pictures in [0, 1], not padded. Only these pixels count.
    y_BCHW, z_BCHW
        What :meth:`~compressor.networks.hyperprior.Hyperprior.unrounded` gave. z stays as it is.
    rounds
        Steps of descent, each about as long as three tries.
    low_precision
        Run the synthesis in bfloat16.
    goal_B
        Mean squared error (0..255 scale) that each picture may have at most: of all that was seen the cheapest
        within it, or the best where none is. None: the least rate plus distortion at the picture's quality.
    """
    gain = network.gain(quality_B).exp()
    trade_off_B = quality_to_lambda(quality_B)
    pixels = x_BCHW[0, 0].numel()
    stride = min(max(0.18 / max(1, rounds), 0.006), 0.025)  # quantisation steps that a latent moves in a round
    look_every = min(max(1, rounds // 5), 5)
    shift, velocity = torch.zeros_like(y_BCHW), torch.zeros_like(y_BCHW)
    power, weight_B = torch.zeros_like(y_BCHW[:, :1, :1, :1]), torch.ones_like(quality_B)
    best_y, best_B = y_BCHW, torch.full_like(quality_B, math.inf)

    def errors(latents: Tensor) -> Tensor:
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=low_precision):
            shown = network.synthesis(latents, quality_B)[:, :, : x_BCHW.shape[2], : x_BCHW.shape[3]]
        if not shown.requires_grad:
            shown = (shown * 255).round().clamp(0, 255) / 255
        return F.mse_loss(shown, x_BCHW, reduction="none").mean(dim=(1, 2, 3)) * 255**2

    def rates(residuals: Tensor, level: Tensor) -> Tensor:
        return (bits(residual_probability(residuals, level_to_scale(level))) * (level >= SKIP_LEVEL)).sum(dim=(1, 2, 3))

    for turn in range(rounds + 1):
        moved = y_BCHW + shift / gain
        with torch.no_grad():
            _, r, level, stored = network.rounded(moved, z_BCHW, quality_B)
            if turn % look_every == 0 or turn == rounds:
                error_B, rate_B = errors(stored), rates(r, level)
                if goal_B is None:
                    cost_B = trade_off_B * error_B + rate_B / pixels
                else:
                    # Whatever reaches the goal is better than all that does not.
                    cost_B = torch.where(error_B <= goal_B, rate_B, 1e9 * (1 + error_B))
                    weight_B = weight_B * (error_B / goal_B).clamp(0.9, 1.1) ** _PRESSURE
                better = cost_B < best_B
                best_B = torch.where(better, cost_B, best_B)
                best_y = torch.where(better[:, None, None, None], moved, best_y)
        if turn == rounds:
            break
        # What to expect of each latent is taken as given: its own gradient changes nothing that can be measured.
        mean = stored - r / gain
        moved.requires_grad_(True)
        residual = ((moved - mean) * gain).clamp(-RESIDUAL_MAX, RESIDUAL_MAX)
        soft = softly_rounded(residual, _SOFT * (_HARD / _SOFT) ** (turn / max(1, rounds - 1))) * (level >= SKIP_LEVEL)
        loss_B = weight_B * trade_off_B * errors(mean + soft / gain) + rates(soft, level) / pixels
        (gradient,) = torch.autograd.grad(loss_B.sum(), moved)
        # Adam's second moment, but one for all latents of a picture: one each would set those in motion that are zero
        # and should stay so.
        gradient = gradient / gain
        velocity = _MOMENTUM * velocity + (1 - _MOMENTUM) * gradient
        coded_B111 = (level >= SKIP_LEVEL).sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
        power = _POWER * power + (1 - _POWER) * gradient.square().sum(dim=(1, 2, 3), keepdim=True) / coded_B111
        direction = velocity / (1 - _MOMENTUM ** (turn + 1))
        size = (power / (1 - _POWER ** (turn + 1))).sqrt().clamp_min(1e-12)
        shift = shift - stride * (1 + math.cos(math.pi * turn / rounds)) / 2 * direction / size
    return best_y


def softly_rounded(value: Tensor, temperature: float) -> Tensor:
    """Differentiable, and :func:`torch.round` as ``temperature`` goes to 0."""
    floor = value.detach().floor()
    above = (value - floor).clamp(1e-5, 1 - 1e-5)
    return floor + torch.sigmoid((torch.atanh(above) - torch.atanh(1 - above)) / temperature)
