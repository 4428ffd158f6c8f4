"""One batch: every file ends as a row that reads back or as a named quarantine entry, and the counts add up."""

import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea, moon

from compressor import fallback
from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.codec import Encoded
from compressor.encoding import BatchReport, EncodeOptions, encode_batch
from compressor.errors import CodecError
from compressor.fallback import PATIENT_EFFORT
from compressor.images import Picture, decode_picture
from compressor.limits import Limits
from compressor.metrics import psnr, ssim
from compressor.quality import Stored
from compressor.sources import Source
from tests.codecs import smooth_pictures, tiny_artifact


def file_of(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def archive_of(folder: Path, family: str = "v5") -> tuple[Archive, str]:
    archive = Archive.create(str(folder / "archive"))
    return archive, archive.put_codec(tiny_artifact(family))


def run(
    folder: Path, files: dict[str, bytes], family: str = "v5", threads: int = 1, **options
) -> tuple[Archive, BatchReport]:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for name, content in files.items():
        (pictures / name).write_bytes(content)
    archive, codec = archive_of(folder, family)
    source = Source.open(str(pictures))
    options = EncodeOptions(**({"codec": codec} | options))
    report = encode_batch(source, list(source.files()), archive, options, "run", threads=threads)
    if report.parts:
        archive.commit(report.parts)
    return archive, report


def test_every_kind_of_file_is_archived_or_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    colour = smooth_pictures(1, 40, 30)[0]
    alpha = random.integers(0, 256, (9, 9, 4), dtype=np.uint8)
    deep = random.integers(0, 65536, (9, 9), dtype=np.uint16)
    files = {
        "alpha.png": file_of(alpha),
        "colour.png": file_of(colour),
        "deep.png": file_of(deep),
        "empty.png": b"",
        "grey.png": file_of(colour[:, :, 0]),
        "half.jpg": file_of(colour, "JPEG")[:300],
        "text.png": b"this is no picture",
        "wide.png": file_of(np.zeros((10, 200, 3), np.uint8)),
    }
    archive, report = run(tmp_path, files, target_psnr=30.0, limits=Limits(max_pixels=1999))
    assert {row.key: row.reason for row in report.quarantined} == {
        "empty.png": "empty",
        "half.jpg": "truncated",
        "text.png": "not_a_picture",
        "wide.png": "too_large",
    }
    assert report.archived + len(report.quarantined) == len(files)
    assert report.errors == {"empty": 1, "truncated": 1, "not_a_picture": 1, "too_large": 1}
    for key in ("alpha.png", "deep.png"):
        assert archive.read_row(key).codec == "original"
        assert archive.read_row(key).payload == files[key]
    grey = archive.read("grey.png")
    assert (grey == grey[:, :, :1]).all()
    assert archive.read_row("grey.png").channels == 1
    assert archive.verify() == []


def test_bytes_that_are_not_those_of_the_listed_file_are_asked_for_again_in_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("cut.png", "error.png", "grown.png"):
        (folder / name).write_bytes(file_of(smooth_pictures(1, 40, 30)[0]))
    source = Source.open(str(folder))
    files = list(source.files())
    os.truncate(folder / "cut.png", 60)
    (folder / "error.png").write_bytes(b"<Error><Code>InternalError</Code></Error>")
    with open(folder / "grown.png", "ab") as file:  # sound all the same
        file.write(b"more")
    archive, codec = archive_of(tmp_path)
    report = encode_batch(source, files, archive, EncodeOptions(codec), "run")
    assert report.archived == 1 and {row.key: row.reason for row in report.quarantined} == {
        "cut.png": "unreadable",
        "error.png": "unreadable",
    }
    archive.quarantine(report.quarantined)
    assert archive.known().state(files[:2]) == ["new", "new"]


@pytest.mark.parametrize("name", ["jpeg", "lossless", "v5"])
def test_a_large_picture_stays_with_the_codec_asked_for_but_for_networks(tmp_path: Path, name: str) -> None:
    large = np.full((2049, 2048, 3), 90, np.uint8)
    codec = {} if name == "v5" else {"codec": name}
    archive, _ = run(tmp_path, {"large.bmp": file_of(large, "BMP")}, **codec)
    assert archive.read_row("large.bmp").codec == ("avif-444" if name == "v5" else name)
    assert name != "lossless" or np.array_equal(archive.read("large.bmp"), large)


@pytest.mark.parametrize("options", [{}, {"quality": 50}])
def test_a_picture_that_a_format_cannot_hold_goes_to_the_fallback_alone(tmp_path: Path, options: dict) -> None:
    small, wide = smooth_pictures(1, 40, 30)[0], smooth_pictures(1, 8, 16_384)[0]
    files = {"small.png": file_of(small), "wide.png": file_of(wide)}
    archive, report = run(tmp_path, files, codec="webp", **options)
    assert report.archived == 2
    assert archive.read_row("small.png").codec == "webp"
    assert archive.read_row("wide.png").codec in ("avif-444", "jpegxl")
    assert psnr(wide, archive.read("wide.png")) >= 34


def test_a_codec_that_cannot_reach_the_target_falls_back_and_none_is_below(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    files = {f"{index}.bmp": file_of(pixels, "BMP") for index, pixels in enumerate(noise)}
    archive, report = run(tmp_path, files, target_psnr=36.0)
    assert report.psnr_min >= 36
    for index, pixels in enumerate(noise):
        row = archive.read_row(f"{index}.bmp")
        assert row.codec in ("av1-444", "jpegxl", "lossless", "original")
        assert psnr(pixels, archive.read(row.key)) >= 36


def test_plain_grey_pictures_hold_the_target_too(tmp_path: Path) -> None:
    """Their three decoded planes become one by rounding, which of a plain picture moves all pixels the same way."""
    files = {f"{level:03}.bmp": file_of(np.full((32, 32), level, np.uint8), "BMP") for level in range(0, 256, 10)}
    for target in (44.0, 46.0):
        archive, _ = run(tmp_path / str(target), files, codec="webp", target_psnr=target)
        for row in map(archive.read_row, files):
            assert row.channels == 1 and (row.psnr is None or row.psnr >= target), row.key


def test_with_much_effort_a_fallback_takes_its_time_too(tmp_path: Path) -> None:
    crops = {f"{left}.png": file_of(chelsea()[:128, left : left + 128]) for left in (100, 164, 228, 292)}
    sizes = []
    for effort in (0, PATIENT_EFFORT - 1, PATIENT_EFFORT):
        (tmp_path / str(effort)).mkdir()
        archive, report = run(tmp_path / str(effort), crops, effort=effort)
        assert {archive.read_row(key).codec for key in crops} == {"av1-444"} and report.psnr_min >= 34
        sizes.append(report.payload_bytes)
    assert sizes[2] < sizes[1] == sizes[0]


def test_a_fixed_quality_is_kept_where_no_floor_is_asked_for(tmp_path: Path) -> None:
    files = {f"{index}.png": file_of(pixels) for index, pixels in enumerate(smooth_pictures(3, 64, 64))}
    archive, _ = run(tmp_path, files, quality=20)
    rows = [archive.read_row(key) for key in files]
    assert {(row.codec == "original", row.quality) for row in rows} == {(False, 20)}


@pytest.mark.parametrize(("family", "options"), [("v5", {"quality": 1}), ("v3", {})])
def test_a_floor_that_is_asked_for_is_held(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    [picture] = smooth_pictures(1, 64, 64)
    archive, _ = run(tmp_path, {"a.bmp": file_of(picture, "BMP")}, family, min_psnr=38.0, **options)
    assert psnr(picture, archive.read("a.bmp")) >= 38


@pytest.mark.parametrize("codec", [{}, {"codec": "webp"}])
def test_each_row_is_its_own_picture_and_measures_what_it_says(tmp_path: Path, codec: dict[str, Any]) -> None:
    first, second, third = smooth_pictures(3, 40, 48)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 4), dtype=np.uint8)
    files = {
        "0-alpha.png": file_of(noise[:20, :20]),  # keeps its bytes
        "1-large.bmp": file_of(noise[:, :, :3], "BMP"),  # is not fetched
        "2.png": file_of(first),
        "3-grey.png": file_of(second[:, :, 0]),
        "4.png": file_of(third),
    }
    archive, report = run(tmp_path, files, quality=40, limits=Limits(max_bytes=10_000), **codec)
    assert report.errors == {"too_large": 1}
    for key in ("2.png", "3-grey.png", "4.png"):
        row, source, read = archive.read_row(key), decode_picture(files[key]).pixels, archive.read(key)
        assert row.codec != "original"
        assert row.psnr == pytest.approx(psnr(source, read), abs=0.1)
        assert row.ssim == pytest.approx(ssim(source, read), abs=0.005)


def test_a_floor_above_the_target_is_the_target(tmp_path: Path) -> None:
    files = {f"{index}.png": file_of(pixels) for index, pixels in enumerate(smooth_pictures(3, 64, 64))}
    archive, _ = run(tmp_path, files, target_psnr=30.0, min_psnr=42.0)
    for row in map(archive.read_row, files):
        assert row.psnr is None or row.psnr >= 42.0


def test_single_quality_families_have_no_floor_unless_one_is_asked_for(tmp_path: Path) -> None:
    files = {"a.bmp": file_of(smooth_pictures(1, 64, 64)[0], "BMP")}
    archive, report = run(tmp_path, files, "v3", packer="fp16-lzma")
    assert archive.read_row("a.bmp").packer == "fp16-lzma"
    assert report.psnr_min < 30


def test_a_file_smaller_than_its_encoding_keeps_its_bytes(tmp_path: Path) -> None:
    small = file_of(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    archive, _ = run(tmp_path, {"a.jpg": small}, codec="lossless")
    assert archive.read_row("a.jpg").codec == "original" and archive.read_row("a.jpg").payload == small


def test_a_resized_picture_never_keeps_its_file(tmp_path: Path) -> None:
    archive, _ = run(tmp_path, {"a.png": file_of(np.full((16, 16, 3), 90, np.uint8))}, codec="jpeg", resize=64)
    assert archive.read("a.png").shape == (64, 64, 3) and archive.verify() == []


def test_resizing_is_only_what_was_asked_for(tmp_path: Path) -> None:
    files = {"a.png": file_of(smooth_pictures(1, 50, 70)[0])}
    archive, _ = run(tmp_path, files, target_psnr=25.0, resize=32)
    assert archive.read("a.png").shape == (32, 32, 3)


def test_what_keeps_its_bytes_and_so_its_size_is_counted_where_others_are_resized(tmp_path: Path) -> None:
    from compressor.summary import RunSummary
    from compressor.wording import remarks

    alpha = np.full((40, 40, 4), 90, np.uint8)
    files = {"plain.png": file_of(smooth_pictures(1, 50, 70)[0]), "alpha.png": file_of(alpha)}
    files["cut.png"] = files["plain.png"][:-40]
    files["of that size.png"] = file_of(alpha[:32, :32])
    counts = {}
    for side in (32, 8, None):
        archive, report = run(tmp_path / str(side), files, codec="jpeg", resize=side)
        summary = RunSummary("run", "in", "archive", "jpeg", listed=4)
        summary.add(report, 0)
        counts[side] = summary.to_dict()["not_resized"]
        assert archive.read("alpha.png").shape == (40, 40, 3)
        assert any("1 picture not resized" in text for text in remarks(summary.to_dict())) is (side == 32)
    assert counts == {32: 1, 8: 2, None: 0}


def test_why_pictures_keep_their_bytes_and_what_the_others_lose_is_counted(tmp_path: Path) -> None:
    from compressor.summary import RunSummary
    from compressor.wording import describe, remarks

    colour = smooth_pictures(1, 50, 70)[0]
    exif = Image.Exif()
    exif[306] = "2026:11:27 00:00:00"
    noted = io.BytesIO()
    Image.fromarray(colour).save(noted, "png", exif=exif.tobytes())
    translucent = io.BytesIO()
    Image.fromarray(np.full((40, 40, 4), 90, np.uint8)).save(translucent, "png", exif=exif.tobytes())
    coarse = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(coarse, "jpeg", quality=2, optimize=True)
    files = {
        "a.png": file_of(colour),
        "b.png": noted.getvalue(),
        "c.png": translucent.getvalue(),
        "d.png": file_of(np.zeros((8, 8), np.uint16)),
        "e.jpg": coarse.getvalue(),
    }
    _, report = run(tmp_path, files, codec="jpeg", quality=95)
    assert report.kept == {"alpha": 1, "16-bit": 1, "no gain": 1} and report.dropped == {"EXIF": 1}
    summary = RunSummary("run", "in", "archive", "av1-444", listed=5)
    summary.add(report, 0)
    summary.add(report, 0)
    told = summary.to_dict()
    assert dict(describe(told))["as they came"] == "6 files: 2 alpha, 2 16-bit, 2 no gain"
    lost = "pictures are archived, not what their files hold beside them: EXIF of 2"
    assert f"{lost}; --keep-metadata stores EXIF and XMP too, in a new archive" in remarks(told)
    assert lost in remarks(told | {"chosen": ["keep_metadata"]})


def test_a_quality_out_of_range_names_the_range(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="from 0 to 63"):
        run(tmp_path, {"a.png": file_of(smooth_pictures(1)[0])}, quality=99)


def test_threads_change_nothing_but_the_time(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)
    files = {f"{number}.png": file_of(pixels) for number, pixels in enumerate([*smooth_pictures(4, 24, 32), *noise])}
    found = []
    for threads in (1, 3):
        archive, report = run(tmp_path / f"{threads}", files, threads=threads, target_psnr=38.0)
        found.append(sorted((row.key, row.codec, row.payload, row.psnr) for [row] in archive.scan(batch_size=1)))
        assert report.archived == 10
    assert found[0] == found[1] and {codec for _, codec, *_ in found[0]} == {"av1-444"}, "all fall back"


def test_an_interrupt_waits_for_no_search_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor import encoding

    tried: list[int] = []

    def searching(*arguments: Any) -> None:
        for number in range(1000):
            tried.append(number)
            if len(tried) == 20:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            arguments[-1](number)

    monkeypatch.setattr(encoding, "fall_back", searching)
    files = {f"{number}.png": file_of(pixels) for number, pixels in enumerate(smooth_pictures(4, 24, 32))}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, files, threads=2, target_psnr=60.0)
    assert len(tried) < 200


def test_large_pictures_are_taken_by_all_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor import encoding

    together: list[int] = []
    encode = encoding._encode_pictures

    def noting(pictures, *arguments):
        together.append(len(pictures))
        return encode(pictures, *arguments)

    monkeypatch.setattr(encoding, "_encode_pictures", noting)
    monkeypatch.setattr(encoding, "PIXELS_AT_ONCE", 1000)  # a picture has more
    files = {f"{number}.png": file_of(pixels) for number, pixels in enumerate(smooth_pictures(7, 40, 40))}
    run(tmp_path / "one", files, codec="jpeg")
    run(tmp_path / "three", files, codec="jpeg", threads=3)
    monkeypatch.setattr(encoding, "MOST_PIXELS", 3000)  # two pictures have more
    run(tmp_path / "bounded", files, codec="jpeg", threads=3)
    assert together == [1, 1, 1, 1, 1, 1, 1, 0, 3, 3, 1, 2, 2, 2, 1]


def test_a_batch_holds_few_bytes_of_files_whose_pictures_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long animation of few pixels: only its first picture is decoded, its file is kept."""
    from compressor import encoding

    held: list[int] = []
    encode = encoding._encode_pictures

    def noting(pictures, *arguments):
        held.append(sum(len(content) for _, content, _ in pictures))
        return encode(pictures, *arguments)

    monkeypatch.setattr(encoding, "_encode_pictures", noting)
    monkeypatch.setattr(encoding, "BYTES_AT_ONCE", 5_000)
    files = {f"{number}.png": file_of(pixels) for number, pixels in enumerate(smooth_pictures(8, 32, 32))}
    _, report = run(tmp_path, files, quality=20)
    assert report.archived == 8 and sum(held) == sum(map(len, files.values())) > 10_000
    assert max(held) < 5_000 + max(map(len, files.values()))


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, width: int, error: Exception) -> None:
    """Have a standard format's encoder raise ``error`` for pictures of this width."""
    format = STANDARD[name]._format

    def encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
        if pixels.shape[1] == width:
            raise error
        return format.encode(pixels, quality, effort)

    monkeypatch.setattr(STANDARD[name], "_format", replace(format, encode=encode))


@pytest.mark.parametrize("options", [{}, {"quality": 50}])
def test_a_picture_that_its_encoder_refuses_goes_to_the_fallback_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    refusing(monkeypatch, "webp", 31, RuntimeError("WebPEncode returned VP8_ENC_ERROR"))
    sizes = {"a.png": 30, "b.png": 31, "c.png": 32}
    files = {name: file_of(smooth_pictures(1, 40, width)[0]) for name, width in sizes.items()}
    archive, report = run(tmp_path, files, codec="webp", **options)
    assert report.archived == 3
    assert [archive.read_row(name).codec for name in files] == ["webp", "av1-444", "webp"]
    assert archive.verify() == []


def test_a_resized_picture_that_no_encoder_takes_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file's bytes would be of another size than the row says."""
    from compressor import encoding

    refusing(monkeypatch, "webp", 32, RuntimeError("no"))
    monkeypatch.setattr(encoding, "fall_back", lambda *_: None)
    alpha = np.full((40, 40, 4), 90, np.uint8)
    files = {"a.png": file_of(smooth_pictures(1, 50, 70)[0]), "alpha.png": file_of(alpha)}
    archive, report = run(tmp_path / "resized", files, codec="webp", resize=32)
    assert (report.archived, report.errors) == (1, {"unsupported": 1})
    [row] = report.quarantined
    assert row.key == "a.png" and row.detail == "no codec could encode it, resized to 32 x 32 pixels"
    assert archive.read_row("alpha.png").codec == "original" and archive.verify() == []
    refusing(monkeypatch, "webp", 70, RuntimeError("no"))
    archive, report = run(tmp_path / "whole", files, codec="webp")
    assert report.archived == 2 and archive.read_row("a.png").codec == "original" and archive.verify() == []


def test_a_smooth_picture_goes_to_what_stores_it_in_fewer_bytes(tmp_path: Path) -> None:
    """The released codec takes 0.05 bits a pixel at its lowest quality, which is twice as much as AVIF."""
    archive = Archive.create(str(tmp_path / "archive"))
    archive.append({"moon.png": moon()}, "faces")
    row = archive.read_row("moon.png")
    assert row.codec == "avif-444" and row.psnr is not None and row.psnr >= 34


@pytest.mark.parametrize(
    ("side", "quality", "size", "costly"),
    [
        (128, 20, 700, False),  # 0.34 bits a pixel, as portraits take
        (128, 20, 720, True),
        (128, 0, 100, True),
        (256, 20, 700, True),
        (256, 20, 200, False),  # less than any JPEG is told by
    ],
)
def test_what_is_tried_against_a_fallback(
    monkeypatch: pytest.MonkeyPatch, side: int, quality: int, size: int, costly: bool
) -> None:
    monkeypatch.setattr(fallback, "_jpeg_size", lambda *_: 260.0 if quality == 0 else 700.0)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for pixels, expected in ((noise, costly), (np.full_like(noise, 7), True)):  # of one colour, any is
        stored = Stored(Encoded(bytes(size), side, side, 3, "learned", quality, ""), pixels, 34.0)
        assert fallback.is_costly(stored, Picture(pixels, 3, "png", None), 34.0) is expected


@pytest.mark.parametrize(
    ("count", "wins", "tried", "fallen"), [(15, 9, 0, 0), (40, 1, 40, 40), (40, 2, 2, 1), (300, 9, 4, 0)]
)
def test_where_those_that_are_probed_do_better_otherwise_all_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, wins: int, tried: int, fallen: int
) -> None:
    """One in ``wins`` is smaller by the fallback."""
    from compressor import encoding

    calls: list[int] = []

    def by(codec: str, size: int) -> Stored:
        return Stored(Encoded(bytes(size), 16, 16, 3, codec, 1, ""), np.zeros((16, 16, 3), np.uint8), 50.0)

    def falling_back(*_: Any) -> Stored:
        calls.append(1)
        return by("webp", 200 if len(calls) % wins else 50)

    monkeypatch.setattr(encoding, "_encode", lambda pictures, *_: [by("learned", 100) for _ in pictures])
    monkeypatch.setattr(encoding, "is_costly", lambda *_: False)
    monkeypatch.setattr(encoding, "fall_back", falling_back)
    files = {f"{n:02d}.png": file_of(pixels) for n, pixels in enumerate(smooth_pictures(count, 16, 16))}
    _, report = run(tmp_path, files, target_psnr=20.0)
    assert (len(calls), report.codecs.get("webp", 0)) == (tried, fallen)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Out of memory"), ModuleNotFoundError("imagecodecs")])
def test_what_is_no_fault_of_a_picture_sends_none_to_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refusing(monkeypatch, "webp", 40, error)
    with pytest.raises(type(error)):
        run(tmp_path, {"a.png": file_of(smooth_pictures(1, 40, 40)[0])}, codec="webp")


def test_a_fallback_that_lacks_memory_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "jpegxl", 32, MemoryError())
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with pytest.raises(MemoryError):
        run(tmp_path, {"a.bmp": file_of(noise, "BMP")}, codec="webp", target_psnr=50.0)


def test_a_packer_that_the_codec_does_not_know_is_told(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="has no packer 'zip': choose from auto, entropy, lzma, gzip"):
        run(tmp_path, {"a.png": file_of(smooth_pictures(1)[0])}, packer="zip")
