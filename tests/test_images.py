"""Every format, orientation, colour and kind of damage a folder of pictures brings."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from compressor.errors import ImageError
from compressor.images import Limits, decode_picture, resize_picture
from compressor.picture_writing import encode_picture

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
    "gif": {},
}


def file_of(picture, format="png", **settings):
    file = io.BytesIO()
    picture.save(file, "heif" if format == "heic" else format, **settings)
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


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format):
    picture = decode_picture(file_of(RGB, format, **FORMATS[format]))
    assert (picture.format, picture.channels, picture.keep) == (format, 3, None)
    assert picture.pixels.dtype == np.uint8 and picture.pixels.flags.c_contiguous
    assert close(picture.pixels, PIXELS)


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "bmp", "heic", "jpeg2000"])
def test_grey(format):
    picture = decode_picture(file_of(GREY, format))
    assert picture.channels == 1 and picture.keep is None
    assert (picture.pixels == picture.pixels[..., :1]).all()
    assert close(picture.pixels[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd"])
def test_tiff_compressions(compression):
    assert close(decode_picture(file_of(RGB, "tiff", compression=compression)).pixels, PIXELS)


def test_palette_and_two_levels():
    palette = RGB.quantize(200)
    for format in ("png", "bmp", "tiff"):
        picture = decode_picture(file_of(palette, format))
        assert picture.keep is None and (picture.pixels == np.asarray(palette.convert("RGB"))).all()
        two = decode_picture(file_of(GREY.convert("1"), format))
        assert two.keep is None and two.channels == 1 and set(np.unique(two.pixels)) == {0, 255}


def test_rgb_jpeg_and_progressive():
    assert close(decode_picture(file_of(RGB, "jpeg", keep_rgb=True)).pixels, PIXELS)
    assert close(decode_picture(file_of(RGB, "jpeg", progressive=True, restart_marker_rows=1)).pixels, PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "tiff jpeg", "avif", "heic"])
def test_orientation(format, orientation):
    format, _, compression = format.partition(" ")
    exif = Image.Exif()
    exif[274] = orientation
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's Transpose that makes it upright
    upright = RGB.transpose(turns[orientation]) if orientation > 1 else RGB
    settings = FORMATS[format] | ({"compression": compression} if compression else {})
    data = file_of(RGB, format, exif=exif.tobytes(), **settings)
    assert close(decode_picture(data).pixels, np.asarray(upright))


def test_broken_exif_is_no_obstacle():
    assert close(decode_picture(file_of(RGB, "jpeg", exif=b"Exif\0\0II*\0nonsense")).pixels, PIXELS)
    exif = Image.Exif()
    exif[306] = "2026:11:26 00:00:00"
    for format in ("webp", "heic"):
        data = file_of(RGB, format, exif=exif.tobytes(), **FORMATS[format])
        broken = data.replace(exif.tobytes().removeprefix(b"Exif\0\0")[:4], b"none")
        assert broken != data and close(decode_picture(broken).pixels, PIXELS)


def test_colour_profiles():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format in ("png", "jpeg", "tiff", "webp", "heic"):
        same = decode_picture(file_of(RGB, format, icc_profile=srgb, **FORMATS[format])).pixels
        assert (same == decode_picture(file_of(RGB, format, **FORMATS[format])).pixels).all()
        broken = decode_picture(file_of(RGB, format, icc_profile=b"nonsense" * 20, **FORMATS[format]))
        assert close(broken.pixels, PIXELS)
        swapped = decode_picture(file_of(RGB, format, icc_profile=swap_red_and_green(srgb), **FORMATS[format]))
        assert swapped.keep is None
        assert close(swapped.pixels, PIXELS[..., [1, 0, 2]], 3)


def swap_red_and_green(profile):
    """A valid profile of other primaries: the colorants of red and green change places."""
    return profile.replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ").replace(b"tmp!", b"gXYZ")


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, kind, content):
    return png[:33] + png_chunk(kind, content) + png[33:]


def test_what_only_the_original_bytes_keep():
    translucent = RGB.convert("RGBA")
    translucent.putalpha(GREY)
    deep = PIXELS.astype(np.uint16) * 257
    frames = [RGB, RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    cases = [
        (file_of(translucent), "alpha"),
        (file_of(translucent, "webp", lossless=True), "alpha"),
        (file_of(translucent, "avif"), "alpha"),
        (file_of(translucent, "heic"), "alpha"),
        (file_of(translucent, "tiff"), "alpha"),
        (file_of(translucent.convert("LA")), "alpha"),
        (file_of(RGB.quantize(9), transparency=0), "alpha"),
        (file_of(RGB.quantize(9), "gif", transparency=0), "alpha"),
        (imagecodecs.png_encode(deep), "16-bit"),
        (imagecodecs.png_encode(np.ascontiguousarray(deep[..., 0])), "16-bit"),
        (imagecodecs.tiff_encode(deep), "16-bit"),
        (file_of(Image.fromarray(deep[..., 0]), "tiff"), "16-bit"),
        (imagecodecs.jpeg2k_encode(deep, level=0), "16-bit"),
        (imagecodecs.avif_encode(deep >> 6, bitspersample=10), "16-bit"),
        (heic_of(deep, "RGB;16"), "16-bit"),
        (imagecodecs.jpeg8_encode(deep >> 4, bitspersample=12), "16-bit"),
        (file_of(Image.fromarray(PIXELS[..., 0] / np.float32(255)), "tiff"), "float"),
        (file_of(RGB.convert("CMYK"), "jpeg", quality=95), "cmyk"),
        (file_of(RGB.convert("CMYK"), "tiff"), "cmyk"),
        (file_of(frames[0], "png", save_all=True, append_images=frames[1:]), "animated"),
        (file_of(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True), "animated"),
        (file_of(frames[0], "gif", save_all=True, append_images=frames[1:]), "animated"),
        (file_of(frames[0], "avif", save_all=True, append_images=frames[1:]), "animated"),
        (file_of(frames[0], "tiff", save_all=True, append_images=frames[1:]), "multi-page"),
        (file_of(frames[0], "heic", save_all=True, append_images=frames[1:]), "multi-page"),
        (file_of(RGB, "heic").replace(b"mif1heic", b"mif1hevc"), "animated"),
        (with_chunk(file_of(RGB), b"cICP", bytes([9, 16, 0, 1])), "wide-gamut"),
        (with_chunk(file_of(RGB), b"cICP", bytes([1, 13, 0, 0])), "wide-gamut"),  # samples from 16 to 235
    ]
    for number, (data, keep) in enumerate(cases):
        picture = decode_picture(data)
        assert picture.keep == keep, number
        assert picture.pixels.shape == PIXELS.shape and picture.pixels.dtype == np.uint8, number
        if keep in ("16-bit", "animated", "multi-page") and picture.channels == 3:
            assert close(picture.pixels, PIXELS), number


GAMMA, PRIMARIES = struct.pack(">I", 45455), struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
SRGB_PROFILE = b"sRGB\0\0" + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


@pytest.mark.parametrize(
    ("chunks", "keep"),
    [
        ({b"gAMA": struct.pack(">I", 100_000)}, "gamma"),
        ({b"gAMA": struct.pack(">I", 55_556)}, "gamma"),
        ({b"gAMA": GAMMA}, None),
        ({b"gAMA": struct.pack(">I", 45_000)}, None),  # 0.45, as some write it
        ({b"gAMA": bytes(4)}, None),
        ({b"gAMA": b"\1"}, None),
        ({b"cHRM": ADOBE}, "wide-gamut"),
        ({b"cHRM": PRIMARIES}, None),
        ({b"cHRM": struct.pack(">8I", *(one - 1 for one in struct.unpack(">8I", PRIMARIES)))}, None),
        ({b"gAMA": GAMMA, b"cHRM": PRIMARIES}, None),
        ({b"gAMA": struct.pack(">I", 100_000), b"sRGB": b"\0"}, None),
        ({b"sRGB": b"\0", b"cHRM": ADOBE}, None),
        ({b"gAMA": struct.pack(">I", 100_000), b"cICP": bytes([1, 13, 0, 1])}, None),
        ({b"cICP": b"\1"}, None),  # broken, and as good as none
        ({b"cHRM": ADOBE, b"iCCP": SRGB_PROFILE}, None),
        ({b"cHRM": ADOBE, b"iCCP": b"none\0\0broken"}, "wide-gamut"),
    ],
)
def test_a_png_in_other_light_or_of_other_primaries_than_srgb_keeps_the_file(chunks, keep):
    data = file_of(RGB)
    for kind, content in chunks.items():
        data = with_chunk(data, kind, content)
    picture = decode_picture(data)
    assert picture.keep == keep and (picture.pixels == PIXELS).all()


def test_a_grey_png_has_a_gamma_and_no_primaries():
    grey = file_of(GREY)
    assert decode_picture(with_chunk(grey, b"cHRM", ADOBE)).keep is None
    assert decode_picture(with_chunk(grey, b"gAMA", struct.pack(">I", 100_000))).keep == "gamma"


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(("kind", "keep"), [(1, None), (2, "signed"), (3, "float"), (4, "untyped")])
def test_a_tiff_whose_samples_are_not_unsigned_keeps_the_file(kind, keep, compression):
    """-1 is stored as 255: taken for unsigned, the darkest would come out as the brightest."""
    data = file_of(GREY, "tiff", compression=compression, tiffinfo={339: 1})
    entry = struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    assert data.count(entry) == 1
    data = data.replace(entry, struct.pack("<HHIHH", 339, 3, 1, kind, 0))
    try:
        assert decode_picture(data).keep == keep
    except ImageError as error:  # refused by name is no other picture either
        assert keep != "signed" and error.reason == "unsupported"


def test_alpha_on_white_and_opaque_alpha_dropped():
    half = RGB.convert("RGBA")
    half.putalpha(51)
    expected = PIXELS * 0.2 + 255 * 0.8
    assert np.abs(decode_picture(file_of(half)).pixels - expected).max() <= 1
    opaque = decode_picture(file_of(RGB.convert("RGBA")))
    assert opaque.keep is None and (opaque.pixels == PIXELS).all()
    grey = decode_picture(file_of(GREY.convert("LA")))
    assert grey.keep is None and grey.channels == 1


def test_a_jpeg_2000_with_a_profile_keeps_the_file():
    plain = file_of(Image.new("RGB", (16, 16)), "jpeg2000")
    assert decode_picture(plain).keep is None
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    header, colour = plain.index(b"jp2h") - 4, plain.index(b"colr") - 4
    (header_size,), (colour_size,) = struct.unpack_from(">I", plain, header), struct.unpack_from(">I", plain, colour)
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    size = struct.pack(">I", header_size - colour_size + len(box))
    file = plain[:header] + size + plain[header + 4 : colour] + box + plain[colour + colour_size :]
    assert decode_picture(file).keep == "wide-gamut"


@pytest.mark.parametrize(("bits", "dark"), [(2, 1), (2, 0), (4, 1), (4, 0), (8, 1), (8, 0)])
def test_grey_tiffs_of_few_bits_have_all_of_their_range(bits, dark):
    """As scanners write them; ``dark`` is the photometric interpretation: whether 0 is black (1) or white (0)."""
    levels = np.arange(64).reshape(8, 8) * (2**bits - 1) // 63
    packed = np.packbits((levels[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, dark), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory
    grey = levels * 255 // (2**bits - 1)
    assert close(decode_picture(data).pixels[..., 0], grey if dark else 255 - grey)


def test_a_tiff_with_more_than_alpha_keeps_the_file():
    samples = np.random.default_rng(0).integers(0, 256, (8, 12, 5), np.uint8)
    ends = 10 + 10 * 12 + 4  # of the directory: the five depths follow, then the samples
    directory = struct.pack("<H", 10)
    for tag, count, value in [
        (256, 1, 12), (257, 1, 8), (258, 5, ends), (259, 1, 1), (262, 1, 2), (273, 1, ends + 10), (277, 1, 5),
        (278, 1, 8), (279, 1, samples.size), (338, 2, 0),
    ]:  # fmt: skip
        directory += struct.pack("<HHII", tag, 3, count, value)
    file = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<5H", *[8] * 5) + samples.tobytes()
    picture = decode_picture(file)
    assert (picture.pixels.shape, picture.keep) == ((8, 12, 3), "alpha")
    assert (picture.pixels == samples[..., :3]).all()


def test_phone_jpeg_with_a_second_picture_behind_the_first():
    data = file_of(RGB, "mpo", save_all=True, append_images=[GREY], quality=95, subsampling=0)
    picture = decode_picture(data)
    assert picture.format == "jpeg" and picture.keep is None and close(picture.pixels, PIXELS)


@pytest.mark.parametrize("data", [b"This is a text file\n", b"BM is how this text begins, no bitmap", b"<svg/>", b"\0"])
def test_not_a_picture(data):
    assert refusal(data) == "not_a_picture"


def test_empty_and_unsupported():
    assert refusal(b"") == "empty"
    png = file_of(RGB)
    assert refusal(png[:33] + png_chunk(b"IEND", b"")) == "corrupt"
    assert refusal(imagecodecs.jpegxl_encode(PIXELS)) == "unsupported"
    assert refusal(imagecodecs.avif_encode(PIXELS).replace(b"avif", b"mif1")) == "unsupported"  # a HEIF of AV1
    assert refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)) == "corrupt"


@pytest.mark.parametrize("box", [b"\0\0\0\x07free", b"\0\0\0\1free\0\0\0\0\0\0\0\x0f"])
def test_a_box_smaller_than_its_own_header_is_refused_by_where_it_is(box):
    data = file_of(RGB, "avif")
    with pytest.raises(ImageError, match=f"box at byte {len(data)} is smaller") as caught:
        decode_picture(data + box)
    assert caught.value.reason == "corrupt"
    assert decode_picture(data + box[:7]), "too short to begin another box"


@pytest.mark.parametrize("format", [*FORMATS, "progressive", "lzw"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated(format, share):
    noisy = Image.fromarray(PIXELS ^ np.random.default_rng(0).integers(0, 32, PIXELS.shape, np.uint8))
    if format == "progressive":
        data = file_of(noisy, "jpeg", progressive=True, exif=b"Exif\0\0" + file_of(RGB, "jpeg"))
    elif format == "lzw":
        data = file_of(noisy, "tiff", compression="tiff_lzw")
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


def noisy_jpeg(**settings):
    noise = np.random.default_rng(0).normal(0, 12, PIXELS.shape)
    return file_of(Image.fromarray((PIXELS + noise).clip(0, 255).astype(np.uint8)), "jpeg", quality=90, **settings)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_that_lost_a_block_is_refused_or_kept_as_it_is(settings):
    data = noisy_jpeg(**settings)
    scan = data.index(b"\xff\xda") + 14
    missing = data[: scan + 300] + data[scan + 812 :]
    zeroed = data[: scan + 300] + bytes(512) + data[scan + 812 :]
    for damaged in (missing, zeroed):
        try:
            assert decode_picture(damaged).keep == "irregular"
        except ImageError as error:
            assert error.reason == "corrupt"


def test_bytes_that_a_camera_left_behind_the_scan_keep_the_file():
    data = file_of(RGB, "jpeg", quality=95)
    picture = decode_picture(data[:-2] + bytes(9) + data[-2:])
    assert picture.keep == "irregular" and close(picture.pixels, PIXELS)


def test_grey_and_odd_jpegs_have_the_same_pixels_as_ever():
    for data in (
        file_of(GREY, "jpeg"),
        file_of(RGB, "jpeg", keep_rgb=True),
        noisy_jpeg(),
        noisy_jpeg(progressive=True),
    ):
        samples = imagecodecs.jpeg8_decode(data)
        expected = samples if samples.ndim == 3 else np.repeat(samples[..., None], 3, axis=2)
        assert (decode_picture(data).pixels == expected).all()


def wide(profile):
    """sRGB's profile with primaries of its own so saturated that sRGB lacks many of their colours."""
    out = bytearray(profile)
    for name, column in ((b"rXYZ", (0.61, 0.31, 0.02)), (b"gXYZ", (0.2, 0.63, 0.07)), (b"bXYZ", (0.15, 0.06, 0.73))):
        at = int.from_bytes(profile[profile.index(name) + 4 :][:4], "big")
        out[at + 8 : at + 20] = struct.pack(">3i", *(round(value * 65536) for value in column))
    return bytes(out)


def test_colours_that_srgb_lacks_keep_the_file():
    profile = wide(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    muted = Image.fromarray(PIXELS // 8 + 96)
    picture = decode_picture(file_of(muted, icc_profile=profile))
    assert picture.keep is None and not close(picture.pixels, PIXELS // 8 + 96, 1)
    vivid = Image.fromarray(np.where(PIXELS > 128, 255, 0).astype(np.uint8))
    assert decode_picture(file_of(vivid, icc_profile=profile)).keep == "wide-gamut"


def test_limits_before_decoding():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND", b"")
    assert refusal(bomb) == "too_large"
    for format in FORMATS:
        data = file_of(RGB, format, **FORMATS[format])
        assert refusal(data, max_pixels=40 * 56 - 1) == "too_large"
        assert refusal(data, max_bytes=len(data) - 1) == "too_large"
        assert decode_picture(data, Limits(len(data), 40 * 56)).pixels.shape == PIXELS.shape


def test_pillow_s_own_limit_is_a_refusal_too():
    data = file_of(RGB.convert("CMYK"), "tiff", compression="tiff_lzw")
    for tag, size in ((256, 56), (257, 40)):
        entry = struct.pack("<HHI", tag, 3, 1)
        assert data.count(entry) == 1
        data = data.replace(entry + struct.pack("<I", size), entry + struct.pack("<I", 60_000))
    assert refusal(data, max_pixels=10**10) == "too_large"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_are_a_picture_or_a_named_refusal(data):
    original = data.draw(st.sampled_from([file_of(RGB, f, **s) for f, s in FORMATS.items()]))
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


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "bmp", "jpeg", "avif"])
def test_encode_then_decode(format):
    for channels, pixels in ((3, PIXELS), (1, np.repeat(PIXELS[..., :1], 3, axis=2))):
        back = decode_picture(encode_picture(pixels, channels, format))
        assert back.format == format and close(back.pixels, pixels, 2)
        if format in ("png", "webp", "tiff", "bmp"):
            assert (back.pixels == pixels).all()
        if format in ("png", "tiff", "bmp", "jpeg"):
            assert back.channels == channels


def test_encode_unknown_format():
    with pytest.raises(ImageError, match="choose one of png"):
        encode_picture(PIXELS, 3, "xyz")


def test_resize_takes_the_middle():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200
    assert (resize_picture(wide, 16) == 200).all() and resize_picture(wide, 16).shape == (16, 16, 3)
    assert resize_picture(wide, 100).shape == (100, 100, 3)
    assert (resize_picture(wide[:, 32:96], 64) == 200).all()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    assert (resize_picture(stripes, 32) == 100).all()  # the mean over each area, no moire


def test_an_avif_for_hdr_keeps_the_file():
    data = file_of(RGB, "avif", quality=95)
    at = data.index(b"colrnclx") + 8
    assert decode_picture(data).keep is None
    assert decode_picture(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :]).keep == "wide-gamut"


def test_a_heic_for_hdr_keeps_the_file_unless_a_profile_says_otherwise():
    hdr = {"color_primaries": 9, "transfer_characteristics": 16}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode_picture(heic_of(PIXELS)).keep is None
    assert decode_picture(heic_of(PIXELS, save_nclx_profile=True, **hdr)).keep == "wide-gamut"
    picture = decode_picture(file_of(RGB, "heic", quality=95, icc_profile=srgb))
    assert picture.keep is None and close(picture.pixels, PIXELS)


def test_a_profile_that_many_pictures_of_a_heic_share_is_in_memory_once():
    """Opened by pillow-heif's plugin, a file of a megabyte took a gigabyte, whatever the limits."""
    small, megabyte = RGB.resize((16, 16)), 2**20
    data = file_of(small, "heic", save_all=True, append_images=[small] * 49, icc_profile=bytes(megabyte))
    assert len(data) < 1.1 * megabyte, "the pictures were to share it"
    tracemalloc.start()
    try:
        assert decode_picture(data).keep == "multi-page"
        assert tracemalloc.get_traced_memory()[1] < 4 * megabyte
    finally:
        tracemalloc.stop()


def test_a_heic_of_tiles_as_phones_write_them():
    side = 1200  # above the tiles of 512 that a phone's picture is made of
    large = RGB.resize((side, side))
    settings = {"quality": 80, "tile_size": 512}
    file = io.BytesIO()
    pillow_heif.from_pillow(large).save(file, **settings)
    picture = decode_picture(file.getvalue())
    assert picture.keep is None and close(picture.pixels, np.asarray(large))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Pixel allocation failed: Out of memory")])
def test_a_shortage_of_memory_is_no_damage(monkeypatch, error):
    def short(data):
        raise error

    monkeypatch.setattr("compressor.images._png", short)
    with pytest.raises(MemoryError, match="not enough memory to decode it, up to 0.1 MB for 2,240 pixels"):
        decode_picture(file_of(RGB))


def test_what_is_found_without_a_decoder_is_told_however_little_memory_there_is(monkeypatch):
    monkeypatch.setattr("compressor.images._can_have", lambda size: False)
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
    fast = {"webp": {"lossless": True, "method": 0}, "avif": {"speed": 10}}
    large = RGB.resize((3000, 2500))
    for format in FORMATS:
        (tmp_path / f"s-{format}").write_bytes(file_of(RGB, format))
        (tmp_path / f"l-{format}").write_bytes(file_of(large, format, **fast.get(format, {})))
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)]
    *refused, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(refused) == {"MemoryError"} and len(refused) > 2 * len(FORMATS)
    assert last == " ".join(["(2500, 3000, 3)"] * len(FORMATS))


def test_a_library_that_is_not_loaded_is_no_damage(monkeypatch):
    def unloaded(data):
        raise ImportError("failed to map segment from shared object")

    monkeypatch.setattr("compressor.images._png", unloaded)
    with pytest.raises(ImportError):
        decode_picture(file_of(RGB))
