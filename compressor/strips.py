"""Pictures side by side: every codec at a reference codec's bytes, and every codec at its quality.

Qualities are searched per picture by encoding; nothing is drawn or written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compressor.baselines import STANDARD, payload_size
from compressor.codec import Codec, Encoded
from compressor.metrics import psnr

SIDE = 256  # pixels: larger pictures are cut to their centre before anything is encoded
SHOWN = 96  # pixels of the centre that a cell shows, so that twice enlarged six cells fit a page
_TOLERANCE = 0.05  # dB under the reference that still counts as equal


@dataclass(frozen=True)
class Cell:
    """One decoded picture, cut to its centre. ``pixels`` uint8 (H, W, 3)."""

    codec: str
    caption: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Strip:
    """One picture: its source, the reference codec, then the others."""

    key: str
    cells: list[Cell]


@dataclass(frozen=True)
class _Target:
    """What the others are to match: a picture, and the reference's encoding of it, decoded."""

    picture: np.ndarray
    payload: int
    decoded: np.ndarray
    psnr: float


def side_by_side(
    pictures: Mapping[str, np.ndarray], codecs: Mapping[str, Codec], reference: str, quality: int
) -> tuple[list[Strip], list[Strip]]:
    """A strip for each picture at equal bytes, and one at equal quality; the reference is encoded at ``quality``.

    At equal bytes each codec has the highest quality whose payload is no larger than the reference's; at equal quality
    the lowest whose PSNR reaches the reference's.
    """
    cut = [centre(pixels, SIDE) for pixels in pictures.values()]
    encoded = codecs[reference].encode(cut, quality)
    decoded = codecs[reference].decode(encoded)
    targets = [
        _Target(picture, _stored_bytes(codecs[reference], one), back, psnr(picture, back))
        for picture, one, back in zip(cut, encoded, decoded, strict=True)
    ]
    return (
        [_strip(key, one, codecs, reference, highest=True) for key, one in zip(pictures, targets, strict=True)],
        [_strip(key, one, codecs, reference, highest=False) for key, one in zip(pictures, targets, strict=True)],
    )


def centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, at most ``side`` pixels high and wide."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _strip(key: str, target: _Target, codecs: Mapping[str, Codec], reference: str, highest: bool) -> Strip:
    picture = target.picture
    cells = [
        Cell("source", f"{picture.size:,} B of pixels", centre(picture, SHOWN)),
        _cell(reference, target.payload, target.psnr, target.decoded),
    ]
    for name, codec in codecs.items():
        if name != reference:
            encoded = _search(codec, target, highest)
            decoded = codec.decode([encoded])[0]
            cells.append(_cell(name, _stored_bytes(codec, encoded), psnr(picture, decoded), decoded))
    return Strip(key, cells)


def _cell(name: str, payload: int, decibel: float, decoded: np.ndarray) -> Cell:
    return Cell(name, f"{payload:,} B · {decibel:.1f} dB", centre(decoded, SHOWN))


def _search(codec: Codec, target: _Target, highest: bool) -> Encoded:
    """The highest quality within the target's bytes, or the lowest with its PSNR; the nearest where there is none."""
    if not len(codec.qualities):
        return codec.encode([target.picture], -1)[0]
    low, high = codec.qualities.start, codec.qualities.stop - 1
    best = codec.encode([target.picture], low if highest else high)[0]
    while low <= high:
        middle = (low + high) // 2
        encoded = codec.encode([target.picture], middle)[0]
        if highest:
            holds = _stored_bytes(codec, encoded) <= target.payload
        else:
            holds = psnr(target.picture, codec.decode([encoded])[0]) >= target.psnr - _TOLERANCE
        if holds:
            best = encoded
        if holds == highest:
            low = middle + 1
        else:
            high = middle - 1
    return best


def _stored_bytes(codec: Codec, encoded: Encoded) -> int:
    """Without what every file of a standard format repeats."""
    return payload_size(encoded.payload) if codec.id in STANDARD else len(encoded.payload)
