"""Files of pictures that tests of reading them share, and what is asked of them."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.limits import Limits

pillow_heif.register_heif_opener()

# Smooth, so that lossy formats stay close; every corner differs, so that a turn shows
ROWS, COLUMNS = np.mgrid[0:40, 0:56].astype(np.float32)
PIXELS = np.stack([ROWS * 6, COLUMNS * 4, 255 - ROWS * 3 - COLUMNS * 2], axis=-1).clip(0, 255).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[..., 0])
FORMATS = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
    "tiff": {},
    "bmp": {},
    "avif": {"quality": 95},
    "heic": {"quality": 95},
    "jpeg2000": {},
    "jpegxl": {},
    "gif": {},
    "pnm": {},
}


def file_of(picture, format="png", **settings):
    if format == "jpegxl":
        return imagecodecs.jpegxl_encode(np.asarray(picture), lossless=True, **settings)
    file = io.BytesIO()
    picture.save(file, {"heic": "heif", "pnm": "ppm"}.get(format, format), **settings)
    return file.getvalue()


def heic_of(samples, mode="RGB", **settings):
    """What Pillow cannot hold as a HEIC: more than 8 bits, or other colours."""
    file = io.BytesIO()
    height, width = samples.shape[:2]
    pillow_heif.from_bytes(mode, (width, height), samples.tobytes()).save(file, quality=95, **settings)
    return file.getvalue()


def refusal(data, **limits):
    with pytest.raises(ImageError) as caught:
        decode_picture(data, Limits(**limits))
    return caught.value.reason


def close(pixels, expected, tolerance=6):
    return pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < tolerance


@pytest.fixture(autouse=True)
def silent(capfd):
    """Decoders must not write to the terminal, whatever they are fed."""
    yield
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, kind, content):
    return png[:33] + png_chunk(kind, content) + png[33:]


def wide(profile):
    """sRGB's profile with primaries of its own so saturated that sRGB lacks many of their colours."""
    out = bytearray(profile)
    for name, column in ((b"rXYZ", (0.61, 0.31, 0.02)), (b"gXYZ", (0.2, 0.63, 0.07)), (b"bXYZ", (0.15, 0.06, 0.73))):
        at = int.from_bytes(profile[profile.index(name) + 4 :][:4], "big")
        out[at + 8 : at + 20] = struct.pack(">3i", *(round(value * 65536) for value in column))
    return bytes(out)


def adobe_exif(*, interoperability=b"R03\0", space=65535, order="<"):
    """As cameras write it that have no profile: EXIF names a directory, and that one the colours."""
    directories = [
        [(0x8769, 4, 1, struct.pack(order + "I", 26))],
        [(0xA001, 3, 1, struct.pack(order + "HH", space, 0)), (0xA005, 4, 1, struct.pack(order + "I", 56))],
        [(1, 2, 4, interoperability), (2, 7, 4, b"0100")],
    ]
    block = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    for entries in directories:
        block += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            block += struct.pack(order + "HHI", tag, kind, count) + value
        block += bytes(4)
    return b"Exif\0\0" + block
