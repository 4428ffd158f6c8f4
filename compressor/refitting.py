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
_BATCH = 32  # pictures
_TESTED = 4  # the last of so many parts of the pictures
_DAMPING = 0.1  # of the mean of the diagonal, added to it: of 0.001 to 3 the best on portraits left out


@torch.no_grad()
def refit_shortcut(network: Hyperprior, pictures_NCHW: Tensor) -> bool:
    """Give the linear shortcut of the synthesis the weights of least squared error, all else as it is.

    At random quality steps, each error weighed by what it costs there, so that all tell about as much. What is fitted
    to the first three fourths must serve the last one too: a fit to few serves these alone, and lost others dBs. Of
    bursts and a film's frames every fourth picture would be served by any fit.

    Parameters
    ----------
    pictures_NCHW
        uint8, of the training data, with sides that are multiples of 32.

    Returns
    -------
    bool
        Whether the weights are new: where that last fourth would not gain, they are as they were.

    Raises
    ------
    ValueError
        There is no shortcut.
    """
    shortcut = network.synthesis.shortcut
    if shortcut is None:
        raise ValueError("the network has no shortcut")
    network.eval()
    generator = torch.Generator().manual_seed(0)
    fitted, tested = _Sums(), _Sums()
    is_tested_N = torch.arange(len(pictures_NCHW)) >= len(pictures_NCHW) - len(pictures_NCHW) // _TESTED
    for part_BCHW, tested_B in zip(pictures_NCHW.split(_BATCH), is_tested_N.split(_BATCH), strict=True):
        x_BCHW = part_BCHW.float() / 255
        quality_B = draw_qualities(len(x_BCHW), generator)
        weight_B = quality_to_lambda(quality_B).sqrt()[:, None, None, None]
        y_hat, _ = network.coded(x_BCHW, quality_B)
        error = F.pixel_unshuffle(F.pixel_unshuffle(x_BCHW - network.synthesis(y_hat, quality_B), 8), 2)
        y_hat, error = y_hat * weight_B, error * weight_B
        fitted.add(y_hat[~tested_B], error[~tested_B])
        tested.add(y_hat[tested_B], error[tested_B])
    if tested.gain(fitted.change()) <= 0:
        return False
    fitted.gram, fitted.moment = fitted.gram + tested.gram, fitted.moment + tested.moment  # all of them, now
    shortcut.weight += fitted.change().float()[:, :, None, None]
    return True


class _Sums:
    """What least squares takes of latents (M) and errors (O): sums over pictures and places."""

    def __init__(self) -> None:
        self.gram = self.moment = torch.zeros((), dtype=torch.float64)  # (M, M), (M, O)

    def add(self, y_BMHW: Tensor, error_BOHW: Tensor) -> None:
        y_MP, error_OP = _columns(y_BMHW), _columns(error_BOHW)
        self.gram = self.gram + (y_MP @ y_MP.mT).double()
        self.moment = self.moment + (y_MP @ error_OP.mT).double()

    def change(self) -> Tensor:
        """Weights (O, M) to add that take most of the error away."""
        damping = _DAMPING * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=self.gram.dtype)
        return torch.linalg.solve(self.gram + damping, self.moment).mT

    def gain(self, change_OM: Tensor) -> float:
        """Squared error that such weights take away."""
        return float(2 * (change_OM * self.moment.mT).sum() - (change_OM @ self.gram * change_OM).sum())


def _columns(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.movedim(1, 0).flatten(1)
