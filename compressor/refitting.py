"""What makes up for the rounding of weights: a layer that is not rounded, fitted to those that are.

INT8 took 0.02 dB at 35 dB and 0.1 at 41 from the network that ships. Its synthesis ends in a sum of which one part, the
shortcut, is a linear map of the latents: the best weights for it follow from the others without any training. What is
stored of a picture is decided before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.networks.hyperprior import Hyperprior
from compressor.networks.qualities import draw_qualities, quality_to_lambda

SHORTCUT = "synthesis.shortcut"  # the layer, with 2 % of the weights
_DAMPING = 0.1  # of the mean of the diagonal, added to it: of 0.001 to 3 the best on portraits left out


@torch.no_grad()
def refit_shortcut(network: Hyperprior, pictures_NCHW: Tensor, batch: int = 32) -> None:
    """Give the linear shortcut of the synthesis the weights of least squared error, all else as it is.

    At random quality steps, each error weighed by what it costs there, so that all tell about as much.
    ``pictures_NCHW`` are uint8, of the training data, with sides that are multiples of 32. ValueError where there is no
    shortcut.
    """
    shortcut = network.synthesis.shortcut
    if shortcut is None:
        raise ValueError("the network has no shortcut")
    network.eval()
    generator = torch.Generator().manual_seed(0)
    gram = moment = torch.zeros((), dtype=torch.float64)
    for part_BCHW in pictures_NCHW.split(batch):
        x_BCHW = part_BCHW.float() / 255
        quality_B = draw_qualities(len(x_BCHW), generator)
        weight_B = quality_to_lambda(quality_B).sqrt()[:, None, None, None]
        y_hat, _ = network.coded(x_BCHW, quality_B)
        error = F.pixel_unshuffle(F.pixel_unshuffle(x_BCHW - network.synthesis(y_hat, quality_B), 8), 2)
        y_MP, error_OP = _columns(y_hat * weight_B), _columns(error * weight_B)
        gram = gram + (y_MP @ y_MP.mT).double()
        moment = moment + (y_MP @ error_OP.mT).double()
    damping = _DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    shortcut.weight += torch.linalg.solve(gram + damping, moment).float().mT[:, :, None, None]


def _columns(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.movedim(1, 0).flatten(1)
