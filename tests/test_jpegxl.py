"""JPEG XL: headers of every kind, written bit by bit before frames that libjxl coded, are read as libjxl reads them."""

import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.jpegxl import read_header
from tests.pictures import GREY, PIXELS, RGB, close, file_of, refusal

START = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 20, b"ftyp") + b"jxl \0\0\0\0jxl "
Fields = list[tuple[int, int]]  # each a value and its bits, the lowest first

SIZE: Fields = [(1, 1), (40 // 8 - 1, 5), (0, 3), (56 // 8 - 1, 5)]
EIGHT_BITS: Fields = [(0, 1), (0, 2)]
SRGB: Fields = [(1, 1)]
COLOUR: Fields = [(0, 1), (0, 1), (0, 2)]  # not as usual, no profile, RGB
D65: Fields = [(1, 2)]
GAMUT: Fields = [(1, 2)]
CURVE: Fields = [(0, 1), (2, 2), (11, 4)]  # sRGB's
INTENT: Fields = [(0, 2)]


def enum(value: int) -> Fields:
    return [(value, 2)] if value < 2 else [(2, 2), (value - 2, 4)] if value < 18 else [(3, 2), (value - 18, 6)]


def header(
    *, extra: Fields | None = None, depth: Fields = EIGHT_BITS, channels: Fields | None = None, colour: Fields = SRGB,
    xyb: int = 0,
) -> bytes:  # fmt: skip
    """A codestream's first bytes; ``extra`` are orientation and what may follow it."""
    fields = [*SIZE, (0, 1), *([(1, 1), *extra] if extra else [(0, 1)]), *depth, (1, 1), *(channels or [(0, 2)])]
    fields += [(xyb, 1), *colour, *([(1, 1)] if extra else []), (0, 2), (1, 1)]  # usual tones, no extension
    value = at = 0
    for field, count in fields:
        value |= field << at
        at += count
    return b"\xff\x0a" + value.to_bytes(-(-at // 8), "little")


def frames(picture: Image.Image = RGB) -> bytes:
    """What libjxl coded without loss, behind the headers."""
    data = file_of(picture, "jpegxl")
    grey = [(0, 1), (0, 1), (1, 2), *D65, *CURVE, *INTENT]
    plain = header(colour=grey if picture.mode == "L" else SRGB)
    assert data.startswith(plain)
    return data[len(plain) :]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_once(orientation: int) -> None:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's Transpose that makes it upright
    upright = np.asarray(RGB.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else RGB)
    data = header(extra=[(orientation - 1, 3), (0, 1), (0, 1), (0, 1)]) + frames()
    picture = decode_picture(data)
    assert (picture.format, picture.channels, picture.keep) == ("jpegxl", 3, None)
    assert (picture.pixels == upright).all()


def test_a_size_to_show_it_at_changes_nothing() -> None:
    data = header(extra=[(0, 3), (1, 1), (1, 1), (3, 5), (2, 3), (0, 1), (0, 1)]) + frames()
    assert (decode_picture(data).pixels == PIXELS).all()


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("container", [True, False])
def test_colour_and_grey(lossless: bool, container: bool) -> None:
    settings = {"lossless": lossless, "usecontainer": container} | ({} if lossless else {"level": 95})
    for picture, channels in ((PIXELS, 3), (np.asarray(GREY), 1)):
        found = decode_picture(imagecodecs.jpegxl_encode(picture, **settings))
        assert (found.channels, found.keep) == (channels, None)
        assert close(found.pixels, picture if channels == 3 else np.repeat(picture[..., None], 3, 2))


def test_a_container_may_hold_it_in_parts() -> None:
    data = file_of(RGB, "jpegxl")
    parts = [data[:1], data[1:9], data[9:]]
    numbers = [0, 1, 1 << 31 | 2]
    boxes = b""
    for part, number in zip(parts, numbers, strict=True):
        boxes += struct.pack(">I4sI", 12 + len(part), b"jxlp", number) + part
    assert (decode_picture(START + boxes).pixels == PIXELS).all()
    assert refusal(START + boxes[:-1]) == "truncated"


def test_what_lies_beside_the_picture_in_a_container_is_told() -> None:
    data = file_of(RGB, "jpegxl")
    for content, told in (
        (b"Exif\0\0\0\0MM\0*", {"EXIF"}),
        (b"brobxml \x0b\x02\x80", {"XMP"}),
        (b"jhgm\0", {"other data"}),
        (b"jbrd\0", set()),
    ):
        box = struct.pack(">I", 4 + len(content)) + content
        picture = decode_picture(START + box + struct.pack(">I4s", 8 + len(data), b"jxlc") + data)
        assert picture.extras == told and (picture.pixels == PIXELS).all()


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_few_bits_have_all_of_their_range(bits: int) -> None:
    few = PIXELS >> (8 - bits)
    depth = [(0, 1), (3, 2), (bits - 1, 6)]
    data = header(depth=depth) + frames(Image.fromarray(few))
    expected = np.round(few * (255 / (2**bits - 1))).astype(np.uint8)
    picture = decode_picture(data)
    assert picture.keep is None and (picture.pixels == expected).all()


@pytest.mark.parametrize(
    ("samples", "settings", "why"),
    [
        (PIXELS.astype(np.uint16) << 2, {"bitspersample": 10}, "16-bit"),
        (PIXELS.astype(np.uint16) << 4, {"bitspersample": 12}, "16-bit"),
        (PIXELS.astype(np.uint16) * 257, {}, "16-bit"),
        (PIXELS.astype(np.float32) / 255, {}, "float"),
        (np.dstack([PIXELS, PIXELS[..., :1]]), {}, "alpha"),
        (np.dstack([PIXELS[..., 0], PIXELS[..., 1]]), {}, "alpha"),
        (np.stack([PIXELS, PIXELS[::-1]]), {}, "animated"),
    ],
    ids=["10 bits", "12 bits", "16 bits", "float", "alpha", "grey and alpha", "animated"],
)
def test_what_8_bits_do_not_hold_is_kept_as_it_came(samples: np.ndarray, settings: dict[str, int], why: str) -> None:
    picture = decode_picture(imagecodecs.jpegxl_encode(samples, lossless=True, **settings))
    assert picture.keep == why and picture.pixels.shape == PIXELS.shape
    if why != "alpha":  # of which the preview is on white
        assert close(picture.pixels, PIXELS, 2)


def test_alpha_that_is_opaque_everywhere_is_dropped() -> None:
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    picture = decode_picture(imagecodecs.jpegxl_encode(opaque, lossless=True))
    assert picture.keep is None and (picture.pixels == PIXELS).all()


def points(*coordinates: float) -> Fields:
    """Millionths, of which the lowest bit is the sign, in as few bits as will do."""
    fields: Fields = []
    for coordinate in coordinates:
        value = round(coordinate * 2e6)
        choice = max(n for n, least in enumerate((0, 2**19, 2**20, 2**21)) if value >= least)
        fields += [(choice, 2), (value - (0, 2**19, 2**20, 2**21)[choice], (19, 19, 20, 21)[choice])]
    return fields


WIDE = [*enum(2), *points(1.1, 0.27, 0.17, 0.797, 0.131, 0.046)]  # primaries, each in another number of bits


@pytest.mark.parametrize(
    ("colour", "keep"),
    [
        ([*COLOUR, *D65, *GAMUT, *CURVE, *INTENT], None),
        ([*COLOUR, *D65, *GAMUT, (0, 1), (1, 2), *INTENT], "wide-gamut"),  # BT.709's curve
        ([*COLOUR, *D65, *enum(11), *CURVE, *INTENT], "wide-gamut"),  # Display P3
        ([*COLOUR, *D65, *enum(9), (0, 1), *enum(16), *INTENT], "wide-gamut"),  # BT.2100, PQ
        ([*COLOUR, *D65, *GAMUT, (0, 1), *enum(18), *INTENT], "wide-gamut"),  # HLG
        ([*COLOUR, *D65, *GAMUT, (0, 1), *enum(17), *INTENT], "wide-gamut"),  # a cinema's
        ([*COLOUR, *D65, *GAMUT, (1, 1), (4_545_455, 24), *INTENT], "wide-gamut"),  # a power of 2.2
        ([*COLOUR, *enum(10), *GAMUT, *CURVE, *INTENT], "wide-gamut"),  # equal energy is white
        ([*COLOUR, *enum(2), *points(0.3457, 0.3585), *GAMUT, *CURVE, *INTENT], "wide-gamut"),
        ([*COLOUR, *D65, *WIDE, *CURVE, *INTENT], "wide-gamut"),
    ],
)
def test_colours_that_are_not_srgb_s_are_kept_as_they_came(colour: Fields, keep: str | None) -> None:
    picture = decode_picture(header(colour=colour) + frames())
    assert picture.keep == keep
    assert (picture.pixels == PIXELS).all()


def test_a_profile_s_colours_are_kept_as_they_came() -> None:
    assert read_header(header(colour=[(0, 1), (1, 1), (0, 2)]) + bytes(99)).keep == "wide-gamut"
    assert read_header(header(colour=[(0, 1), (0, 1), *enum(2)]) + bytes(99)).keep == "wide-gamut", "XYB"


NAMED = [(1, 2), (3, 4), *((ord(letter), 8) for letter in "hot")]


@pytest.mark.parametrize(
    ("channels", "keep"),
    [
        ([(1, 2), (1, 1)], None),  # alpha as usual: its samples tell
        ([(1, 2), (0, 1), *enum(0), *EIGHT_BITS, (0, 2), *NAMED, (1, 1)], None),
        ([(1, 2), (0, 1), *enum(1), *EIGHT_BITS, (1, 2), (0, 2)], "alpha"),  # depth
        ([(1, 2), (0, 1), *enum(2), *EIGHT_BITS, (3, 2), (2, 3), (0, 2), *[(7, 16)] * 4], "alpha"),  # a spot colour
        ([(1, 2), (0, 1), *enum(4), *EIGHT_BITS, (0, 2), (0, 2)], "cmyk"),
        ([(1, 2), (0, 1), *enum(5), *EIGHT_BITS, (0, 2), (0, 2), (2, 2), (3, 4)], "alpha"),  # a colour filter
        ([(2, 2), (0, 4), (1, 1), (1, 1)], "alpha"),  # two
    ],
)
@pytest.mark.parametrize("wide", [True, False])
def test_channels_beside_the_colours(channels: Fields, keep: str | None, wide: bool) -> None:
    """What follows them is read where it is: the colours are told behind."""
    colour = [*COLOUR, *D65, *enum(11), *CURVE, *INTENT] if wide else SRGB
    found = read_header(header(channels=channels, colour=colour) + bytes(99))
    assert found.keep == (keep or ("wide-gamut" if wide else None))


@pytest.mark.parametrize(
    "preview", [[(1, 1), (2, 2), (3, 5), (1, 3)], [(0, 1), (3, 2), (9, 12), (0, 3), (0, 2), (5, 6)]]
)
def test_a_preview_and_an_animation_are_passed_over(preview: Fields) -> None:
    colour = [*COLOUR, *D65, *enum(11), *CURVE, *INTENT]
    extra = [(0, 3), (0, 1), (1, 1), *preview, (0, 1)]
    assert read_header(header(extra=extra, colour=colour) + bytes(99)).keep == "wide-gamut"
    moving = [(0, 3), (0, 1), (0, 1), (1, 1), (2, 2), (23, 10), (1, 2), (1, 2), (4, 3), (0, 1)]
    assert read_header(header(extra=moving, depth=[(0, 1), (1, 2)]) + bytes(99)).keep == "animated"
    assert read_header(header(extra=moving, depth=[(0, 1), (1, 2)]) + bytes(99)).depth == 10


@pytest.mark.parametrize("planes", [2, 3, 5])
def test_grey_with_channels_beside_it_has_its_own_size(planes: int) -> None:
    """libjxl's binding hands those out as planes, and grey with alpha by the pixel."""
    samples = np.full((planes, 40, 56), 255, np.uint8)
    samples[0] = PIXELS[..., 0]
    data = imagecodecs.jpegxl_encode(samples, lossless=True, planar=True, photometric="gray")
    picture = decode_picture(data)
    assert picture.pixels.shape == (40, 56, 3) and (picture.channels == 1 or planes > 2)
    assert picture.keep == "alpha", "of no kind"
    assert (picture.pixels[..., 0] == PIXELS[..., 0]).all()


def test_more_channels_than_memory_is_planned_for_are_refused() -> None:
    with pytest.raises(ImageError, match="4096 channels beside its colours") as caught:
        decode_picture(header(channels=[(3, 2), (4095, 12)]) + bytes(999))
    assert caught.value.reason == "unsupported"


def test_headers_that_end_early() -> None:
    whole = header(channels=[(1, 2), (0, 1), *enum(0), *EIGHT_BITS, (0, 2), (3, 2), (1_023, 10), (0, 1)])
    with pytest.raises(ImageError, match="before its JPEG XL headers") as caught:
        read_header(whole + bytes(20))
    assert caught.value.reason == "truncated"
    assert read_header(whole + bytes(2_000)).width == 56
    for data in (b"\xff\x0a", START, START + b"\0\0\0\x08free", b"\xff\x0a" + bytes(9)):
        assert refusal(data) == "corrupt"
