"""What PSNR to expect of a picture at each quality step, before anything is tried: a ridge regression on its detail."""

import numpy as np
import torch
import torch.nn.functional as F

from compressor.networks.hyperlatents import QUALITY_GROUP
from compressor.networks.qualities import QUALITY_STEPS

CENTRES = np.arange(QUALITY_GROUP // 2, QUALITY_STEPS, QUALITY_GROUP)  # steps that are predicted; others lie between
_RIDGE = 10.0  # of 1, 10 and 100 the best on pictures left out
_QUANTILES = torch.tensor([10, 25, 50, 75, 90, 100])  # percent


def feature_count(channels: int) -> int:
    """Length of what :func:`features` gives for a first block of ``channels``."""
    return 2 * channels + len(_QUANTILES) + 4


def features(x_BCHW: torch.Tensor, first_BCHW: torch.Tensor) -> np.ndarray:
    """What the predictor of PSNR looks at, float64 (B, features): how much detail there is and how it is spread.

    Logarithms of: strength and variation of each channel of the first block; horizontal and vertical differences and
    the Laplacian of the picture; quantiles of the Laplacian's energy over blocks. The last feature is 1.
    """
    first_BNC = first_BCHW.permute(0, 2, 3, 1).flatten(1, 2).float()
    centred_BNC = first_BNC - first_BNC.mean(dim=1, keepdim=True)
    grey_BHW = x_BCHW.mean(dim=1)
    centre_BHW = grey_BHW[:, 1:-1, 1:-1]
    across, down = grey_BHW[:, 1:-1, :-2] + grey_BHW[:, 1:-1, 2:], grey_BHW[:, :-2, 1:-1] + grey_BHW[:, 2:, 1:-1]
    energy_BHW = (4 * centre_BHW - across - down).square()
    blocks_BN = F.avg_pool2d(energy_BHW, 14).flatten(1)
    logarithms_of = (
        (centred_BNC.square().sum(dim=1) / (centred_BNC.shape[1] - 1)).sqrt(),
        first_BNC.diff(dim=1).abs_().mean(dim=1),
        grey_BHW.diff(dim=2).abs_().flatten(1).mean(dim=1, keepdim=True),
        grey_BHW.diff(dim=1).abs_().flatten(1).mean(dim=1, keepdim=True),
        energy_BHW.flatten(1).mean(dim=1, keepdim=True),
        blocks_BN.sort(dim=1).values[:, (blocks_BN.shape[1] - 1) * _QUANTILES // 100],
    )
    logarithms = torch.cat([feature.clamp_min(1e-6).log() for feature in logarithms_of], dim=1)
    return F.pad(logarithms, (0, 1), value=1.0).double().cpu().numpy()


def ridge(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients (features, targets) of a ridge regression over standardised features; the last one is constant."""
    mean, spread = design[:, :-1].mean(axis=0), design[:, :-1].std(axis=0) + 1e-6
    standard = (design[:, :-1] - mean) / spread
    centre = target.mean(axis=0)
    normal = standard.T @ standard + _RIDGE * np.eye(standard.shape[1])
    slope = np.linalg.solve(normal, standard.T @ (target - centre)) / spread[:, None]
    return np.concatenate((slope, (centre - mean @ slope)[None]))


def interpolated(at_centres: np.ndarray, quality_Q: np.ndarray) -> np.ndarray:
    """A curve over quality steps from its values at the centres, continued straight at both ends."""
    curve = np.interp(quality_Q, CENTRES, at_centres)
    low, high = quality_Q - CENTRES[0], quality_Q - CENTRES[-1]
    curve += np.minimum(low, 0) * (at_centres[1] - at_centres[0]) / QUALITY_GROUP
    curve += np.maximum(high, 0) * (at_centres[-1] - at_centres[-2]) / QUALITY_GROUP
    return curve
