"""Pixels to a picture's file, as it is restored. What archives store of pictures is encoded by codecs."""

import io
from typing import Any

import numpy as np

from compressor.errors import ImageError
from compressor.photo_metadata import with_metadata


def encode_picture(
    pixels: np.ndarray,
    channels: int,
    format: str = "png",
    psnr: float | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """Encode uint8 (H, W, 3) ``pixels`` as a file: PNG, TIFF, BMP and WebP lossless, JPEG and AVIF near-lossless.

    ``channels`` 1 writes the first plane as a grey picture, where the format has them. ``psnr`` is what the pixels have
    against their source, in dB, None where they are the source's: the better they are, the less JPEG and AVIF lose.
    PNG, JPEG and WebP take ``exif`` and ``xmp``, as archives keep them.
    """
    from PIL import Image

    if format not in _SETTINGS:
        raise ImageError("unsupported", f"cannot write {format!r}: choose one of {', '.join(_SETTINGS)}")
    settings = dict(_SETTINGS[format])
    if format in _QUALITIES:
        settings["quality"] = _quality(format, psnr)
    if format == "avif" and channels != 1:
        return _rgb_avif(pixels, settings["quality"])
    samples = np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels)
    if format == "jpeg":
        return with_metadata(_jpeg(samples, settings["quality"]), format, exif, xmp)
    if format == "webp":
        settings |= {name: block for name, block in (("exif", exif), ("xmp", xmp)) if block}
    file = io.BytesIO()
    Image.fromarray(samples).save(file, format, **settings)
    return with_metadata(file.getvalue(), format, exif, xmp) if format == "png" else file.getvalue()


_SETTINGS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {},
    "webp": {"lossless": True, "exact": True},
    "tiff": {"compression": "tiff_adobe_deflate"},
    "bmp": {},
    "avif": {},
}


# Qualities, and under how many dB of the archive's they are enough: portraits then lose 0.44 dB at most up to 42 dB.
# JPEG's best loses up to 0.8 dB of 45, and AVIF's nothing.
_QUALITIES = {
    "jpeg": ((95, 35.0), (98, 38.0), (99, 41.0)),
    "avif": ((90, 36.0), (95, 41.0), (98, 47.0)),
}


_BEST_QUALITY = 100


def _quality(format: str, psnr: float | None) -> int:
    if psnr is None:
        return _BEST_QUALITY
    return next((quality for quality, below in _QUALITIES[format] if psnr < below), _BEST_QUALITY)


def _jpeg(samples: np.ndarray, quality: int) -> bytes:
    """Not by Pillow, whose buffer is too small for noise."""
    import imagecodecs

    try:
        return bytes(imagecodecs.jpeg8_encode(samples, level=quality, subsampling="444", optimize=True))
    except imagecodecs.Jpeg8Error as error:  # of more than 65,535 pixels a side
        raise ImageError("unsupported", f"cannot write it as JPEG: {error}") from error


def _rgb_avif(pixels: np.ndarray, quality: int) -> bytes:
    """Red, green and blue as they are: YCbCr of 8 bits, which is all that Pillow writes, alone loses 2 dB of 45."""
    import imagecodecs

    try:
        return bytes(
            imagecodecs.avif_encode(
                np.ascontiguousarray(pixels),
                level=quality,
                speed=6,
                pixelformat="444",
                codec="aom",
                matrix=imagecodecs.AVIF.MATRIX_COEFFICIENTS.IDENTITY,
                numthreads=1,
            )
        )
    except imagecodecs.AvifError as error:
        raise ImageError("unsupported", f"cannot write it as AVIF: {error}") from error
