"""What only a file's own bytes keep, and 8-bit sRGB pixels would lose, is told."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from compressor.errors import ImageError
from compressor.images import decode_picture
from tests.pictures import GREY, PIXELS, RGB, close, file_of, heic_of, wide, with_chunk
from tests.pictures import silent as silent


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
        (file_of(translucent.convert("LA"), "tiff"), "alpha"),
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


def test_bytes_that_a_camera_left_behind_the_scan_keep_the_file():
    data = file_of(RGB, "jpeg", quality=95)
    picture = decode_picture(data[:-2] + bytes(9) + data[-2:])
    assert picture.keep == "irregular" and close(picture.pixels, PIXELS)


def test_colours_that_srgb_lacks_keep_the_file():
    profile = wide(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    muted = Image.fromarray(PIXELS // 8 + 96)
    picture = decode_picture(file_of(muted, icc_profile=profile))
    assert picture.keep is None and not close(picture.pixels, PIXELS // 8 + 96, 1)
    vivid = Image.fromarray(np.where(PIXELS > 128, 255, 0).astype(np.uint8))
    assert decode_picture(file_of(vivid, icc_profile=profile)).keep == "wide-gamut"


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
