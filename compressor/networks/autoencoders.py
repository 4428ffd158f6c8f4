"""V1 to V4: the experiments' autoencoders. ReLU inside, sigmoid at the end, mean squared error as the loss.

V1, V2 and V3 have two, three and five layers on each side; V4 is V3 with U-Net style skips (Ronneberger et al.,
2015). Whatever crosses from encoder to decoder is a latent: the skips too are narrowed, quantised and stored.
Shapes: B batch, C channels, H and W in pixels of the level at hand.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.codec import NETWORK_MULTIPLE


class Autoencoder(nn.Module):
    """Convolutions down, transposed convolutions up.

    Parameters
    ----------
    widths
        Output channels of each encoder layer; the last one is the latent.
    strides
        Stride of each layer, 1 or 2.
    skips
        Latent channels sent across at an encoder layer's output, by the layer's index.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], skips: Mapping[int, int] | None = None) -> None:
        super().__init__()
        skips = {int(layer): channels for layer, channels in (skips or {}).items()}
        self.strides = tuple(strides)
        self.multiple = math.prod(strides)
        if self.multiple > NETWORK_MULTIPLE:
            raise ValueError(f"strides of {self.multiple} together, at most {NETWORK_MULTIPLE} are read")
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride, padding=1) for i, o, stride in zip(inputs, widths, strides, strict=True)
        )
        self.narrow = nn.ModuleDict({str(at): nn.Conv2d(widths[at], n, 1) for at, n in sorted(skips.items())})
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(o + skips.get(layer, 0), i, 3, stride, padding=1, output_padding=stride - 1)
            for layer, (i, o, stride) in reversed(list(enumerate(zip(inputs, widths, strides, strict=True))))
        )

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Latents of pictures in [0, 1] whose sides are multiples of ``multiple``; deepest last, none negative."""
        crossing = []
        for layer, convolution in enumerate(self.down):
            x_BCHW = F.relu(convolution(x_BCHW))
            if str(layer) in self.narrow:
                crossing.append(F.relu(self.narrow[str(layer)](x_BCHW)))
        return [*crossing, x_BCHW]

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Pictures in [0, 1] from latents as :meth:`encode` gives them."""
        *crossing, x = latents
        last = len(self.up) - 1
        for index, convolution in enumerate(self.up):
            if str(last - index) in self.narrow:
                x = torch.cat((x, crossing.pop()), dim=1)
            x = convolution(x)
            x = torch.sigmoid(x.float()) if index == last else F.relu(x)
        return x

    def draw(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[()]:
        """Nothing in the loss is random."""
        return ()

    def training_loss(self, x_BCHW: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(self.decode(self.encode(x_BCHW)), x_BCHW)

    @torch.no_grad()
    def validation(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Sums over the batch of ``loss`` (squared error, range 0 to 1) and ``psnr`` (dB)."""
        mse_B = (self.decode(self.encode(x_BCHW)) - x_BCHW).square().mean(dim=(1, 2, 3))
        return {"loss": mse_B.sum(), "psnr": (-10 * torch.log10(mse_B)).sum()}


def v1() -> Autoencoder:
    """Two layers: weights 0.1 MB, latents of 48 x 32 x 32 for a 128x128 picture."""
    return Autoencoder((32, 48), (2, 2))


def v2() -> Autoencoder:
    """Three layers: weights 0.4 MB, latents of 28 x 16 x 16."""
    return Autoencoder((32, 88, 28), (2, 2, 2))


def v3() -> Autoencoder:
    """Five layers: weights 4 MB, latents of 48 x 8 x 8."""
    return Autoencoder((64, 128, 192, 96, 48), (2, 2, 2, 2, 1))


def v4() -> Autoencoder:
    """V3 with skips: 2 channels at 32 x 32 and 4 at 16 x 16 beside the latent."""
    return Autoencoder((64, 128, 192, 96, 48), (2, 2, 2, 2, 1), {1: 2, 2: 4})
