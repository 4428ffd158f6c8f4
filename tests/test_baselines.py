"""One battery over all standard formats: round trip, quality, damage, sizes; and what counts as payload."""

import io
import re
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from compressor.baselines import LOSSLESS, STANDARD, StandardCodec
from compressor.codec import Codec, Encoded
from compressor.containers import payload_size
from compressor.errors import CodecError, ImageError
from compressor.images import decode_picture
from compressor.jpegxl import read_size
from compressor.metrics import psnr
from compressor.picture_writing import encode_picture
from compressor.quality import encode_to_target

LOSSY = [name for name in STANDARD if name != LOSSLESS]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [np.ascontiguousarray(data.astronaut()[60:188, 150:278]), np.ascontiguousarray(data.coffee()[:57, :71])]


@pytest.mark.parametrize("name", STANDARD)
def test_round_trip_keeps_shape_and_resemblance(name: str, pictures: list[np.ndarray]) -> None:
    codec = STANDARD[name]
    assert isinstance(codec, Codec)
    encoded = codec.encode(pictures, 80)
    for source, one, decoded in zip(pictures, encoded, codec.decode(encoded), strict=True):
        assert (one.codec, one.width, one.height, one.channels) == (name, source.shape[1], source.shape[0], 3)
        assert decoded.shape == source.shape and decoded.dtype == np.uint8 and decoded.flags.c_contiguous
        assert psnr(source, decoded) > 28


def test_lossless_loses_nothing_and_has_one_quality(pictures: list[np.ndarray]) -> None:
    codec = STANDARD[LOSSLESS]
    encoded = codec.encode(pictures, -1)
    assert len(codec.qualities) == 0 and {one.quality for one in encoded} == {-1}
    assert all(np.array_equal(a, b) for a, b in zip(pictures, codec.decode(encoded), strict=True))


@pytest.mark.parametrize("name", LOSSY)
def test_more_quality_costs_more_bytes_and_one_call_may_hold_several(name: str, pictures: list[np.ndarray]) -> None:
    codec = STANDARD[name]
    encoded = codec.encode([pictures[0]] * 3, [10, 50, 90])
    sizes = [len(one.payload) for one in encoded]
    decibels = [psnr(pictures[0], decoded) for decoded in codec.decode(encoded)]
    assert sizes == sorted(sizes) and decibels == sorted(decibels)
    assert [one.quality for one in encoded] == [10, 50, 90]


@pytest.mark.parametrize("name", STANDARD)
def test_one_pixel_and_odd_sides(name: str) -> None:
    codec = STANDARD[name]
    for shape in ((1, 1, 3), (3, 17, 3)):
        [decoded] = codec.decode(codec.encode([np.full(shape, 90, np.uint8)], 90))
        assert decoded.shape == shape


@pytest.mark.parametrize("name", STANDARD)
def test_damage_is_an_error(name: str, pictures: list[np.ndarray]) -> None:
    codec = STANDARD[name]
    [encoded] = codec.encode(pictures[:1], 50)
    for damaged in (
        replace(encoded, payload=b""),
        replace(encoded, payload=b"no picture at all"),
        replace(encoded, payload=encoded.payload[: len(encoded.payload) // 2]),
        replace(encoded, width=encoded.width + 1),
    ):
        with pytest.raises(CodecError):
            codec.decode([damaged])


def test_wrong_use_is_told(pictures: list[np.ndarray]) -> None:
    with pytest.raises(CodecError, match="jpeg, webp, avif, avif-444, av1, av1-444, jpegxl"):
        StandardCodec("gif")
    with pytest.raises(CodecError, match="quality 0 is outside 1 to 100 of webp"):
        STANDARD["webp"].encode(pictures, 0)


@pytest.mark.parametrize("name", STANDARD)
def test_description_names_settings_and_versions(name: str) -> None:
    text = STANDARD[name].description
    assert "one thread (lib" in text and "unknown" not in text and "{" not in text


def test_effort_changes_the_work_and_not_the_reader(pictures: list[np.ndarray]) -> None:
    fast = StandardCodec("jpegxl", effort=3)
    assert "effort 3" in fast.description and fast.id == "jpegxl"
    STANDARD["jpegxl"].decode(fast.encode(pictures, 60))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("jpeg", 250, 640),  # two quantisation tables, four Huffman tables, frame and scan headers
        ("webp", 20, 21),  # RIFF and one chunk's header, a byte of padding
        ("avif", 200, 330),  # boxes
        ("avif-444", 200, 330),
        ("jpegxl", 0, 0),  # a bare codestream
    ],
)
def test_payload_leaves_out_what_each_file_repeats(
    name: str, least: int, most: int, pictures: list[np.ndarray]
) -> None:
    for encoded in STANDARD[name].encode(pictures, 50):
        assert least <= len(encoded.payload) - payload_size(encoded.payload) <= most


def test_payload_of_a_progressive_jpeg_counts_every_scan(pictures: list[np.ndarray]) -> None:
    sizes = []
    for progressive in (False, True):
        file = io.BytesIO()
        Image.fromarray(pictures[0]).save(file, "JPEG", quality=70, optimize=True, progressive=progressive)
        sizes.append(payload_size(file.getvalue()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x02ab\xff", b"RIFF\0\0\0\0WEBP", b"anything"]
)
def test_payload_size_takes_any_bytes(data: bytes) -> None:
    assert 0 <= payload_size(data) <= len(data)


# Earlier releases wrote them, of a picture that shades from black: 20 x 12 pixels, quality 60.
FROZEN = {
    "av1": bytes.fromhex(
        "12000a091810e76d9020206840323917878786218001e4011000aeb6dc68afd7cd167d2c4f8b735e11fc2d5da656f2e5cca4264084da49fd72"
        "f10489276dfed9fe523c6593d397a0"
    ),
    "av1-444": bytes.fromhex(
        "12000a083810e76ca021a0d23233164000004000c324042e8958246b2607f2d7a875b9e849daa7c077dceb8584952df380e79c78f7c2"
        "f04bf6f705598df40bd16e"
    ),
}
WITHOUT_CONTAINER = pytest.mark.parametrize(("bare", "whole"), [("av1", "avif"), ("av1-444", "avif-444")])


@WITHOUT_CONTAINER
def test_av1_is_an_avif_file_without_its_container(bare: str, whole: str, pictures: list[np.ndarray]) -> None:
    files, payloads = STANDARD[whole].encode(pictures, 60), STANDARD[bare].encode(pictures, 60)
    for file, payload in zip(files, payloads, strict=True):
        assert file.payload.endswith(payload.payload) and len(file.payload) - len(payload.payload) == 275
        assert STANDARD[bare].bare(file) == payload
    for one, other in zip(STANDARD[whole].decode(files), STANDARD[bare].decode(payloads), strict=True):
        assert np.array_equal(one, other)


@WITHOUT_CONTAINER
def test_the_format_tells_the_container_that_av1_leaves_out(bare: str, whole: str, pictures: list[np.ndarray]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    section = re.search(rf"\*\*`{bare}`\*\*.*?\n\n(?=\*\*)", text, re.DOTALL)[0]
    words = re.search(r"\*\*`av1`\*\*.*?```\n(.*?)```", text, re.DOTALL)[1]
    for old, new in re.findall(r"`(\w+)` instead of `(\w+)`", section):
        assert words.count(new) == 1
        words = words.replace(new, old)
    for file, payload in zip(STANDARD[whole].encode(pictures, 60), STANDARD[bare].encode(pictures, 60), strict=True):
        size = len(payload.payload)
        numbers = {"N": size, "N+8": size + 8, "WIDTH": file.width, "HEIGHT": file.height}
        container = "".join(f"{numbers[word]:08x}" if word in numbers else word for word in words.split())
        assert bytes.fromhex(container) + payload.payload == file.payload


@pytest.mark.parametrize("name", FROZEN)
def test_av1_of_an_earlier_release_decodes(name: str) -> None:
    row, column = np.mgrid[:12, :20]
    picture = np.stack([column * 12, row * 20, (row + column) * 8], axis=-1)
    [decoded] = STANDARD[name].decode([Encoded(FROZEN[name], 20, 12, 3, name, 60, "")])
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@WITHOUT_CONTAINER
def test_a_container_that_is_not_the_usual_one_stays_on_its_file(
    bare: str, whole: str, pictures: list[np.ndarray]
) -> None:
    large = np.zeros((512, 512, 3), np.uint8)  # of a higher level of AV1
    [file] = STANDARD[whole].encode([large], 60)
    assert STANDARD[bare].bare(file) is None
    [file] = STANDARD["avif"].encode(pictures[:1], 100)  # RGB
    assert STANDARD[bare].bare(file) is None
    [file] = STANDARD[whole].encode(pictures[:1], 60)
    swapped = file.payload.translate(bytes.maketrans(b"AB", b"BA"))  # the profile's brand, MA1A or MA1B
    assert STANDARD[bare].bare(replace(file, payload=swapped)) is None
    assert STANDARD[bare].bare(replace(file, payload=b"")) is None
    assert STANDARD[bare].bare(replace(file, width=file.width + 1)) is None


def test_colours_side_by_side_take_fewer_bytes_with_all_of_them() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 200, 200
    small, large = (encode_to_target(STANDARD[name], [stripes], 36.0)[0] for name in ("avif-444", "avif"))
    assert small is not None and (large is None or len(small.encoded.payload) < len(large.encoded.payload))


@pytest.mark.parametrize(
    ("name", "side"), [("jpeg", 65_500), ("webp", 16_382), ("avif", 32_768), ("avif-444", 32_768), ("jpegxl", 70_000)]
)
def test_the_longest_side_that_suits_reads_back(name: str, side: int) -> None:
    for pixels in (np.zeros((1, side, 3), np.uint8), np.zeros((side, 1, 3), np.uint8)):
        assert STANDARD[name].suits(*pixels.shape[:2])
        assert STANDARD[name].decode(STANDARD[name].encode([pixels], 50))[0].shape == pixels.shape


@pytest.mark.parametrize(("height", "width"), [(1, 1), (72, 2048), (1152, 128), (384, 384)])
@pytest.mark.parametrize("quality", [1, 99])
@pytest.mark.parametrize("name", FROZEN)
def test_av1_encodes_what_suits_it(name: str, height: int, width: int, quality: int) -> None:
    assert STANDARD[name].suits(height, width)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    codec = StandardCodec(name, effort=9)
    assert codec.decode(codec.encode([noise], quality))[0].shape == noise.shape


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("av1", 72, 2049), ("av1", 1153, 128), ("av1", 385, 384), ("webp", 1, 16_383), ("jpeg", 65_501, 1)],
)
def test_what_does_not_suit_a_format_is_an_error(name: str, height: int, width: int) -> None:
    assert not STANDARD[name].suits(height, width)
    with pytest.raises(CodecError, match=f"{name} holds up to .* pixels, the picture has {width} x {height}"):
        STANDARD[name].encode([np.zeros((height, width, 3), np.uint8)], 50)


@pytest.mark.parametrize("width", [19, 21, 40])
@pytest.mark.parametrize("name", FROZEN)
def test_av1_of_another_size_than_its_rows_is_an_error(name: str, width: int) -> None:
    with pytest.raises(CodecError, match="20 x 12 pixels"):
        STANDARD[name].decode([Encoded(FROZEN[name], width, 12, 3, name, 60, "")])


@pytest.mark.parametrize("name", FROZEN)
def test_av1_holds_one_picture_and_no_more(name: str, pictures: list[np.ndarray]) -> None:
    """libavif would take the last header of several, and scale what that promises to the row's size."""
    codec = STANDARD[name]
    small, large = codec.encode([picture[:side, :side] for picture, side in zip(pictures, (16, 48), strict=True)], 60)
    for tail in (b"\0", large.payload, large.payload[2:], small.payload):
        with pytest.raises(CodecError, match="a temporal delimiter, a sequence header and a frame|cut short"):
            codec.decode([replace(small, payload=small.payload + tail)])
    with pytest.raises(CodecError, match="cut short"):
        codec.decode([replace(small, payload=small.payload[:-1])])


@pytest.mark.parametrize("name", [name for name in STANDARD if STANDARD[name].writes_files])
def test_a_file_of_another_size_than_its_row_is_not_decoded(
    name: str, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = STANDARD[name]
    [encoded] = codec.encode(pictures[:1], 60 if codec.qualities else -1)
    decoded: list[bytes] = []
    monkeypatch.setattr(codec, "_format", replace(codec._format, decode=lambda file: decoded.append(file)))
    for width, height in ((16, 16), (128, 127), (129, 128)):
        with pytest.raises(CodecError, match=f"holds 128 x 128 pixels, its row says {width} x {height}"):
            codec.decode([replace(encoded, width=width, height=height)])
    assert not decoded


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (1, 1),
        (8, 256),
        (264, 40),
        (120, 100),
        (160, 120),
        (150, 100),
        (160, 90),
        (125, 100),
        (200, 100),
        (1, 9_000),
        (262_145, 1),
    ],
)
def test_a_jpegxl_tells_its_size_in_every_way_that_it_may(width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    [encoded] = STANDARD[LOSSLESS].encode([pixels], -1)
    assert read_size(encoded.payload) == (width, height)
    for at in range(min(len(encoded.payload), 99)):
        with suppress(ImageError):
            read_size(encoded.payload[:at])


def test_a_jpegxl_container_is_read_by_its_outermost_boxes() -> None:
    [encoded] = STANDARD[LOSSLESS].encode([np.zeros((40, 30, 3), np.uint8)], -1)
    start, size = b"\0\0\0\x0cJXL \r\n\x87\n", len(encoded.payload)
    hidden = struct.pack(">I", 28) + b"freejxlc\xff\x0a" + bytes(14)
    assert read_size(start + hidden + struct.pack(">I", size + 8) + b"jxlc" + encoded.payload) == (30, 40)
    assert read_size(start + struct.pack(">I4sQ", 1, b"jxlc", size + 16) + encoded.payload) == (30, 40)
    assert read_size(start + struct.pack(">I4sI", size + 12, b"jxlp", 0) + encoded.payload) == (30, 40)
    for odd in (start, start + hidden, start + hidden + encoded.payload, start + b"\0\0\0\0free" + encoded.payload):
        with pytest.raises(ImageError, match="no JPEG XL codestream"):
            read_size(odd)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (10, 20_000)])
def test_noise_is_a_jpeg_at_any_quality(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    codec = STANDARD["jpeg"]
    for quality in (30, 90, 100):
        [encoded] = codec.encode([noise], quality)
        assert psnr(noise, codec.decode([encoded])[0]) > 8
    for channels, decibel in ((3, None), (3, 34.0), (1, None)):
        restored = decode_picture(encode_picture(noise, channels, "jpeg", decibel))
        assert restored.pixels.shape == noise.shape and restored.channels == channels
