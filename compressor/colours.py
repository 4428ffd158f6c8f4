"""Samples through an ICC profile to sRGB, and whether sRGB has all of their colours."""

import functools
import io
import itertools
import struct
from typing import Any

import numpy as np

GAMUT_LEVELS = 6  # of 255: what a colour may be off after the way to sRGB and back; rounding alone is off by 3
GAMUT_SHARE = 0.001  # of the pixels that may be off by more, before the file itself is kept


def to_srgb(samples: np.ndarray, icc: bytes) -> tuple[np.ndarray, bool]:
    """Grey (H, W, 1) or RGB samples through their profile to sRGB, and whether sRGB has all of their colours.

    Unchanged if sRGB is what they are in.
    """
    from PIL import Image

    grey = samples.shape[2] == 1
    transform = transform_of(icc, "L" if grey else "RGB")
    if transform is None:
        return samples, True
    picture = Image.fromarray(np.ascontiguousarray(samples[..., 0] if grey else samples))
    converted = transform.apply(picture)
    if grey:
        return np.asarray(converted)[..., 1:2], True
    back = transform_of(icc, "RGB", back=True)
    if back is None:
        return np.asarray(converted), False  # nobody can tell
    change = np.abs(np.asarray(back.apply(converted)).astype(np.int16) - samples).max(axis=2)
    return np.asarray(converted), bool((change > GAMUT_LEVELS).mean() <= GAMUT_SHARE)


@functools.lru_cache(maxsize=64)
def transform_of(icc: bytes, mode: str, back: bool = False) -> Any:
    """From a profile to sRGB, or ``back``; None if it would change nothing, is broken, or is for other samples."""
    from PIL import Image, ImageCms

    try:
        profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(
            srgb if back else profile,
            profile if back else srgb,
            "RGB" if back else mode,
            mode if back else "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.NOCACHE | ImageCms.Flags.BLACKPOINTCOMPENSATION,  # the cache is not safe among threads
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None  # as browsers do: a broken profile is no profile
    if mode == "CMYK" or back:
        return transform
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    probe = np.array(list(itertools.product(steps, repeat=3)) if mode == "RGB" else steps, np.uint8)[None]
    there = np.asarray(transform.apply(Image.fromarray(probe))).astype(int)
    change = np.abs(there - (probe if mode == "RGB" else probe[..., None])).max()
    return transform if change > 2 else None  # vendors' sRGB profiles differ by rounding


@functools.cache
def adobe_rgb() -> bytes:
    """A profile of Adobe RGB (1998), for files that name it and have none: LittleCMS's of sRGB with other numbers."""
    from PIL import ImageCms

    profile = bytearray(with_primaries(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), _ADOBE_RGB))
    # Curves are one (ICC.1, 10.18): a power of a * x + b; of 563 / 256 alone here
    struct.pack_into(
        ">5i", profile, _place(profile, b"rTRC") + 12, *(round(v * 65536) for v in (563 / 256, 1, 0, 0, 0))
    )
    return bytes(profile)


_ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def with_primaries(profile: bytes, columns: tuple[tuple[float, float, float], ...]) -> bytes:
    """A profile with other primaries: XYZ at D50 of red, green and blue (ICC.1, tags rXYZ, gXYZ, bXYZ)."""
    out = bytearray(profile)
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        struct.pack_into(">3i", out, _place(out, name) + 8, *(round(value * 65536) for value in column))
    return bytes(out)


def _place(profile: bytes | bytearray, tag: bytes) -> int:
    """Where a tag's data begin."""
    return int.from_bytes(profile[(entry := profile.index(tag)) + 4 : entry + 8], "big")
