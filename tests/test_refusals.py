"""Bytes that are no picture, or none that can be stored, are refused by name; a lack of memory is not their fault."""

import struct
import subprocess
import sys
from functools import cache

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.limits import Limits, would_fit
from tests.pictures import FORMATS, GREY, PIXELS, RGB, file_of, png_chunk, refusal
from tests.pictures import silent as silent


@pytest.mark.parametrize(
    "data",
    [
        b"This is a text file\n",
        b"BM is how this text begins, no bitmap",
        b"BM" + bytes(15),  # ends within what would tell
        b"RIFF\x28\0\0\0WAVEfmt " + bytes(32),
        b"<svg/>",
        b"\0",
    ],
)
def test_not_a_picture(data):
    assert refusal(data) == "not_a_picture"


def test_empty_and_unsupported():
    assert refusal(b"") == "empty"
    png = file_of(RGB)
    assert refusal(png[:33] + png_chunk(b"IEND", b"")) == "corrupt"
    for other in (imagecodecs.jpegls_encode(PIXELS), imagecodecs.jpegxr_encode(PIXELS), b"8BPS\0\1" + bytes(20)):
        assert refusal(other) == "unsupported"
    assert refusal(imagecodecs.avif_encode(PIXELS).replace(b"avif", b"mif1")) == "unsupported"  # a HEIF of AV1
    assert refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)) == "corrupt"


@pytest.mark.parametrize("box", [b"\0\0\0\x07free", b"\0\0\0\1free\0\0\0\0\0\0\0\x0f"])
def test_a_box_smaller_than_its_own_header_is_refused_by_where_it_is(box):
    data = file_of(RGB, "avif")
    with pytest.raises(ImageError, match=f"box at byte {len(data)} is smaller") as caught:
        decode_picture(data + box)
    assert caught.value.reason == "corrupt"
    assert decode_picture(data + box[:7]), "too short to begin another box"


@pytest.mark.parametrize("format", [*FORMATS, "progressive", "lzw", "bigtiff"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated(format, share):
    noisy = Image.fromarray(PIXELS ^ np.random.default_rng(0).integers(0, 32, PIXELS.shape, np.uint8))
    if format == "progressive":
        data = file_of(noisy, "jpeg", progressive=True, exif=b"Exif\0\0" + file_of(RGB, "jpeg"))
    elif format == "lzw":
        data = file_of(noisy, "tiff", compression="tiff_lzw")
    elif format == "bigtiff":
        data = file_of(noisy, "tiff", big_tiff=True)
    else:
        data = file_of(noisy, format, **FORMATS[format])
    assert refusal(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "F"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "group4", "lzma", "tiff_adobe_deflate"])
def test_damaged_tiff_is_quiet(compression, mode):
    data = file_of(
        GREY.convert("1") if compression == "group4" else RGB.convert(mode if mode != "F" else "L").convert(mode),
        "tiff",
        compression=compression,
    )
    middle = len(data) // 3
    try:
        decode_picture(data[:middle] + b"\xff\x13" * 40 + data[middle + 80 :])
    except ImageError as error:
        assert error.reason == "corrupt"


def test_damaged_png_names_both_sums():
    data = bytearray(file_of(RGB))
    data[60] ^= 1
    with pytest.raises(ImageError, match="stored crc32 0x.*computed 0x") as caught:
        decode_picture(bytes(data))
    assert caught.value.reason == "corrupt"


def test_limits_before_decoding():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND", b"")
    assert refusal(bomb) == "too_large"
    for format in FORMATS:
        data = file_of(RGB, format, **FORMATS[format])
        assert refusal(data, max_pixels=40 * 56 - 1) == "too_large"
        assert refusal(data, max_bytes=len(data) - 1) == "too_large"
        assert decode_picture(data, Limits(len(data), 40 * 56)).pixels.shape == PIXELS.shape


@pytest.mark.parametrize(
    ("detail", "fits"),
    [
        ("60 x 50 pixels, the limit is 2999 in all", True),
        ("60 x 51 pixels, the limit is 2,999 in all (--max-pixels)", False),
        ("the file has 1,000 bytes, the limit is 999", True),  # as earlier versions put it
        ("1001 bytes, the limit is 999", False),
        (", bytes, the limit", False),
        ("9" * 5_000 + " x 2 pixels, the limit is 1", False),
        ("Image size (3 pixels) exceeds limit of 2 pixels, could be decompression bomb DOS attack.", False),
    ],
)
def test_whether_what_was_too_large_would_fit_is_told_by_its_words(detail, fits):
    assert would_fit(detail, Limits(max_bytes=1000, max_pixels=3000)) is fits


def test_pillow_s_own_limit_is_a_refusal_too():
    data = file_of(RGB.convert("CMYK"), "tiff", compression="tiff_lzw")
    for tag, size in ((256, 56), (257, 40)):
        entry = struct.pack("<HHI", tag, 3, 1)
        assert data.count(entry) == 1
        data = data.replace(entry + struct.pack("<I", size), entry + struct.pack("<I", 60_000))
    assert refusal(data, max_pixels=10**10) == "too_large"


@cache
def file_in(format):
    return file_of(RGB, format, **FORMATS[format])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_are_a_picture_or_a_named_refusal(data):
    original = file_in(data.draw(st.sampled_from(sorted(FORMATS))))
    damaged = bytearray(original)
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)))):
        damaged[position] = value
    damaged = bytes(damaged[: data.draw(st.integers(0, len(original)))])
    try:
        picture = decode_picture(damaged, Limits(max_pixels=10**6))
    except ImageError as error:
        assert error.reason in {"empty", "not_a_picture", "truncated", "unsupported", "too_large", "corrupt"}
    else:
        assert picture.pixels.ndim == 3 and picture.pixels.shape[2] == 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Pixel allocation failed: Out of memory")])
def test_a_shortage_of_memory_is_no_damage(monkeypatch, error):
    def short(data):
        raise error

    monkeypatch.setattr("compressor.images._png", short)
    with pytest.raises(MemoryError, match="not enough memory to decode it, up to 0.1 MB for 2,240 pixels"):
        decode_picture(file_of(RGB))


def test_what_is_found_without_a_decoder_is_told_however_little_memory_there_is(monkeypatch):
    monkeypatch.setattr("compressor.limits._can_have", lambda size: False)
    assert refusal(file_of(RGB, "tiff")[:-10]) == "truncated"
    assert refusal(file_of(RGB), max_pixels=1) == "too_large"


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from compressor.images import decode_picture
small, large = ([path.read_bytes() for path in sorted(Path(sys.argv[1]).glob(which))] for which in ("s-*", "l-*"))
for data in small:
    decode_picture(data)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
for room in (1, 8, 16, 24):
    resource.setrlimit(resource.RLIMIT_AS, (taken + room * 2**20, most))
    for data in large:
        try:
            decode_picture(data)
        except Exception as error:
            print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(*(decode_picture(data).pixels.shape for data in large))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process has of memory")
def test_no_format_is_taken_for_damaged_where_memory_runs_out(tmp_path):
    """Decoders say very different things of it: that a stream is broken, or that a frame does not decode."""
    fast = {"webp": {"lossless": True, "method": 0}, "avif": {"speed": 10}, "jpegxl": {"effort": 1}}
    large = RGB.resize((3000, 2500))
    for format in FORMATS:
        (tmp_path / f"s-{format}").write_bytes(file_of(RGB, format))
        (tmp_path / f"l-{format}").write_bytes(file_of(large, format, **fast.get(format, {})))
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)]
    *refused, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(refused) == {"MemoryError"} and len(refused) > 2 * len(FORMATS)
    assert last == " ".join(["(2500, 3000, 3)"] * len(FORMATS))


def test_without_pillow_heif_a_heic_is_refused_by_name(monkeypatch):
    data = file_of(RGB, "heic")
    monkeypatch.setitem(sys.modules, "_pillow_heif", None)
    with pytest.raises(ImageError, match="pillow-heif, which is not installed"):
        decode_picture(data)


def test_a_library_that_is_not_loaded_is_no_damage(monkeypatch):
    def unloaded(data):
        raise ImportError("failed to map segment from shared object")

    monkeypatch.setattr("compressor.images._png", unloaded)
    with pytest.raises(ImportError):
        decode_picture(file_of(RGB))
