"""Pictures side by side: every codec at a reference codec's bytes, and every codec at its quality.

Qualities are searched per picture by encoding; nothing is drawn or written here.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compressor.baselines import STANDARD
from compressor.codec import Codec, Encoded
from compressor.containers import payload_size
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
        _Target(picture, stored_bytes(codecs[reference], one), back, psnr(picture, back))
        for picture, one, back in zip(cut, encoded, decoded, strict=True)
    ]
    return (
        [
            _strip(key, one, codecs, reference, lambda codec, to: _within_bytes(codec, to.picture, to.payload))
            for key, one in zip(pictures, targets, strict=True)
        ],
        [
            _strip(key, one, codecs, reference, lambda codec, to: _reaching(codec, to.picture, to.psnr))
            for key, one in zip(pictures, targets, strict=True)
        ],
    )


def centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, at most ``side`` pixels high and wide."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _strip(
    key: str,
    target: _Target,
    codecs: Mapping[str, Codec],
    reference: str,
    encode: Callable[[Codec, _Target], tuple[Encoded, str]],
) -> Strip:
    picture = target.picture
    cells = [
        Cell("source", f"{picture.size:,} B · uncompressed", centre(picture, SHOWN)),
        _cell(reference, target.payload, target.psnr, target.decoded),
    ]
    for name, codec in codecs.items():
        if name != reference:
            encoded, end = encode(codec, target)
            decoded = codec.decode([encoded])[0]
            cells.append(_cell(name, stored_bytes(codec, encoded), psnr(picture, decoded), decoded, end))
    return Strip(key, cells)


def _cell(name: str, payload: int, decibel: float, decoded: np.ndarray, end: str = "") -> Cell:
    told = f" · its {end}" if end else ""
    return Cell(name, f"{payload:,} B · {decibel:.1f} dB{told}", centre(decoded, SHOWN))


def _within_bytes(codec: Codec, picture: np.ndarray, most: int) -> tuple[Encoded, str]:
    """A picture at the highest quality that takes ``most`` bytes, or else at the lowest, which is told."""
    if not codec.qualities:
        return _encode(codec, picture, -1), ""
    above = bisect_right(codec.qualities, most, key=lambda q: stored_bytes(codec, _encode(codec, picture, q)))
    return _encode(codec, picture, codec.qualities[max(0, above - 1)]), "" if above else "lowest"


def _reaching(codec: Codec, picture: np.ndarray, level: float) -> tuple[Encoded, str]:
    """A picture at the lowest quality that reaches ``level`` dB, or else at the highest, which is told."""
    if not codec.qualities:
        return _encode(codec, picture, -1), ""
    at = bisect_left(codec.qualities, level - _TOLERANCE, key=lambda q: _psnr_at(codec, picture, q))
    found = at < len(codec.qualities)
    return _encode(codec, picture, codec.qualities[at if found else -1]), "" if found else "highest"


def _encode(codec: Codec, picture: np.ndarray, quality: int) -> Encoded:
    return codec.encode([picture], quality)[0]


def _psnr_at(codec: Codec, picture: np.ndarray, quality: int) -> float:
    return psnr(picture, codec.decode([_encode(codec, picture, quality)])[0])


def stored_bytes(codec: Codec, encoded: Encoded) -> int:
    """Bytes of a picture as a codec stored it, without what every file of a standard format repeats."""
    return payload_size(encoded.payload) if codec.id in STANDARD else len(encoded.payload)
