"""Freezing a trained hyperprior network: tables of what it codes, and a predictor of its PSNR, beside its weights."""

from collections.abc import Callable

import numpy as np
import torch

from compressor import predicting
from compressor.artifact import QUALITY_PARTS
from compressor.devices import has_fast_bf16
from compressor.entropy import frequencies
from compressor.hyperprior_codec import PARTS
from compressor.networks.hyperprior import (
    RESIDUAL_MAX,
    SCALE_LEVELS,
    SKIP_LEVEL,
    Hyperprior,
    level_to_scale,
    residual_probability,
)
from compressor.tensors import from_network, state_arrays, to_network

_PRIOR_WEIGHT = 300.0  # symbols' worth of trust in the trained density beside what calibration counted


@torch.inference_mode()
def freeze_hyperprior(network: Hyperprior, pictures_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of an artifact: weights in FP16, frequency tables, and the predictor of PSNR.

    Parameters
    ----------
    network
        Trained. Its weights are rounded to FP16 here, before anything is counted with them.
    pictures_NHWC
        uint8 pictures of the kind to be stored, several hundred, sides multiples of 32.
    """
    arrays = state_arrays(network, np.float16)
    network.load_state_dict({name: value.half().to(value.dtype) for name, value in network.state_dict().items()})
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(network.parameters()).device
    residual_counts = np.zeros((SCALE_LEVELS, 2 * RESIDUAL_MAX + 1))
    prior = network.hyper_prior
    hyper_density = prior.densities().cpu().numpy()
    hyper_counts = np.zeros_like(hyper_density)

    def count(z: torch.Tensor, r: torch.Tensor, level: torch.Tensor, quality_B: torch.Tensor) -> None:
        nonlocal residual_counts, hyper_counts
        coded = level >= SKIP_LEVEL
        at = level[coded].long() * (2 * RESIDUAL_MAX + 1) + r[coded].long() + RESIDUAL_MAX
        residual_counts += _counted(at, residual_counts.shape)
        table, offset = prior.all_tables(z, quality_B)
        at = table.long() * hyper_counts.shape[1] + (z - offset).long() + prior.symbol_max
        hyper_counts += _counted(at.flatten(), hyper_counts.shape)

    arrays |= predicting.arrays(fit_predictor(network, pictures_NHWC, count))
    value = torch.arange(-RESIDUAL_MAX, RESIDUAL_MAX + 1, dtype=torch.float64, device=device)
    scale = level_to_scale(torch.arange(SCALE_LEVELS, dtype=torch.float64, device=device))
    density = residual_probability(value, scale[:, None]).cpu().numpy()
    arrays["frequencies.residual"] = frequencies(residual_counts + _PRIOR_WEIGHT * density + 1e-6)
    arrays["frequencies.hyper"] = frequencies(hyper_counts + _PRIOR_WEIGHT * hyper_density + 1e-3)
    arrays[QUALITY_PARTS] = frequencies(np.ones((1, PARTS)))
    return arrays


@torch.inference_mode()
def fit_predictor(
    network: Hyperprior, pictures_NHWC: np.ndarray, on_coded: Callable[..., None] | None = None
) -> predicting.Predictor:
    """What tells the PSNR of a picture before it is encoded.

    Parameters
    ----------
    network
        As it will be used.
    pictures_NHWC
        As for :func:`freeze_hyperprior`.
    on_coded
        Told z, residuals, their levels and the quality steps of each batch that was coded.
    """
    device = next(network.parameters()).device
    low_precision = has_fast_bf16(device)
    features, log_mse = [], []
    for start in range(0, len(pictures_NHWC), 32):
        chunk = pictures_NHWC[start : start + 32]
        x_BCHW = to_network(chunk, device)
        first = network.first_features(x_BCHW, low_precision)
        seen = predicting.features(x_BCHW, first.trunk)
        features.append(predicting.some_cells(seen).half().cpu().numpy())
        at_centres = []
        for centre in predicting.CENTRES:
            quality_B = torch.full((len(chunk),), float(centre), device=device)
            z, r, level, y = network.quantize(first, quality_B, low_precision)
            decoded = from_network(network.reconstruct(y, quality_B, low_precision))
            at_centres.append(predicting.some_cells(predicting.log_mse(chunk, decoded)))
            if on_coded:
                on_coded(z, r, level, quality_B)
        log_mse.append(np.stack(at_centres, axis=1))
    return predicting.fitted(np.concatenate(features), np.concatenate(log_mse))


def _counted(flat: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return torch.bincount(flat, minlength=int(np.prod(shape))).cpu().numpy().reshape(shape)
