"""What PSNR to expect of a picture at each quality step, before anything is tried.

A small network tells the squared error that every cell of 8x8 pixels will have, from what the codec's first block made
of it and from its detail, frequency by frequency. It only says where a search begins: no reader needs it.
"""

import math
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.artifact import Artifact
from compressor.networks.blocks import ResidualBlock, full_precision
from compressor.networks.hyperlatents import QUALITY_GROUP
from compressor.networks.qualities import QUALITY_STEPS
from compressor.tensors import load_state

CENTRES = np.arange(QUALITY_GROUP // 2, QUALITY_STEPS, QUALITY_GROUP)  # steps that are predicted; others lie between
CELL = 8  # pixels a side
_WIDTH, _BLOCKS = 64, 2
_EPOCHS, _BATCH, _RATE, _WARMUP, _DECAY = 12, 32, 5e-3, 20, 1e-3
_PREFIX = "predictor."
_CELLS_WEIGHT = 0.05  # of the squared error in a cell's logarithm, beside that in a picture's PSNR
_MOST_CELLS = 16  # a side, of each picture that is learned from
_LOOKED_AT = 512  # pictures that say how features are spread
_LEAST_ENERGY = 1e-3  # sources differ in their noise below it
_LEAST_MSE = 0.05  # of a cell, in squared 8-bit levels
_DECIBELS = 10 / math.log(10)
# What portraits have at CENTRES by the codec that ships, in dB
_USUAL = np.array([28.6, 30.6, 32.7, 34.9, 37.2, 39.6, 41.6, 42.9])

_down, _across = (axis.flatten() for axis in torch.meshgrid(torch.arange(CELL), torch.arange(CELL), indexing="ij"))


def _bands(*edges: int) -> list[Tensor]:
    """Which of the 64 coefficients have frequencies, of both axes together, from each edge to before the next."""
    both = _down + _across
    return [(both >= low) & (both < high) for low, high in pairwise(edges)]


# Which coefficients each sum of energy takes, (groups, 64): by frequency, and of grey by direction
_GREY = torch.stack(
    [
        *_bands(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15),
        (_down >= 2 * _across) & (_down > 0),
        (_across >= 2 * _down) & (_across > 0),
    ]
).float()
_COLOUR = torch.stack(_bands(1, 2, 4, 7, 15)).float()
_places = torch.arange(CELL, dtype=torch.float32)
_waves = torch.cos(math.pi / CELL * (_places + 0.5) * _places[:, None]) * math.sqrt(2 / CELL)
_waves[0] /= math.sqrt(2)
_DCT = torch.einsum("ai,bj->abij", _waves, _waves).reshape(-1, 1, CELL, CELL)  # orthonormal, as kernels
DETAILS = len(_GREY) + 2 * len(_COLOUR) + 3


Cells = TypeVar("Cells", Tensor, np.ndarray)


class Predictor(nn.Module):
    """Features (B, channels + DETAILS, h, w) of :func:`features` -> logarithms of mean squared errors (B, 8, h, w).

    These are natural, of squared 8-bit levels, at the steps ``CENTRES``. ``channels`` are the codec's first block's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels + DETAILS, _WIDTH, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(_WIDTH) for _ in range(_BLOCKS)))
        self.leave = nn.Conv2d(_WIDTH, len(CENTRES), 1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        return self.leave(self.blocks(F.leaky_relu(self.enter(features_BChw), 0.1)))


def features(x_BCHW: Tensor, first_BChw: Tensor) -> Tensor:
    """What the predictor looks at, float32 (B, channels + DETAILS, H/8, W/8).

    ``x_BCHW`` are pictures in [0, 1], sides multiples of 8, and ``first_BChw`` what the codec's first block made of
    them. Beside it stand, of the 8x8 DCT, logarithms of the energy by frequency, and mean, least and greatest grey.
    """
    grey_B1HW = x_BCHW.mean(dim=1, keepdim=True)
    planes_BPHW = torch.cat((grey_B1HW, x_BCHW[:, ::2] - x_BCHW[:, 1:2]), dim=1)  # and red, blue against green
    basis, grey_groups, colour_groups = (part.to(x_BCHW.device) for part in (_DCT, _GREY, _COLOUR))
    energy = F.conv2d(planes_BPHW.flatten(0, 1)[:, None], basis, stride=CELL).square().unflatten(0, (-1, 3))
    grey = torch.einsum("gk,bkhw->bghw", grey_groups, energy[:, 0])
    colour = torch.einsum("gk,bpkhw->bpghw", colour_groups, energy[:, 1:]).flatten(1, 2)
    details = torch.cat((grey, colour), dim=1).add(_LEAST_ENERGY).log()
    greys = (F.avg_pool2d(grey_B1HW, CELL), F.max_pool2d(grey_B1HW, CELL), -F.max_pool2d(-grey_B1HW, CELL))
    return torch.cat((first_BChw.float(), details, *greys), dim=1)


def expected(predictor: Predictor | None, x_BCHW: Tensor, first_BChw: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """PSNR in dB to expect at ``CENTRES``, float64 (B, 8), of pictures of (height, width, ...) that were padded.

    Without a predictor, which artifacts of before 2026-11-26 lack, it is the same for all.
    """
    if predictor is None:
        return np.tile(_USUAL, (len(x_BCHW), 1))
    height, width = (-(-side // CELL) for side in shape[:2])
    with full_precision():
        log_mse_BChw = predictor(features(x_BCHW, first_BChw)[..., :height, :width])
        return psnr_of(log_mse_BChw).double().cpu().numpy()


def psnr_of(log_mse_BChw: Tensor) -> Tensor:
    """PSNR in dB (B, 8) of pictures whose cells have these errors."""
    mean_B8 = log_mse_BChw.flatten(2).logsumexp(dim=2) - math.log(log_mse_BChw[0, 0].numel())
    return 20 * math.log10(255) - _DECIBELS * mean_B8


def log_mse(pictures_NHWC: np.ndarray, decoded_NHWC: np.ndarray) -> np.ndarray:
    """Natural logarithms of the mean squared error of each cell, float32 (N, H/8, W/8), of uint8 pictures."""
    count, height, width, channels = pictures_NHWC.shape
    squared = np.square(pictures_NHWC.astype(np.float32) - decoded_NHWC)
    cells = squared.reshape(count, height // CELL, CELL, width // CELL, CELL, channels)
    return np.log(cells.mean(axis=(2, 4, 5)) + _LEAST_MSE)


def some_cells(values_BChw: Cells) -> Cells:
    """The middle of a picture, 16x16 cells at most: what is learned from takes the same room whatever its size."""
    top, left = (max(0, side - _MOST_CELLS) // 2 for side in values_BChw.shape[-2:])
    return values_BChw[..., top : top + _MOST_CELLS, left : left + _MOST_CELLS]


def fitted(features_NChw: np.ndarray, log_mse_N8hw: np.ndarray) -> Predictor:
    """A predictor that has learned from pictures: :func:`features` and :func:`log_mse` of each."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = Predictor(features_NChw.shape[1] - DETAILS).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        some = torch.from_numpy(features_NChw[:_LOOKED_AT]).float()
        mean_C, spread_C = some.mean(dim=(0, 2, 3)), some.std(dim=(0, 2, 3)) + 1e-3
        predictor.leave.bias.data.copy_(torch.from_numpy(log_mse_N8hw.mean(axis=(0, 2, 3))))
        predictor.leave.weight.data.mul_(0.1)
        optimizer = torch.optim.AdamW(predictor.parameters(), _RATE, weight_decay=_DECAY)
        batches = torch.cat([torch.randperm(len(features_NChw)) for _ in range(_EPOCHS)]).split(_BATCH)
        for number, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = _RATE * min(1, (number + 1) / _WARMUP) * (1 - number / len(batches))
            seen, wanted = (torch.from_numpy(part[index.numpy()]).float() for part in (features_NChw, log_mse_N8hw))
            seen = (seen - mean_C[:, None, None]) / spread_C[:, None, None]
            found = predictor(seen.contiguous(memory_format=torch.channels_last))
            cells = (found - wanted).square().mean()
            loss = (psnr_of(found) - psnr_of(wanted)).square().mean() + _CELLS_WEIGHT * cells
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        enter = predictor.enter  # which takes features as they are from here on
        enter.weight.data.div_(spread_C[:, None, None])
        enter.bias.data.sub_(enter.weight.data[:, :, 0, 0] @ mean_C)
    return predictor.eval()


def arrays(predictor: Predictor) -> dict[str, np.ndarray]:
    """A predictor as arrays of an artifact, FP16."""
    return {_PREFIX + name: value.half().numpy() for name, value in predictor.state_dict().items()}


def load(artifact: Artifact, channels: int, device: torch.device) -> Predictor | None:
    """The predictor of an artifact; None where it has none that is read here. CodecError where it is damaged."""
    found = {name.removeprefix(_PREFIX): value for name, value in artifact.tensors.items() if name.startswith(_PREFIX)}
    return load_state(Predictor(channels), artifact, found).to(device) if found else None


def interpolated(at_centres: np.ndarray, quality_Q: np.ndarray) -> np.ndarray:
    """A curve over quality steps from its values at the centres, continued straight at both ends."""
    curve = np.interp(quality_Q, CENTRES, at_centres)
    low, high = quality_Q - CENTRES[0], quality_Q - CENTRES[-1]
    curve += np.minimum(low, 0) * (at_centres[1] - at_centres[0]) / QUALITY_GROUP
    curve += np.maximum(high, 0) * (at_centres[-1] - at_centres[-2]) / QUALITY_GROUP
    return curve
