"""Latents that cost less than those of the analysis network, by gradient descent on what is stored of a picture.

The analysis network answers in one pass for all pictures; for any one of them better latents exist, and a decoder
takes them as it takes all others (Campos et al. 2019; Yang et al., "Improving Inference for Neural Image
Compression", 2020). Most of what is to be had is in which way a latent near the middle of two integers is rounded, so
that the gradient is taken through a rounding that is soft only there, and harder from round to round.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.networks.blocks import to_bytes
from compressor.networks.hyperprior import RESIDUAL_MAX, SKIP_LEVEL, Hyperprior, level_to_scale, residual_probability
from compressor.networks.logistic import bits
from compressor.networks.qualities import quality_to_lambda

REFINED_PIXELS = 2**20  # of a picture; 6 MB of activations for every 2**14
# Of the distortion over a latent in quantisation steps, in bits. Where a finer step costs as many bits as its error is
# worth, as in a codec that is well trained, 1/ln(2) a latent for each e-fold, rounding's variance of 1/12 is worth half
# of that.
_CURVATURE = 12 / math.log(2)
_LARGEST = 0.25  # quantisation steps that a latent moves in a round at most
_FAVOUR = 1.2  # what distortion weighs, of what it did in training: 0.2 % fewer bytes than with 1 at equal PSNR


def expected_gain(rounds: int, quality: np.ndarray) -> np.ndarray:
    """PSNR in dB that refinement adds at quality steps: of 48 portraits held out 0.1 dB more or less."""
    return 0.45 * rounds / (rounds + 0.6) * (0.25 + 0.025 * quality)


def refine(
    network: Hyperprior,
    x_BCHW: Tensor,
    y_BCHW: Tensor,
    z_BCHW: Tensor,
    quality_B: Tensor,
    rounds: int,
    low_precision: bool,
) -> Tensor:
    """Latents y to store instead of ``y_BCHW``, float32 of its shape: of nearly all pictures they cost less.

    Parameters
    ----------
    network
        Frozen: none of its parameters requires a gradient.
    x_BCHW
        Pictures in [0, 1], not padded. Only these pixels count.
    y_BCHW, z_BCHW
        What :meth:`~compressor.networks.hyperprior.Hyperprior.unrounded` gave. z stays as it is.
    rounds
        Steps of descent, each a little longer than a try.
    low_precision
        Run the synthesis in bfloat16.
    """
    gain = network.gain(quality_B).exp()
    pixels = x_BCHW[0, 0].numel()
    shift = torch.zeros_like(y_BCHW)
    for softness, stride in zip(*_schedule(rounds), strict=True):
        moved = y_BCHW + shift / gain
        with torch.no_grad():
            _, r, level, stored = network.rounded(moved, z_BCHW, quality_B)
            # What to expect of each latent is taken as given: with its own gradient a round finds less.
            mean = stored - r / gain
        residual = ((moved - mean) * gain).clamp(-RESIDUAL_MAX, RESIDUAL_MAX).requires_grad_(True)
        soft = softly_rounded(residual, softness) * (level >= SKIP_LEVEL)
        cost_B = _costs(network, x_BCHW, mean + soft / gain, soft, level, quality_B, low_precision, _FAVOUR)
        (gradient,) = torch.autograd.grad(cost_B.sum(), residual)
        shift -= (stride * pixels / _CURVATURE * gradient).clamp(-_LARGEST, _LARGEST)
    return y_BCHW + shift / gain


@torch.no_grad()
def cheaper(
    network: Hyperprior,
    x_BCHW: Tensor,
    rivals: tuple[Tensor, Tensor],
    z_BCHW: Tensor,
    quality_B: Tensor,
    low_precision: bool,
) -> Tensor:
    """Of two latents of each picture those of less rate plus distortion once they are rounded, else the first."""
    costs = []
    for y_BCHW in rivals:
        _, r, level, stored = network.rounded(y_BCHW, z_BCHW, quality_B)
        costs.append(_costs(network, x_BCHW, stored, r, level, quality_B, low_precision))
    return torch.where((costs[1] < costs[0])[:, None, None, None], rivals[1], rivals[0])


def _costs(
    network: Hyperprior,
    x_BCHW: Tensor,
    latents_BCHW: Tensor,
    residual_BCHW: Tensor,
    level_BCHW: Tensor,
    quality_B: Tensor,
    low_precision: bool,
    favour: float = 1.0,
) -> Tensor:
    """Rate plus distortion in bits a pixel, (B,); of pixels as bytes where no gradient is asked for."""
    with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=low_precision):
        shown = network.synthesis(latents_BCHW, quality_B)[:, :, : x_BCHW.shape[2], : x_BCHW.shape[3]]
    if not shown.requires_grad:
        shown = to_bytes(shown).float() / 255
    error_B = F.mse_loss(shown, x_BCHW, reduction="none").mean(dim=(1, 2, 3)) * 255**2
    bits_BCHW = bits(residual_probability(residual_BCHW, level_to_scale(level_BCHW))) * (level_BCHW >= SKIP_LEVEL)
    return favour * quality_to_lambda(quality_B) * error_B + bits_BCHW.sum(dim=(1, 2, 3)) / x_BCHW[0, 0].numel()


def _schedule(rounds: int) -> tuple[list[float], list[float]]:
    """Softness of rounding and share of a Newton step for each round: what left the fewest bytes of what was tried.

    Both fall evenly in the logarithm. A harder rounding has a larger gradient where it has one, and shorter steps.
    """
    hardest, smallest = 0.25 * rounds ** (-1 / 3), 0.35 * rounds**-0.8
    softest, largest = min(0.5, 0.25 * rounds**0.27), 0.35 * min(1.0, (3 / rounds) ** 0.4)
    done = [turn / max(1, rounds - 1) for turn in range(rounds)]
    softness = [softest * (hardest / softest) ** share for share in done]
    strides = [largest * (smallest / largest) ** share for share in done]
    return softness, [stride * soft for stride, soft in zip(strides, softness, strict=True)]


def softly_rounded(value: Tensor, temperature: float) -> Tensor:
    """Differentiable, and :func:`torch.round` as ``temperature`` goes to 0."""
    floor = value.detach().floor()
    above = (value - floor).clamp(1e-5, 1 - 1e-5)
    return floor + torch.sigmoid((torch.atanh(above) - torch.atanh(1 - above)) / temperature)
