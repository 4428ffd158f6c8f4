"""How few bytes there could be: entropy of stored integers, by itself and given neighbours; rate against distortion.

Entropies are cross-entropies between two halves of the pictures, tables learned on one and charged on the other: too
few samples are not mistaken for structure. They are what these contexts give; others might give less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.autoencoder_codec import AutoencoderCodec
from compressor.codec import Codec
from compressor.metrics import psnr

CONTEXTS = ("none", "left", "top", "channel")
FACTORS = (1, 2, 4, 8, 16, 32, 64)  # of the INT8 step: from finer than anybody needs to three levels
_BINS = 8  # that a neighbour is told apart in, by quantiles
_PRIOR = 0.1  # count given to a symbol never seen
_TRUST = 20.0  # symbols' worth of trust in the table without context beside one with it


@dataclass(frozen=True)
class Point:
    """INT8 latents at ``factor`` times their step: ideal bytes a picture, distortion. JSON both ways."""

    factor: float
    ideal_bytes: float
    mse: float
    psnr: float


@dataclass(frozen=True)
class Information:
    """A codec's integers on the pictures measured: bytes a picture by context, their number, and the coarser ones."""

    quality: int
    symbols: int
    entropy: dict[str, float]
    curve: list[Point]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Information":
        return cls(**{**values, "curve": [Point(**point) for point in values["curve"]]})


def inform(codec: Codec, pictures: Sequence[np.ndarray], quality: int = -1) -> Information | None:
    """Entropies of what ``codec`` stores of uint8 (H, W, 3) pictures of one size.

    None for a standard format, and for a single picture, from which nothing about others can be learned.
    """
    symbols = getattr(codec, "symbols", None)
    if symbols is None or len(pictures) < 2:
        return None
    packer = "int8-none" if isinstance(codec, AutoencoderCodec) else "auto"
    levels = [part.astype(np.int32) for part in symbols(codec.encode(pictures, quality, packer))]
    entropy = {context: sum(code_length(part, context) for part in levels) for context in CONTEXTS}
    curve = _curve(codec, pictures) if isinstance(codec, AutoencoderCodec) else []
    return Information(quality, sum(part[0].size for part in levels), entropy, curve)


def _curve(codec: AutoencoderCodec, pictures: Sequence[np.ndarray]) -> list[Point]:
    """Points of the pictures that no step stores exactly: of the others there is no PSNR to take a mean of."""
    coarse = {factor: _coarsened(codec, pictures, factor) for factor in FACTORS}
    lossy = [all(map(np.isfinite, each)) for each in zip(*(levels for _, levels in coarse.values()), strict=True)]
    if all(lossy):
        return [point for point, _ in coarse.values()]
    kept = [picture for picture, loses in zip(pictures, lossy, strict=True) if loses]
    return _curve(codec, kept) if len(kept) > 1 else []


def _coarsened(codec: AutoencoderCodec, pictures: Sequence[np.ndarray], factor: float) -> tuple[Point, list[float]]:
    """The point, and the PSNR of each picture."""
    coarse = codec.coarser(factor)
    encoded = coarse.encode(pictures, -1, "int8-none")
    levels = [part.astype(np.int32) for part in coarse.symbols(encoded)]
    pairs = list(zip(pictures, coarse.decode(encoded), strict=True))
    error = float(np.mean([np.square(a / np.float32(255) - b / np.float32(255)).mean() for a, b in pairs]))
    each = [psnr(a, b) for a, b in pairs]
    return Point(factor, sum(map(code_length, levels)), error, float(np.mean(each))), each


def code_length(levels_NCHW: np.ndarray, context: str = "none") -> float:
    """Bytes a picture that an ideal coder takes with a table for each channel, and each context of a symbol.

    Parameters
    ----------
    levels_NCHW
        Integers of two pictures or more.
    context
        ``none``; ``left`` or ``top``: the neighbour, in eight bins; ``channel``: the same place one channel before.
    """
    values = levels_NCHW - levels_NCHW.min()
    count, channels = values.shape[:2]
    alphabet = int(values.max()) + 1
    table = np.broadcast_to(np.arange(channels)[None, :, None, None], values.shape)
    neighbour = _binned(_neighbour(values, context))
    halves = np.arange(count) % 2
    bits = 0.0
    for half in (0, 1):
        learned, charged = halves != half, halves == half
        plain = _counts(table[learned], values[learned], channels, alphabet) + _PRIOR
        plain /= plain.sum(axis=1, keepdims=True)
        probability = plain[table[charged], values[charged]]
        if context != "none":
            places = channels * (_BINS + 1)
            joint = table * (_BINS + 1) + neighbour
            seen = _counts(joint[learned], values[learned], places, alphabet)
            here, symbol = joint[charged], values[charged]
            total = seen.sum(axis=1)
            probability = (seen[here, symbol] + _TRUST * probability) / (total[here] + _TRUST)
        bits -= np.log2(probability).sum()
    return float(bits / 8 / count)


def _counts(table: np.ndarray, values: np.ndarray, tables: int, alphabet: int) -> np.ndarray:
    flat = np.bincount((table * alphabet + values).ravel(), minlength=tables * alphabet)
    return flat.reshape(tables, alphabet).astype(np.float64)


def _neighbour(values_NCHW: np.ndarray, context: str) -> np.ndarray:
    """What stands at the place that ``context`` names; -1 outside."""
    beside = np.full_like(values_NCHW, -1)
    if context == "left":
        beside[..., 1:] = values_NCHW[..., :-1]
    elif context == "top":
        beside[..., 1:, :] = values_NCHW[..., :-1, :]
    elif context == "channel":
        beside[:, 1:] = values_NCHW[:, :-1]
    return beside


def _binned(neighbour_NCHW: np.ndarray) -> np.ndarray:
    """Bin 0 for what is outside, 1 to 8 by each channel's quantiles."""
    binned = np.zeros(neighbour_NCHW.shape, np.int64)
    for channel in range(neighbour_NCHW.shape[1]):
        plane = neighbour_NCHW[:, channel]
        inside = plane[plane >= 0]
        if inside.size:
            edges = np.quantile(inside, np.arange(1, _BINS) / _BINS)
            binned[:, channel] = np.where(plane >= 0, 1 + np.searchsorted(edges, plane), 0)
    return binned
