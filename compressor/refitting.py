"""What makes up for the rounding of weights: a layer that is not rounded, fitted to those that are.

INT8 took 0.02 dB at 35 dB and 0.1 at 41 from the network that ships. Its synthesis ends in a sum of which one part, the
shortcut, is a linear map of the latents: the best weights for it follow from the others without any training.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.artifact import Artifact, dump
from compressor.families import family
from compressor.hyperprior_codec import fit_predictor
from compressor.networks.hyperprior import Hyperprior
from compressor.networks.qualities import draw_qualities, quality_to_lambda
from compressor.weight_quantization import SCALE

SHORTCUT = "synthesis.shortcut.weight"  # 2 % of the weights, stored as float16
_DAMPING = 0.1  # of the mean of the diagonal, added to it: of 0.001 to 3 the best on portraits left out


def refitted(artifact: Artifact, pictures_NHWC: np.ndarray) -> bytes:
    """A codec with a shortcut that makes up for the rounding of its weights, and a predictor that knows of it.

    What is stored of a picture is decided before the shortcut, and so are its tables: they are those of ``artifact``.

    Parameters
    ----------
    artifact
        Of a hyperprior with a shortcut.
    pictures_NHWC
        uint8, sides that are multiples of 32: pictures of the training data to fit the shortcut to.

    Raises
    ------
    ValueError
        The network has no shortcut.
    """
    network = family(artifact.family).network(artifact)
    refit_shortcut(network, torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures_NHWC, -1, 1))))
    shortcut = network.state_dict()[SHORTCUT]
    shortcut.copy_(shortcut.half())  # as readers will have it
    tensors = {**artifact.tensors, f"network.{SHORTCUT}": shortcut.half().numpy()}
    tensors["predictor"] = fit_predictor(network, pictures_NHWC)
    tensors.pop(SCALE + SHORTCUT, None)
    card = {**artifact.metadata.get("card", {}), "refitted": {"of": artifact.id, "pictures": len(pictures_NHWC)}}
    return dump({**artifact.metadata, "card": card}, tensors)


@torch.no_grad()
def refit_shortcut(network: Hyperprior, pictures_NCHW: Tensor, batch: int = 32) -> None:
    """Give the linear shortcut of the synthesis the weights of least squared error, all else as it is.

    At random quality steps, each error weighed by what it costs there, so that all tell about as much.
    ``pictures_NCHW`` as in :func:`refitted`. ValueError where there is no shortcut.
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
