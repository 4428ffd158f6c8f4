"""Samples through an ICC profile to sRGB, and whether sRGB has all of their colours."""

import functools
import io
import itertools
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
