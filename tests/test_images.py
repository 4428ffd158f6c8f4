"""Every format, orientation and colour a folder of pictures brings."""

import io
import struct
import tracemalloc
from contextlib import suppress

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from compressor.errors import ImageError
from compressor.images import decode_picture, resize_picture
from compressor.limits import Limits
from compressor.picture_files import read_webp_size
from compressor.picture_writing import encode_picture
from tests.pictures import FORMATS, GREY, PIXELS, RGB, close, file_of
from tests.pictures import silent as silent


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format):
    picture = decode_picture(file_of(RGB, format, **FORMATS[format]))
    assert (picture.format, picture.channels, picture.keep) == (format, 3, None)
    assert picture.pixels.dtype == np.uint8 and picture.pixels.flags.c_contiguous
    assert close(picture.pixels, PIXELS)


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "bmp", "heic", "jpeg2000", "jpegxl", "pnm"])
def test_grey(format):
    picture = decode_picture(file_of(GREY, format))
    assert picture.channels == 1 and picture.keep is None
    assert (picture.pixels == picture.pixels[..., :1]).all()
    assert close(picture.pixels[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd"])
def test_tiff_compressions(compression):
    assert close(decode_picture(file_of(RGB, "tiff", compression=compression)).pixels, PIXELS)


def test_a_tiff_with_long_offsets_is_read():
    assert close(decode_picture(file_of(RGB, "tiff", big_tiff=True)).pixels, PIXELS)


@pytest.mark.parametrize("size", [(3, 1100), (1100, 3)])
@pytest.mark.parametrize("settings", [{"lossless": True}, {"quality": 80}, {"lossless": True, "exif": b"Exif\0\0"}])
def test_a_long_webp_is_as_large_as_it_says(size, settings):
    data = file_of(RGB.resize(size), "webp", **settings)
    assert decode_picture(data, Limits(max_pixels=3300)).pixels.shape == (*size[::-1], 3)
    assert read_webp_size(data) == size, "before Pillow, which takes the memory first"


def test_portable_maps_of_every_kind():
    """PBM, PGM and PPM, with samples as bytes or as text, of few levels, and with remarks between the numbers."""
    text = b" ".join(b"%d" % sample for sample in PIXELS.ravel())
    assert (decode_picture(b"P3\n56 40\n255\n" + text).pixels == PIXELS).all()
    head = b"P6 # by hand\n#\n56# wide\n 40\t\n#high\n255\n"
    assert (decode_picture(head + PIXELS.tobytes()).pixels == PIXELS).all()
    grey = decode_picture(b"P2 56 40 15 " + b" ".join(b"%d" % (level >> 4) for level in PIXELS[..., 0].ravel()))
    assert grey.channels == 1 and (grey.pixels[..., 0] == (PIXELS[..., 0] >> 4) * 17).all()
    white = PIXELS[..., 0] > 100
    packed = np.packbits(~white, axis=1).tobytes()
    for data in (b"P4\n56 40\n" + packed, b"P1 56 40\n" + b"".join(b"%d" % dark for dark in ~white.ravel())):
        two = decode_picture(data)
        assert (two.format, two.channels, two.keep) == ("pnm", 1, None) and (two.pixels[..., 0] == white * 255).all()


def test_a_portable_map_of_remarks_costs_no_time_and_no_memory():
    tracemalloc.start()
    for data in (
        b"P5" + b" " * 2_000_000 + b"x",
        b"P5 " + b"#\n" * 1_000_000,
        b"P3 1 1 255 " + b"#\n" * 1_000_000 + b"1 2 3",
    ):
        with suppress(ImageError):
            assert (decode_picture(data).pixels == [1, 2, 3]).all()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000


def test_portable_maps_that_8_bits_or_one_picture_do_not_hold():
    deep = (PIXELS.astype(">u2") * 257).tobytes()
    for data in (b"P6 56 40 65535 " + deep, b"P3 56 40 1023 " + b"7 " * PIXELS.size):
        assert decode_picture(data).keep == "16-bit"
    one = file_of(RGB, "pnm")
    assert decode_picture(one + one).keep == "multi-page"
    assert decode_picture(one + b"\n").keep is None
    for short in (b"P6 56 40 65535 " + deep[:-1], b"P4 57 40\n" + bytes(8 * 40 - 1), b"P3 56 40 255 " + b"7 " * 99):
        with pytest.raises(ImageError) as caught:
            decode_picture(short)
        assert caught.value.reason == "truncated"
    for odd in (
        b"P6 56 40 255",
        b"P5 56 forty 255 ",
        b"P6 56 0 255 ",
        b"P5 1 1 70000 12",
        b"P2 1 1 255 x",
        b"P1\n2 1 2",
    ):
        with pytest.raises(ImageError) as caught:
            decode_picture(odd)
        assert caught.value.reason == "corrupt"


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


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "tiff of few colours", "avif"])
def test_only_exif_turns_a_picture(format):
    """XMP repeats it, and stays as it was where a program has turned the pixels."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    format, _, few = format.partition(" ")
    picture = RGB.quantize(64) if few else RGB
    settings = {"tiffinfo": {700: xmp}} if format == "tiff" else {"xmp": xmp}
    if format == "png":
        settings = {"pnginfo": PngImagePlugin.PngInfo()}
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    data = file_of(picture, format, **FORMATS[format], **settings)
    assert xmp in data and decode_picture(data).pixels.shape == PIXELS.shape


def test_the_first_exif_of_a_jpeg_counts():
    first, second = Image.Exif(), Image.Exif()
    first[274], second[274] = 6, 3
    data = file_of(RGB, "jpeg", quality=95, exif=first.tobytes())
    (length,) = struct.unpack_from(">H", data, data.index(b"\xff\xe1") + 2)
    at, again = data.index(b"\xff\xe1") + 2 + length, second.tobytes()
    both = data[:at] + b"\xff\xe1" + struct.pack(">H", 2 + len(again)) + again + data[at:]
    assert (decode_picture(both).pixels == decode_picture(data).pixels).all()


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


def test_alpha_on_white_and_opaque_alpha_dropped():
    half = RGB.convert("RGBA")
    half.putalpha(51)
    expected = PIXELS * 0.2 + 255 * 0.8
    assert np.abs(decode_picture(file_of(half)).pixels - expected).max() <= 1
    opaque = decode_picture(file_of(RGB.convert("RGBA")))
    assert opaque.keep is None and (opaque.pixels == PIXELS).all()
    grey = decode_picture(file_of(GREY.convert("LA")))
    assert grey.keep is None and grey.channels == 1


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


def test_phone_jpeg_with_a_second_picture_behind_the_first():
    data = file_of(RGB, "mpo", save_all=True, append_images=[GREY], quality=95, subsampling=0)
    picture = decode_picture(data)
    assert picture.format == "jpeg" and picture.keep is None and close(picture.pixels, PIXELS)


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


def exif_block():
    exif = Image.Exif()
    exif[306] = "2026:11:27 00:00:00"
    exif.get_ifd(0x8769)[36867] = "2026:11:27 00:00:00"
    return exif.tobytes()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif", "heic"])
def test_what_a_file_holds_beside_its_picture_is_told(format):
    settings, xmp = FORMATS[format], b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    assert decode_picture(file_of(RGB, format, **settings)).extras == frozenset()
    assert decode_picture(file_of(RGB, format, exif=exif_block(), **settings)).extras == {"EXIF"}
    told = {"tiffinfo": {700: xmp}} if format == "tiff" else {"xmp": xmp}
    if format == "png":
        told = {"pnginfo": PngImagePlugin.PngInfo()}
        told["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    assert decode_picture(file_of(RGB, format, **told, **settings)).extras == {"XMP"}


def test_captions_and_what_lies_behind_a_picture_are_told_too():
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a program")
    text.add_text("Comment", "Created with a program")
    assert decode_picture(file_of(RGB, pnginfo=text)).extras == frozenset()
    text.add_text("Comment", "a remark", zip=True)
    assert decode_picture(file_of(RGB, pnginfo=text)).extras == {"text"}
    jpeg = file_of(RGB, "jpeg")
    caption = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + struct.pack(">I", 4) + b"\x1c\2\0\0"
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(caption)) + caption
    assert decode_picture(jpeg[:2] + segment + jpeg[2:]).extras == {"IPTC"}
    assert decode_picture(jpeg + jpeg).extras == {"other data"}
    assert decode_picture(jpeg + bytes(99) + b"\r\n").extras == frozenset()
    tiff = file_of(RGB, "tiff", tiffinfo={33723: b"\x1c\2\0\0"})
    assert decode_picture(tiff).extras == {"IPTC"}
    for remark, told in (("Grandmother, 1931", {"text"}), ("Created with a program", set())):
        assert decode_picture(file_of(RGB, "tiff", tiffinfo={270: remark})).extras == told
        for format in ("gif", "jpeg", "jpeg2000"):
            assert decode_picture(file_of(RGB, format, comment=remark.encode())).extras == told
    box = struct.pack(">I4sI", 12 + 43, b"auxC", 0) + b"urn:com:apple:photo:2020:aux:hdrgainmap\0\0\0\0"
    assert decode_picture(file_of(RGB, "heic") + box).extras == {"other data"}
