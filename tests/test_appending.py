"""Pictures from memory: archived as a run archives their files, all in one commit or none, each refused one named."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import compressor.quality
from compressor.appending import NotAppended
from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import STANDARD
from compressor.defaults import MOST_PSNR
from compressor.encoding import EncodeOptions, encode_batch
from compressor.errors import ArchiveError, CodecError, ImageError, LatentpackError
from compressor.limits import Limits
from compressor.metrics import psnr
from compressor.parquet import QuarantineRow
from compressor.sources import Source
from tests.codecs import smooth_pictures, tiny_artifact
from tests.rows import add, picture_row


def file_of(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def as_read(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def own_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("codec") / "own.safetensors"
    path.write_bytes(tiny_artifact("v5"))
    return str(path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """An archive that the tests of properties go on filling."""
    return Archive.create(str(tmp_path_factory.mktemp("archives") / "filled"))


SIDES = st.integers(1, 40)
SHAPES = st.one_of(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, st.just(3)))


@settings(max_examples=30)
@given(pixels=SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)), smooth=st.booleans())
def test_any_array_comes_back_at_the_target_or_exactly(filled: Archive, own_codec: str, pixels: Any, smooth: bool):
    if smooth:
        height, width = pixels.shape[:2]
        picture = smooth_pictures(1, height, width, seed=int(pixels.flat[0]))[0]
        pixels = picture if pixels.ndim == 3 else picture[:, :, 0]
    before = filled.version
    done = filled.append({"one": pixels}, own_codec, target_psnr=30.0)
    assert done.archived == 1 and sum(done.codecs.values()) == 1 and filled.version == before + 1
    row, read = filled.read_row("one"), filled.read("one")
    assert (row.height, row.width, row.channels) == (*pixels.shape[:2], 3 if pixels.ndim == 3 else 1)
    assert (done.payload_bytes, done.source_bytes) == (len(row.payload), row.source_bytes)
    if row.psnr is None:
        assert np.array_equal(read, as_read(pixels))
    else:
        assert (
            min(psnr(as_read(pixels), read), MOST_PSNR) == pytest.approx(row.psnr, abs=0.01) and done.psnr_min >= 30.0
        )
    assert len(filled) == 1 and filled.verify() == []


def test_what_is_stored_is_what_a_run_would_store_of_the_files(archive: Archive, tmp_path: Path, own_codec: str):
    smooth = smooth_pictures(3, 33, 47)
    random = np.random.default_rng(0)
    pictures = {
        "a/colour.png": smooth[0],
        "a/grey.png": smooth[1][:, :, 0],
        "board.png": (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8),
        "noise.png": random.integers(0, 256, (31, 17, 3), dtype=np.uint8),
        "pixel.png": smooth[2][:1, :1],
        "turned.png": smooth[2].swapaxes(0, 1)[::-1],
        "alpha.png": file_of(random.integers(0, 256, (9, 9, 4), dtype=np.uint8)),
        "photo.jpg": file_of(smooth[2], "JPEG"),
    }
    done = archive.append(pictures, own_codec, target_psnr=31.0, threads=2)
    files = tmp_path / "files"
    for key, picture in pictures.items():
        (files / key).parent.mkdir(parents=True, exist_ok=True)
        (files / key).write_bytes(picture if isinstance(picture, bytes) else file_of(picture))
    other = Archive.create(str(tmp_path / "other"))
    source = Source.open(str(files))
    options = EncodeOptions(other.put_codec(tiny_artifact("v5")), target_psnr=31.0)
    other.commit(encode_batch(source, list(source.files()), other, options, "run").parts)

    def stored(archive: Archive) -> dict[str, Any]:
        return {row.key: {**vars(row), "fingerprint": None} for rows in archive.scan() for row in rows}

    assert stored(archive) == stored(other) and done.archived == len(archive) == len(pictures)
    assert archive.read_row("alpha.png").payload == pictures["alpha.png"]
    assert archive.read_row("board.png").psnr is None  # as a PNG it takes less than a lossy encoding


def test_a_key_that_is_there_is_replaced_and_leaves_the_quarantine(archive: Archive):
    add(archive, [picture_row("a.png", 1), picture_row("b.png", 2)])
    archive.quarantine([QuarantineRow.now(key, bytes(8), "corrupt", "", "run") for key in ("a.png", "c.png", "d.png")])
    pixels = smooth_pictures(2, 20, 30)
    before, kept = archive.version, archive.read_row("b.png")
    done = archive.append({"c.png": pixels[0], "a.png": pixels[1]}, "avif-444", target_psnr=36.0)
    assert done.archived == 2 and archive.version == before + 1 and len(archive) == 3
    assert psnr(pixels[1], archive.read("a.png")) >= 36.0 and archive.read_row("b.png") == kept
    assert [row.key for row in Archive.open(archive.url).quarantined()] == ["d.png"]


def test_a_later_run_takes_the_sources_picture_in_its_place(archive: Archive, tmp_path: Path):
    content = file_of(smooth_pictures(1, 16, 16)[0])
    archive.append({"a.png": content, "b.png": content}, "jpegxl")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(content)
    files = list(Source.open(str(tmp_path / "pictures")).files())
    assert archive.known().state(files) == ["changed"]


def test_the_default_is_that_of_a_run(archive: Archive):
    (picture,) = smooth_pictures(1, 64, 64)
    done = archive.append({"a": picture})
    assert done.psnr_min >= 34.0 and psnr(picture, archive.read("a")) >= 34.0
    assert archive.append({}).archived == 0
    assert archive.append({"b": picture}, quality=30).codecs == {archive.read_row("b").codec: 1}
    assert archive.append({"b": picture}, archive.read_row("b").codec, quality=np.int64(30)).archived == 1
    assert archive.append({"b": picture}, "jpeg", quality=np.int64(30)).codecs == {"jpeg": 1}


def test_one_that_cannot_be_archived_keeps_all_out_and_all_such_are_named(archive: Archive):
    (good,) = smooth_pictures(1, 16, 16)
    bad = {
        "broken.jpg": file_of(good, "JPEG")[:200],
        "camera.dng": file_of(good, "TIFF"),
        "empty.png": b"",
        "float": good / 255,
        "four": np.zeros((8, 8, 4), np.uint8),
        "masked": np.ma.masked_array(good, good > 50),
        "none": np.zeros((0, 5, 3), np.uint8),
        "planes": np.zeros((3, 8, 9), np.uint8),
        "text.png": b"this is no picture",
        "wide": np.zeros((11, 11), np.uint8),
        "wide.png": file_of(np.zeros((11, 11), np.uint8)),
    }
    with pytest.raises(NotAppended, match="none of 12 pictures was archived, for 11 cannot be: broken.jpg") as refused:
        archive.append({"good.png": good[:10, :10]} | bad, limits=Limits(max_pixels=120))
    reasons = {key: error.reason for key, error in refused.value.refused.items()}
    assert reasons == {
        "broken.jpg": "truncated",
        "camera.dng": "unsupported",
        "empty.png": "empty",
        "float": "unsupported",
        "four": "unsupported",
        "masked": "unsupported",
        "none": "empty",
        "planes": "unsupported",
        "text.png": "not_a_picture",
        "wide": "too_large",
        "wide.png": "too_large",
    }
    assert "an array of float64; pictures are uint8" in str(refused.value.refused["float"])
    assert "shape (8, 8, 4)" in str(refused.value.refused["four"])
    assert pickle.loads(pickle.dumps(refused.value)).refused.keys() == bad.keys()
    assert len(archive) == 0 and not list(archive.quarantined()) and not Path(archive.url, "codecs").exists()


def test_an_array_whose_png_is_too_large_is_refused_too(archive: Archive):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with pytest.raises(NotAppended, match="a: .* bytes, the limit is 4,000 ") as refused:
        archive.append({"a": noise}, "jpeg", limits=Limits(max_bytes=4000))
    assert isinstance(refused.value.refused["a"], ImageError) and len(archive) == 0


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../a.png", "a/../b", "a//b", "a/", "./a", "nul\0", "half\ud800"])
def test_keys_that_no_source_lists_are_refused(archive: Archive, key: str):
    with pytest.raises(ArchiveError, match=f"^{re.escape(repr(key))} cannot be a key: "):
        archive.append({key: smooth_pictures(1)[0]})


def test_what_is_called_wrongly_is_told_in_words(archive: Archive):
    (picture,) = smooth_pictures(1)
    for pictures, told in (
        ([picture], "come by key"),
        ({7: picture}, "a key is text, not int"),
        ({"a": picture.tolist()}, "a: a picture is a NumPy array or the bytes of a file, not list"),
        ({"a": "a.png"}, r"not str; pathlib\.Path\(\.\.\.\)\.read_bytes\(\)$"),
        ({"a": Path("a.png")}, r"Path; pathlib\.Path\(\.\.\.\)\.read_bytes\(\)$"),
        ({"a": Image.new("P", (8, 8))}, r"not Image; numpy\.asarray\(picture\.convert\(\"RGB\"\)\)$"),
        ({"a": torch.zeros(3, 8, 8)}, r"not Tensor; picture\.permute\(1, 2, 0\)\.cpu\(\)\.numpy\(\)$"),
    ):
        with pytest.raises(TypeError, match=told):
            archive.append(pictures)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="there is no codec 'nope'"):
        archive.append({"a": picture}, "nope")
    with pytest.raises(CodecError, match="knows no effort but 0"):
        archive.append({"a": picture}, "jpegxl", effort=3)
    for options, told in (
        ({"effort": -1}, "effort is a whole number from 0 to 100, not -1"),
        ({"effort": 101}, "not 101"),
        ({"effort": 1.5}, "not 1.5"),
        ({"threads": 0}, "threads are 1 or more, not 0"),
        ({"threads": "2"}, "threads are 1 or more, not '2'"),
        ({"target_psnr": "34"}, "from 10 to 60 dB, not '34'"),
        ({"target_psnr": float("nan")}, "from 10 to 60 dB, not nan"),
        ({"target_psnr": 61}, "not 61"),
        ({"target_psnr": None}, "there is no target: give one, or a quality from 0 to 63"),
        (
            {"quality": 3, "target_psnr": 40},
            "quality does not go with a target PSNR: leave out quality=3 or target_psnr=40",
        ),
        ({"quality": 20.0}, "quality must be from 0 to 63 for faces .*, not 20.0"),
        ({"quality": 64}, "quality must be from 0 to 63 for faces .*, not 64"),
    ):
        with pytest.raises(LatentpackError, match=told):
            archive.append({"a": picture}, **options)  # type: ignore[arg-type]
    for options, told in (
        ({"limits": 100}, r"limits are compressor\.limits\.Limits\(max_bytes, max_pixels\), not int"),
        ({"codec": STANDARD["jpeg"]}, "by name, path or id, or as an artifact's bytes, not as StandardCodec; .* .id"),
        ({"codec": None}, "not as NoneType"),
    ):
        with pytest.raises(TypeError, match=told):
            archive.append({"a": picture}, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="from its artifact's bytes, not from StandardCodec"):
        archive.put_codec(STANDARD["jpeg"])  # type: ignore[arg-type]
    for hours in (0.5, -1):
        with pytest.raises(ArchiveError, match=f"0 whole hours or more, not {hours}"):
            archive.vacuum(hours)  # type: ignore[arg-type]
    assert len(archive) == 0


def test_a_codec_may_come_as_its_bytes(archive: Archive):
    done = archive.append({"a": smooth_pictures(1)[0]}, tiny_artifact("v5"), quality=30)
    assert done.codecs == {identify(tiny_artifact("v5")): 1} and archive.verify() == []
    with pytest.raises(CodecError, match="not a latentpack codec"):
        archive.append({"b": smooth_pictures(1)[0]}, b"no artifact")


def test_bytes_may_lie_in_a_buffer(archive: Archive):
    content = file_of(smooth_pictures(1, 16, 16)[0])
    archive.append({"a": content, "b": bytearray(content), "c": memoryview(content)}, "jpegxl")
    rows = [{**vars(row), "key": ""} for row in archive.read_rows(["a", "b", "c"])]
    assert len(archive) == 3 and all(row == rows[0] for row in rows)


def test_what_the_codec_does_not_take_is_no_worse_than_usual_where_a_quality_is_given(archive: Archive):
    (picture,) = smooth_pictures(1, 2100, 2100)
    archive.append({"large.png": picture}, quality=40, target_psnr=None)
    row = archive.read_row("large.png")
    assert row.codec in STANDARD and psnr(picture, archive.read("large.png")) >= 34.0


def test_a_codec_of_one_quality_holds_the_target_by_fallbacks(tmp_path: Path) -> None:
    path = tmp_path / "v1.safetensors"
    path.write_bytes(tiny_artifact("v1"))
    archive = Archive.create(str(tmp_path / "archive"))
    done = archive.append({"a": smooth_pictures(1, 64, 64)[0]}, codec=str(path), target_psnr=34.0)
    assert done.psnr_min >= 34 and archive.read_row("a").codec in STANDARD


def test_only_what_every_machine_gives_back_exactly_is_called_exact(
    archive: Archive, own_codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a learned codec others may find another picture, and null would say that there is none to find."""
    monkeypatch.setattr(compressor.quality, "psnr", lambda *_: np.inf)
    archive.append({"a.png": smooth_pictures(1)[0]}, own_codec, quality=30, target_psnr=None)
    row = archive.read_row("a.png")
    assert row.codec == identify(tiny_artifact("v5")) and row.psnr == MOST_PSNR and archive.verify() == []
