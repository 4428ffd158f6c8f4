"""Losses to train an autoencoder with, for ablation. Wraps a network, so that ``fit`` needs no knowledge of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.autoencoders import Autoencoder
from compressor.networks.logistic import bits, unit_interval

OWN = "own"  # the network's own loss, without a wrapper; mean squared error for V1 to V4
RATE = "rate-mse"  # mean squared error and bits of noisy latents under a learned logistic for each channel
STRUCTURE = "mse-ms-ssim"  # mean squared error and 1 - MS-SSIM over three scales
LOSSES = (RATE, STRUCTURE)
RATE_WEIGHT = 0.002  # of bits a pixel
STRUCTURE_WEIGHT = 0.05  # of 1 - MS-SSIM: the two terms are then about equal
_LEVEL = 16.0  # latent levels to one unit, at which the rate is taken
_SCALES = (0.2856, 0.3001, 0.4143)  # Wang et al. (2003), scales 2, 3 and the rest: 128 pixels leave room for three
_WINDOW = 11


class WithLoss(nn.Module):
    """An autoencoder that is trained with another loss than its own; validated as it is."""

    def __init__(self, network: Autoencoder, loss: str) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"there is no loss {loss!r}: choose one of {', '.join(LOSSES)}")
        self.network = network
        self.loss = loss
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # of latents, by that of a picture
        layers: list[Any] = [*network.narrow.values(), network.down[-1]]
        widths = [layer.out_channels for layer in layers]
        self.location = nn.ParameterList(nn.Parameter(torch.zeros(width, 1, 1)) for width in widths)
        self.log_width = nn.ParameterList(nn.Parameter(torch.ones(width, 1, 1)) for width in widths)

    @torch.no_grad()
    def draw(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise for each latent, where rate is part of the loss."""
        if self.loss == STRUCTURE:
            return ()
        size = tuple(x_BCHW.shape[1:])
        if size not in self._shapes:
            self._shapes[size] = [tuple(latent.shape[1:]) for latent in self.network.encode(x_BCHW[:1])]
        shapes = self._shapes[size]
        return tuple(
            torch.rand(len(x_BCHW), *shape, generator=generator, device=x_BCHW.device) - 0.5 for shape in shapes
        )

    def training_loss(self, x_BCHW: Tensor, *noise: Tensor) -> Tensor:
        """Scalar loss of pictures in [0, 1], with what :meth:`draw` gave."""
        latents = self.network.encode(x_BCHW)
        if self.loss == STRUCTURE:
            decoded = self.network.decode(latents)
            return F.mse_loss(decoded, x_BCHW) + STRUCTURE_WEIGHT * (1 - ms_ssim(decoded, x_BCHW))
        noisy, spent = [], x_BCHW.new_zeros(())
        for latent, added, location, log_width in zip(latents, noise, self.location, self.log_width, strict=True):
            level = latent.float() * _LEVEL + added
            spent = spent + bits(unit_interval(level - location, log_width.exp())).sum()
            noisy.append(level / _LEVEL)
        rate = spent / x_BCHW[:, 0].numel()
        return F.mse_loss(self.network.decode(noisy), x_BCHW) + RATE_WEIGHT * rate

    def validation(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The network's own: losses are compared by what they do to the same measure."""
        return self.network.validation(x_BCHW)


def ms_ssim(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Differentiable MS-SSIM of pictures in [0, 1] over three scales, or what fits; mean over batch and channels."""
    # Variances are differences of nearly equal numbers: in bfloat16 nothing but noise would be left of them.
    with torch.autocast(a_BCHW.device.type, enabled=False):
        return _ms_ssim(a_BCHW.float(), b_BCHW.float())


def _ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float32, device=a.device) - _WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = kernel / kernel.sum()

    def blur(x: Tensor) -> Tensor:
        x = x.flatten(0, 1)[:, None]
        x = F.conv2d(x, kernel.view(1, 1, -1, 1))
        return F.conv2d(x, kernel.view(1, 1, 1, -1)).view(*a.shape[:2], *x.shape[-2:-1], -1)

    product: Tensor | float = 1.0
    scales = [weight for scale, weight in enumerate(_SCALES) if min(a.shape[-2:]) >> scale >= _WINDOW]
    for scale, weight in enumerate(scales):
        mean_a, mean_b = blur(a), blur(b)
        covariance = blur(a * b) - mean_a * mean_b
        variances = blur(a * a) + blur(b * b) - mean_a**2 - mean_b**2
        contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
        if scale == len(scales) - 1:
            contrast = contrast * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        product = product * contrast.mean(dim=(2, 3)).clamp_min(1e-4) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return torch.as_tensor(product).mean()
