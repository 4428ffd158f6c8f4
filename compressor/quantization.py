"""Latents as FP32, FP16 or INT8 with a scale for each channel chosen on training data. Not packing: see packers."""

from typing import Any

import numpy as np

from compressor.errors import CodecError

LATENT_TYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("u1")}
LEVELS = 255  # latents come out of a ReLU, so that INT8 is unsigned and 0 stands for exactly 0


def calibrate(latents_NC: np.ndarray) -> np.ndarray:
    """INT8 step of each channel: of a few clipping points the one with the least squared error.

    Parameters
    ----------
    latents_NC
        float (samples, channels), not negative.

    Returns
    -------
    float32 (channels,), above 0.
    """
    peak_C = latents_NC.max(axis=0)
    best_C = np.where(peak_C > 0, peak_C, 1.0).astype(np.float32) / LEVELS
    least_C = np.full(len(peak_C), np.inf)
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        step_C = (np.where(peak_C > 0, peak_C, 1.0) * share / LEVELS).astype(np.float32)
        error_C = np.square(latents_NC - np.clip(np.rint(latents_NC / step_C), 0, LEVELS) * step_C).mean(axis=0)
        best_C = np.where(error_C < least_C, step_C, best_C)
        least_C = np.minimum(error_C, least_C)
    return best_C


def quantize(latents_CHW: np.ndarray, kind: str, step_C: np.ndarray) -> np.ndarray:
    """Latents as ``kind`` (one of :data:`LATENT_TYPES`), channel after channel."""
    if kind not in LATENT_TYPES:
        raise CodecError(f"unknown latent type {kind!r}: choose one of {', '.join(LATENT_TYPES)}")
    if kind == "int8":
        latents_CHW = np.clip(np.rint(latents_CHW / step_C[:, None, None]), 0, LEVELS)
    return np.ascontiguousarray(latents_CHW, LATENT_TYPES[kind])


def dequantize(stored_CHW: np.ndarray, kind: str, step_C: np.ndarray) -> np.ndarray:
    """float32 latents of what :func:`quantize` gave."""
    latents = stored_CHW.astype(np.float32)
    return latents * step_C[:, None, None] if kind == "int8" else latents
