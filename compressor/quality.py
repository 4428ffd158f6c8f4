"""The quality promise: the cheapest encoding whose decoded picture measures at least the target, or a fallback.

Every try is decoded by the code that a reader uses and measured against the pixels that came in.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from compressor.codec import Codec, Encoded
from compressor.errors import CodecError
from compressor.metrics import psnr

TOLERANCE = 0.4  # dB above the target at which a try is good enough
AIM = 0.1  # dB above the target that a try aims at: with the tolerance, the best of what was tried for bytes and time
_GUESSES = 4  # tries that follow the prediction or the line between two tries; then the interval is halved
_STEP = 0.2  # dB a quality step is taken for where a codec cannot predict better


@dataclass(frozen=True)
class Stored:
    """One picture's encoding and what measuring it gave. ``psnr`` in dB, infinite where nothing is lost."""

    encoded: Encoded
    pixels: np.ndarray
    psnr: float


@dataclass
class _Search:
    """Where the search for one picture stands: steps known to fail and known to do, and how far off the curve is."""

    curve: np.ndarray
    first: int
    below: int
    above: int
    tries: int = 0
    offset: float = 0.0
    psnr_below: float | None = None
    best: Stored | None = None

    def next_quality(self, target: float) -> int:
        """The lowest step expected to reach ``target``, strictly between what is known."""
        if self.tries >= _GUESSES:
            return (self.below + self.above) // 2
        if self.best is not None and self.psnr_below is not None:
            slope = (self.best.psnr - self.psnr_below) / (self.above - self.below)
            wanted = self.below + math.ceil((target + AIM - self.psnr_below) / max(slope, 1e-3))
        else:
            expected = np.flatnonzero(self.curve + self.offset >= target + AIM)
            wanted = self.first + (int(expected[0]) if len(expected) else len(self.curve) - 1)
        return min(max(wanted, self.below + 1), self.above - 1)

    def learn(self, stored: Stored, target: float) -> bool:
        """Take a try into account; True when the search is over."""
        quality = stored.encoded.quality
        self.tries += 1
        self.offset = stored.psnr - float(self.curve[quality - self.first])
        if stored.psnr >= target:
            self.above, self.best = quality, stored
        else:
            self.below, self.psnr_below = quality, stored.psnr
        done = self.best is not None and self.best.psnr - target <= TOLERANCE
        return done or self.below + 1 >= self.above


def encode_measured(codec: Codec, pixels: Sequence[np.ndarray], quality: int, packer: str = "auto") -> list[Stored]:
    """Encode at a fixed quality (any number for a codec that has one), decode and measure."""
    encoded = codec.encode(pixels, quality, packer)
    decoded = codec.decode(encoded)
    return [Stored(e, d, psnr(p, d)) for e, d, p in zip(encoded, decoded, pixels, strict=True)]


def encode_to_target(
    codec: Codec,
    pixels: Sequence[np.ndarray],
    target: float,
    packer: str = "auto",
    on_tries: Callable[[int], None] | None = None,
) -> list[Stored | None]:
    """For each picture the lowest quality found that reaches ``target`` dB, or None where none does.

    A codec may predict (``psnr_curves``), so that most pictures need one try or two; otherwise the search starts
    in the middle and halves. ``on_tries`` is told how many encodings each round took.
    """
    if not len(codec.qualities):
        stored = encode_measured(codec, pixels, -1, packer)
        return [one if one.psnr >= target else None for one in stored]
    first, stop = codec.qualities.start, codec.qualities.stop
    predict: Callable[[Sequence[np.ndarray]], np.ndarray] | None = getattr(codec, "psnr_curves", None)
    if predict:
        curves = predict(pixels)
    else:
        curves = np.tile((np.arange(first, stop) - (first + stop) / 2) * _STEP + target, (len(pixels), 1))
    searches = [_Search(curve, first, below=first - 1, above=stop) for curve in curves]
    active = list(range(len(pixels)))
    while active:
        qualities = [searches[index].next_quality(target) for index in active]
        encoded = codec.encode([pixels[index] for index in active], qualities, packer)
        decoded = codec.decode(encoded)
        if on_tries:
            on_tries(len(active))
        active = [
            index
            for index, one, picture in zip(active, encoded, decoded, strict=True)
            if not searches[index].learn(Stored(one, picture, psnr(pixels[index], picture)), target)
        ]
    return [search.best for search in searches]


def encode_fallback(pixels: np.ndarray, floor: float, codecs: Sequence[Codec], lossless: Codec) -> Stored | None:
    """The smallest of what standard codecs need to reach ``floor`` dB; without loss where none does.

    None where not even ``lossless`` takes a picture of this size.
    """
    kept: list[Stored | None] = []
    for codec in (*codecs, lossless):
        if codec is lossless and any(kept):
            break
        # A format has a longest side; what cannot hold the picture does not compete.
        with suppress(CodecError):
            kept += encode_to_target(codec, [pixels], floor)
    return min((one for one in kept if one is not None), key=lambda one: len(one.encoded.payload), default=None)


def as_grey(stored: Stored, pixels: np.ndarray) -> Stored:
    """The same encoding read as a grey picture: three planes become their mean, which is measured again."""
    grey = grey_planes(stored.pixels)
    return replace(stored, encoded=replace(stored.encoded, channels=1), pixels=grey, psnr=psnr(pixels, grey))


def grey_planes(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with three equal planes, the rounded mean of what came in."""
    mean = (pixels.astype(np.uint16).sum(axis=2) * 2 + 3) // 6
    return np.repeat(mean[:, :, None].astype(np.uint8), 3, axis=2)
