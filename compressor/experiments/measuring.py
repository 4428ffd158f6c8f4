"""Bytes and quality of any codec on pictures it has not seen, packer by packer, and JPEG or AVIF beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from compressor.baselines import STANDARD
from compressor.codec import Codec, spread_qualities
from compressor.metrics import RateCurve, psnr, ssim

STANDARD_QUALITIES = {
    "jpeg": (1, 3, 5, 8, 12, 17, 23, 30, 40, 50, 62, 75, 85, 92, 97, 100),
    "avif": (5, 15, 30, 45, 60, 75, 90),
}
"""Spread so that whatever a network reaches lies between two of them, or beyond what the format can do."""
LEARNED_QUALITIES = 9
_BATCH = 32
EXACT = 99.0  # dB in place of infinity, which JSON does not have; no mean is taken of it


@dataclass(frozen=True)
class Row:
    """One quality and packer of a codec: bytes and PSNR (dB) of every picture, means of the rest.

    The PSNR of a picture stored exactly is ``EXACT``: see :func:`compressor.experiments.results.without_exact`.
    ``mse`` is of pixels in 0 to 1; ``png_bytes`` is the decoded picture's size as a PNG file. JSON both ways.
    """

    quality: int
    packer: str
    bytes: list[int]
    psnr: list[float]
    ssim: float
    mse: float
    png_bytes: float

    @property
    def mean_bytes(self) -> float:
        """Bytes a picture."""
        return float(np.mean(self.bytes))

    @property
    def mean_psnr(self) -> float:
        """dB, mean over pictures."""
        return float(np.mean(self.psnr))


def measure(
    codec: Codec,
    pictures: Sequence[np.ndarray],
    qualities: Sequence[int] | None = None,
    packers: Sequence[str] | None = None,
) -> list[Row]:
    """``packers`` of ``codec`` at every quality, on uint8 (H, W, 3) pictures.

    By default all packers, but of a codec with several qualities only at the middle one: at others the first.
    Packers that store the same symbols are decoded once: their names agree before the dash, or have none.
    """
    rows = []
    qualities = qualities or STANDARD_QUALITIES.get(codec.id) or spread_qualities(codec, LEARNED_QUALITIES)
    for quality in qualities:
        decoded_by: dict[str, tuple[list[float], float, float, float]] = {}
        chosen = codec.packers or ("",)
        for packer in packers or (chosen if quality == qualities[len(qualities) // 2] else chosen[:1]):
            kind = packer.split("-")[0] if "-" in packer else ""
            sizes: list[int] = []
            decoded: list[np.ndarray] = []
            for start in range(0, len(pictures), _BATCH):
                encoded = codec.encode(pictures[start : start + _BATCH], quality, packer or "auto")
                sizes += [len(one.payload) for one in encoded]
                if kind not in decoded_by:
                    decoded += codec.decode(encoded)
            if kind not in decoded_by:
                decoded_by[kind] = _compared(pictures, decoded)
            rows.append(Row(quality, packer, sizes, *decoded_by[kind]))
    return rows


def _compared(pictures: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> tuple[list[float], float, float, float]:
    pairs = list(zip(pictures, decoded, strict=True))
    return (
        [min(EXACT, psnr(a, b)) for a, b in pairs],
        float(np.mean([ssim(a, b) for a, b in pairs])),
        float(np.mean([np.square(a / np.float32(255) - b / np.float32(255)).mean() for a, b in pairs])),
        float(np.mean([len(cv2.imencode(".png", b)[1]) for _, b in pairs])),
    )


def rows_at_middle(rows: Sequence[Row]) -> list[Row]:
    """The rows of the middle one of a codec's qualities: all of them where it has one."""
    qualities = sorted({row.quality for row in rows})
    return [row for row in rows if row.quality == qualities[len(qualities) // 2]]


def measure_standards(pictures: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, list[Row]]:
    """Standard formats over their qualities."""
    return {name: measure(STANDARD[name], pictures) for name in names}


def rate_curve(rows: Sequence[Row]) -> RateCurve:
    """Bytes a picture and mean PSNR of a codec's rows over its qualities."""
    return RateCurve([row.mean_bytes for row in rows], [row.mean_psnr for row in rows])


def rows_of(values: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows from their JSON."""
    return [Row(**value) for value in values]
