"""What only a file's own bytes keep, and 8-bit sRGB pixels would lose, is told."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from compressor import colours
from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.limits import Limits
from tests.pictures import GREY, PIXELS, RGB, adobe_exif, close, file_of, heic_of, refusal, wide, with_chunk
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


def tiff_of(*pages, **settings):
    """Each of ``pages`` samples, or samples and settings of their own; tifffile writes what Pillow does not know."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            samples, own = page if isinstance(page, tuple) else (page, {})
            writer.write(samples, **settings | own)
    return file.getvalue()


def test_a_tiff_that_shows_a_preview_of_what_lies_behind_it_keeps_the_file():
    """As DNG, NEF and others do, whatever they are named; and pyramids of one picture."""
    small, deep = PIXELS[::4, ::4].copy(), PIXELS[..., 0].astype(np.uint16)
    for data in (
        tiff_of((small, {"subifds": 1, "photometric": "rgb"}), (deep, {"photometric": "minisblack"})),
        tiff_of((PIXELS, {"subifds": 1, "photometric": "rgb"}), (small, {"photometric": "rgb", "subfiletype": 1})),
        tiff_of(small, photometric="rgb", subfiletype=1),
    ):
        assert decode_picture(data).keep == "multi-page"


def test_a_tiff_with_layers_keeps_the_file():
    for block, keep in ((b"8BIMLayr", "layers"), (b"MIB861rL", "layers"), (b"8BIMPatt", None)):
        layers = b"Adobe Photoshop Document Data Block\0" + block + bytes(64)
        data = tiff_of(PIXELS, photometric="rgb", extratags=[(37724, 7, len(layers), layers, True)])
        picture = decode_picture(data)
        assert picture.keep == keep and (picture.pixels == PIXELS).all()


def test_a_tag_of_another_type_than_it_has_is_no_reason():
    data = tiff_of(PIXELS, photometric="rgb", subfiletype=1)
    entry = struct.pack("<HHII", 254, 4, 1, 1)
    assert decode_picture(data).keep == "multi-page" and data.count(entry) == 1
    assert decode_picture(data.replace(entry, struct.pack("<HHI4s", 254, 2, 4, b"one\0"))).keep is None


DEEP = PIXELS.astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("samples", "settings", "keep"),
    [
        (PIXELS.astype(np.float32) / 255, {"photometric": "rgb"}, "float"),
        (PIXELS.astype(np.float16) / 255, {"photometric": "rgb"}, "float"),
        (PIXELS[..., 0] / 255, {"photometric": "minisblack"}, "float"),
        (PIXELS.astype(np.uint32) << 24, {"photometric": "rgb"}, "16-bit"),
        (PIXELS.astype(np.uint16) << 4, {"photometric": "rgb", "bitspersample": 12}, "16-bit"),
        (DEEP[..., :2].copy(), {"photometric": "minisblack", "extrasamples": ["unspecified"]}, "16-bit"),
        (np.dstack([DEEP, DEEP[..., :2]]), {"photometric": "rgb", "extrasamples": ["unspecified"] * 2}, "16-bit"),
        (
            DEEP.transpose(2, 0, 1).astype(np.uint32).copy(),
            {"photometric": "rgb", "planarconfig": "separate"},
            "16-bit",
        ),
        (PIXELS, {"photometric": "cielab"}, "lab"),
        (DEEP, {"photometric": "cielab"}, "lab"),
    ],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_of_samples_that_pillow_does_not_know_keeps_the_file(samples, settings, keep, byteorder):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, byteorder=byteorder, extratags=[(274, "H", 1, 6, True)], **settings)
    picture = decode_picture(file.getvalue())
    assert picture.keep == keep and picture.pixels.shape == (*PIXELS.shape[1::-1], 3), "turned as it says"
    if keep != "lab" and picture.channels == 3 and not (byteorder == ">" and settings.get("bitspersample") == 12):
        assert close(picture.pixels, np.rot90(PIXELS, -1), 3)


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (3, 3, 3), (1, 1, 3)])
@pytest.mark.parametrize("apart", [True, False])
def test_a_deep_tiff_of_few_pixels_is_read_by_its_planes(shape, apart):
    samples = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.prod(shape)
    stored = samples.transpose(2, 0, 1).copy() if apart else samples
    planes = {"photometric": "rgb", "planarconfig": "separate" if apart else "contig"}
    picture = decode_picture(tiff_of(stored, **planes))
    low, high = samples.min(), samples.max()
    assert picture.keep == "float" and close(picture.pixels, (samples - low) / (high - low) * 255, 1)


def test_a_deep_tiff_takes_no_more_memory_than_others():
    with pytest.raises(ImageError, match="16 channels of 32 bits") as caught:
        decode_picture(
            tiff_of(np.zeros((20, 20, 16), np.float32), photometric="rgb", extrasamples=["unspecified"] * 13)
        )
    assert caught.value.reason == "unsupported"
    strange = np.float32([[[np.nan, np.inf, 0], [1, -np.inf, np.nan]]])
    for samples in (strange, strange * np.nan):
        assert decode_picture(tiff_of(samples, photometric="rgb")).keep == "float"
    tiled = tiff_of(np.zeros((16, 16, 3), np.float32), photometric="rgb", tile=(512, 1024))
    assert decode_picture(tiled, Limits(len(tiled), 16 * 16)).keep == "float", "as an archive's reader limits it"
    width = struct.pack("<HHII", 322, 4, 1, 1024)
    assert tiled.count(width) == 1
    assert refusal(tiled.replace(width, struct.pack("<HHII", 322, 4, 1, 65_520)), max_pixels=10**6) == "too_large"


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_deep_tiff_that_stops_early_is_truncated(compression):
    noise = np.random.default_rng(0).random((40, 56, 3), np.float32)
    for settings in ({}, {"tile": (16, 16)}):
        data = tiff_of(noise, photometric="rgb", compression=compression, **settings)
        assert refusal(data[: len(data) * 9 // 10]) == "truncated"


def test_a_tiff_that_nothing_here_decodes_is_refused_by_what_it_is():
    data = tiff_of(PIXELS, photometric="rgb")
    entry = struct.pack("<HHII", 259, 3, 1, 1)
    assert data.count(entry) == 1
    with pytest.raises(ImageError, match="TIFF's compression 50002 is not read here: save it") as caught:
        decode_picture(data.replace(entry, struct.pack("<HHII", 259, 3, 1, 50002)))
    assert caught.value.reason == "unsupported"
    five = tiff_of(np.dstack([PIXELS, PIXELS[..., :2]]), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match="5 channels of 8 bits, photometric interpretation 1") as caught:
        decode_picture(five)
    assert caught.value.reason == "unsupported"
    assert refusal(tiff_of(PIXELS.astype(np.float32), photometric="rgb"), max_pixels=2_239) == "too_large"


def test_a_png_s_profile_counts_before_srgb_and_code_points_before_both():
    profile = wide(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    muted = Image.fromarray(PIXELS // 8 + 96)
    data = file_of(muted, icc_profile=profile)
    shown = decode_picture(data).pixels
    assert (shown != np.asarray(muted)).any()
    assert (decode_picture(with_chunk(data, b"sRGB", b"\0")).pixels == shown).all()
    by_numbers = decode_picture(with_chunk(data, b"cICP", bytes([1, 13, 0, 1])))
    assert by_numbers.keep is None and (by_numbers.pixels == np.asarray(muted)).all()
    for unsaid in ([2, 2, 0, 1], [2, 13, 0, 1], [1, 2, 0, 1]):
        assert (decode_picture(with_chunk(data, b"cICP", bytes(unsaid))).pixels == shown).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_camera_s_adobe_rgb_without_a_profile_is_shown_as_it_was_meant(order):
    meant = PIXELS // 2 + 64
    srgb = ImageCms.createProfile("sRGB")
    adobe = ImageCms.ImageCmsProfile(io.BytesIO(colours.adobe_rgb()))
    samples = ImageCms.profileToProfile(Image.fromarray(meant), srgb, adobe, outputMode="RGB")
    data = file_of(samples, "jpeg", quality=98, subsampling=0, exif=adobe_exif(order=order))
    picture = decode_picture(data)
    assert picture.keep is None and close(picture.pixels, meant, 1.5)
    assert not close(decode_picture(file_of(samples, "jpeg", quality=98, subsampling=0)).pixels, meant, 4)
    as_usual = file_of(
        samples, "jpeg", quality=98, subsampling=0, exif=adobe_exif(interoperability=b"R98\0", order=order)
    )
    assert close(decode_picture(as_usual).pixels, np.asarray(samples), 1.5)
    edited = file_of(samples, "jpeg", quality=98, subsampling=0, exif=adobe_exif(space=1, order=order))
    assert close(decode_picture(edited).pixels, np.asarray(samples), 1.5), "a program has made sRGB of it"
    vivid = Image.fromarray(np.where(PIXELS > 128, 255, 0).astype(np.uint8))
    assert decode_picture(file_of(vivid, "jpeg", exif=adobe_exif(order=order))).keep == "wide-gamut"
    own = file_of(
        samples, "jpeg", quality=98, exif=adobe_exif(order=order), icc_profile=ImageCms.ImageCmsProfile(srgb).tobytes()
    )
    assert close(decode_picture(own).pixels, np.asarray(samples), 3), "a profile counts before it"


def test_adobe_rgb_is_what_its_specification_says():
    """Adobe RGB (1998), 4.3.1: greys are a power of 563 / 256, green has its place."""
    adobe = ImageCms.ImageCmsProfile(io.BytesIO(colours.adobe_rgb()))
    lab = ImageCms.buildTransform(adobe, ImageCms.createProfile("LAB", 5000), "RGB", "LAB", 1)
    grey = Image.fromarray(np.full((1, 1, 3), 128, np.uint8))
    lightness = 116 * ((128 / 255) ** (563 / 256)) ** (1 / 3) - 16
    assert abs(np.asarray(lab.apply(grey))[0, 0, 0] / 2.55 - lightness) < 0.5
    green = np.asarray(lab.apply(Image.fromarray(np.uint8([[[0, 255, 0]]]))))[0, 0].astype(np.int8)
    x, y, z = (v / w for v, w in zip((0.20528, 0.62567, 0.06087), (0.9642, 1, 0.8249), strict=True))
    expected = (500 * (x ** (1 / 3) - y ** (1 / 3)), 200 * (y ** (1 / 3) - z ** (1 / 3)))
    assert max(-128, expected[0]) == pytest.approx(green[1], abs=1) and expected[1] == pytest.approx(green[2], abs=1)


@pytest.mark.parametrize(
    ("kind", "keep"),
    [
        (0x020001, "multi-page"),
        (0x020002, "multi-page"),
        (0x020003, "multi-page"),
        (0x010001, None),
        (0x030000, None),
        (0, None),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_that_is_one_of_several_views_keeps_the_file(kind, keep, order):
    entries = struct.pack(order + "IIIHH", 0x20000000 | 0x030000, 99, 0, 0, 0) + struct.pack(
        order + "IIIHH", kind, 99, 99, 0, 0
    )
    index = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 3)
    index += struct.pack(order + "HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(order + "HHII", 0xB001, 4, 1, 2)
    index += struct.pack(order + "HHII", 0xB002, 7, len(entries), 50) + bytes(4) + entries
    one = file_of(RGB, "jpeg", quality=95)
    data = one[:2] + b"\xff\xe2" + struct.pack(">H", 6 + len(index)) + b"MPF\0" + index + one[2:] + one
    picture = decode_picture(data)
    assert picture.keep == keep and close(picture.pixels, PIXELS)
    for cut in range(6, len(index)):
        decode_picture(one[:2] + b"\xff\xe2" + struct.pack(">H", 6 + cut) + b"MPF\0" + index[:cut] + one[2:])


def test_a_bmp_has_a_profile_too():
    plain = file_of(Image.fromarray(PIXELS // 8 + 96), "bmp")
    (old,) = struct.unpack_from("<I", plain, 14)

    def with_space(space, profile=b""):
        end = 124 + len(plain) - 14 - old
        header = struct.pack("<I", 124) + plain[18 : 14 + old] + bytes(16) + space + bytes(52)
        header += struct.pack("<II", end, len(profile)) + bytes(4)
        return plain[:10] + struct.pack("<I", 14 + 124) + header + plain[14 + old :] + profile

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (with_space(b"BGRs"), with_space(b"DEBM", srgb), with_space(b"DEBM", b"broken" * 30)):
        picture = decode_picture(data)
        assert picture.keep is None and (picture.pixels == PIXELS // 8 + 96).all()
    wider = decode_picture(with_space(b"DEBM", wide(srgb)))
    assert wider.keep is None and (wider.pixels != PIXELS // 8 + 96).any()
    assert decode_picture(with_space(b"KNIL")).keep == "wide-gamut", "its profile is another file"


def test_a_damaged_jpeg_of_several_views_is_damaged():
    entries = struct.pack("<IIIHH", 0x020002, 99, 0, 0, 0)
    index = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0xB002, 7, 16, 26, 0) + entries
    one = file_of(RGB, "jpeg", quality=95)
    data = one[:2] + b"\xff\xe2" + struct.pack(">H", 6 + len(index)) + b"MPF\0" + index + one[2:]
    assert decode_picture(data).keep == "multi-page"
    assert refusal(data[: len(data) * 2 // 3] + b"\xff\xd9") == "corrupt"
