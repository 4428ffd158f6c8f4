"""What a file may ask for, before any of its pixels are decoded; and what a decoder says where memory runs out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from compressor.defaults import MAX_BYTES, MAX_PIXELS
from compressor.errors import ImageError, LatentpackError, is_shortage, told

DECODING_BYTES = 32  # of memory for a pixel: libjxl takes 16, OpenJPEG more than 12


@dataclass(frozen=True)
class Limits:
    """What a file may ask for. TIFF that imagecodecs does not decode keeps Pillow's limit too, 178,956,970 pixels."""

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


def check_size(width: int, height: int, limits: Limits) -> None:
    if not width or not height:
        raise ImageError("corrupt", f"the header says {width} x {height} pixels")
    if width * height > limits.max_pixels:
        pixels = f"{width} x {height} pixels"
        raise ImageError("too_large", f"{pixels}, the limit is {limits.max_pixels:,} in all (--max-pixels)")


def file_too_large(size: int, limits: Limits) -> ImageError:
    return ImageError("too_large", f"{size:,} bytes, the limit is {limits.max_bytes:,} (--max-bytes)")


def would_fit(detail: str, limits: Limits) -> bool:
    """Whether what was refused as ``too_large`` with these words is within ``limits``."""
    found = re.search(r"(\d{1,10}) x (\d{1,10}) pixels, the limit|(\d[\d,]{0,20}) bytes, the limit", detail)
    if not found:
        return False
    if found[3]:
        return int(found[3].replace(",", "")) <= limits.max_bytes
    return int(found[1]) * int(found[2]) <= limits.max_pixels


@contextmanager
def within(width: int, height: int, limits: Limits) -> Iterator[None]:
    """Decode a picture of this size. ImageError where ``limits`` do not allow it."""
    check_size(width, height, limits)
    with memory_for(width * height):
        yield


@contextmanager
def memory_for(pixels: int, each: int = DECODING_BYTES) -> Iterator[None]:
    """MemoryError in place of what decoders raise where ``each`` byte of so many pixels cannot be had.

    Many of them speak of damage then: libwebp, dav1d, libjxl, OpenJPEG.
    """
    try:
        yield
    except Exception as error:
        found_before_decoding = isinstance(error, LatentpackError) and error.__cause__ is None
        if found_before_decoding or isinstance(error, ImportError) or type(error).__name__ == "DecompressionBombError":
            raise
        if not is_shortage(error) and _can_have(pixels * each):
            raise
        needed = f"{pixels * each / 1e6:,.1f} MB for {pixels:,} pixels"
        raise MemoryError(f"not enough memory to decode it, up to {needed}: {told(error)}") from error


def _can_have(size: int) -> bool:
    try:
        np.empty(size, np.uint8)  # asked for and not touched: it costs microseconds
    except MemoryError:
        return False
    return True
