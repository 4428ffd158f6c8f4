"""The report on a few tiles of photographs: what is measured, what is said, and files that stand alone."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from compressor.baselines import STANDARD, StandardCodec
from compressor.codec import Codec
from compressor.comparison import Table, curves
from compressor.errors import LatentpackError
from compressor.pages import markdown_report_table
from compressor.report import ARCHIVE_ROW_BYTES, SCHEMA, Report, default_qualities, measure, write_report
from compressor.strips import side_by_side


class Renamed(StandardCodec):
    """Stands for a learned codec: any codec that is none of the standard formats."""

    def __init__(self) -> None:
        super().__init__("webp", effort=2)
        self.id = "a" * 64


class OneQuality(Renamed):
    def __init__(self) -> None:
        super().__init__()
        self.qualities = range(0)

    def encode(self, pixels, quality, packer="auto"):
        codec = Renamed()
        return codec.encode(pixels, 40)


class LosslessOfOurs(StandardCodec):
    def __init__(self) -> None:
        super().__init__("lossless")
        self.id = "b" * 64


class Coarse(StandardCodec):
    def __init__(self) -> None:
        super().__init__("jpeg")
        self.qualities = range(1, 9)


QUALITIES = {"mine": [5, 40, 80], "fixed": [-1], "WebP": [5, 40, 80], "JPEG": [8, 30, 80]}


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    image = data.astronaut()
    tiles = {f"tile/{x}.png": np.ascontiguousarray(image[64:128, x : x + 64]) for x in (128, 192, 256)}
    return {**tiles, "larger.png": np.ascontiguousarray(image[:170, :300])}


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return {"mine": Renamed(), "fixed": OneQuality(), "WebP": STANDARD["webp"], "JPEG": STANDARD["jpeg"]}


@pytest.fixture(scope="module")
def table(pictures, codecs):
    calls: list[tuple[int, int]] = []
    table = measure(
        pictures,
        codecs,
        QUALITIES,
        ssimulacra2_pictures=2,
        batch=3,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (40, 40) and [done for done, _ in calls] == sorted(done for done, _ in calls)
    return table


@pytest.fixture(scope="module")
def report(table, pictures, codecs, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(table, pictures, tmp_path_factory.mktemp("report"), codecs, title="Tiles & <photographs>")


def test_a_row_for_each_codec_quality_and_picture(table, pictures) -> None:
    assert table.schema.equals(SCHEMA) and table.num_rows == 10 * len(pictures)
    rows = table.to_pylist()
    assert all(row["encode_s"] > 0 and row["decode_s"] > 0 and row["decoded_png_bytes"] > 500 for row in rows)
    assert {row["key"] for row in rows if row["ssimulacra2"] is not None} == {"tile/128.png", "larger.png"}
    assert {row["key"] for row in rows if row["ms_ssim"] is not None} == {"larger.png"}
    assert all(row["psnr_luma"] > row["psnr"] + 0.1 for row in rows if row["codec"] == "JPEG"), "its colour is coarser"


def test_an_archived_codec_is_charged_its_row_and_a_file_its_header(table) -> None:
    for row in table.to_pylist():
        extra = row["bytes"] - row["payload_bytes"]
        if row["codec"] in ("mine", "fixed"):
            assert extra == ARCHIVE_ROW_BYTES
        else:
            assert extra >= 20


def test_what_only_an_archive_makes_a_file_of_is_charged_its_row_too(pictures) -> None:
    one = {"larger.png": pictures["larger.png"]}
    table = measure(one, {"av1": STANDARD["av1"]}, {"av1": [40]}, ssimulacra2_pictures=0)
    [row] = table.to_pylist()
    assert row["bytes"] - row["payload_bytes"] == ARCHIVE_ROW_BYTES


def test_curves_are_means_over_pictures(table) -> None:
    curve = curves(table)["WebP"]
    rows = [row for row in table.to_pylist() if row["codec"] == "WebP" and row["quality"] == 40]
    assert curve.quality.tolist() == [5, 40, 80]
    assert curve.psnr[1] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert curve.bytes[1] == pytest.approx(np.mean([row["bytes"] for row in rows]))
    assert curve.encode_s[1] == pytest.approx(np.median([row["encode_s"] for row in rows]))
    assert curve.at("psnr", float(curve.psnr[1])) == pytest.approx(curve.bytes[1])
    assert curve.at("psnr", 99.0) is None


def test_a_metric_of_some_pictures_stands_beside_their_bytes(table) -> None:
    rows = [row for row in table.to_pylist() if row["codec"] == "JPEG" and row["quality"] == 30]
    measured = [row["bytes"] for row in rows if row["ssimulacra2"] is not None]
    assert len(measured) == 2 < len(rows)
    curve = curves(table)["JPEG"]
    at = list(curve.quality).index(30)
    assert (
        curve.ssimulacra2_bytes[at] == np.mean(measured) != curve.bytes[at] == np.mean([row["bytes"] for row in rows])
    )


def test_the_html_stands_alone_and_says_the_figure_first(report: Report) -> None:
    html = report.html.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "url(" not in html and "<script" not in html
    assert "Tiles &amp; &lt;photographs&gt;" in html
    assert html.index("<h1>mine: ") < html.index("data:image")
    assert html.count("data:image/svg+xml") == 4


def test_the_markdown_has_the_same_tables_and_its_plots_beside_it(report: Report) -> None:
    text = report.markdown.read_text()
    for title in (
        "Bytes per picture at equal PSNR",
        "Share of JPEG's bytes",
        "BD-rate",
        "Speed",
        "All measured points",
        "Settings",
    ):
        assert title in text and title.replace("'", "&#39;") in report.html.read_text()
    sources = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert sources
    for source in sources:
        assert (report.markdown.parent / source).read_bytes()[:4] == b"\x89PNG"
    assert "libwebp" in text and "mine against WebP" in text and "fixed" in text


def test_the_artifact_is_small_and_whole(report: Report) -> None:
    assert len(report.artifact) < 2_000_000
    assert report.artifact.startswith("# Tiles & &lt;photographs>\n"), "no HTML of its own"
    sources = re.findall(r"!\[.*?\]\((.*?)\)", report.artifact)
    assert sources and all(source.startswith("data:image/png") for source in sources)


def test_the_headline_says_how_far_the_best_of_the_others_is_off(report: Report) -> None:
    head = report.summary["headline"]
    best = min((size, name) for name, size in report.summary["bytes_at_level"].items() if name in ("WebP", "JPEG"))
    share = abs(1 - report.summary["bytes_at_level"]["mine"] / best[0])
    assert (
        re.search(rf", {round(100 * share)} % (fewer|more) than {best[1]}$", head) and head in report.html.read_text()
    )


def test_columns_are_named_with_units_and_none_is_empty(report: Report, table, pictures, codecs, tmp_path) -> None:
    speed = next(one for one in report.summary["tables"] if one["title"].startswith("Speed"))
    assert "PSNR, dB" in speed["columns"] and "file, bytes" in speed["columns"] and "MS-SSIM" in speed["columns"]
    small = {key: pixels for key, pixels in pictures.items() if key != "larger.png"}
    there = table.filter(pa.array([key in small for key in table["key"].to_pylist()]))
    without = write_report(there, small, tmp_path, codecs)
    assert "MS-SSIM</th>" in report.html.read_text() and "MS-SSIM</th>" not in without.html.read_text()


def test_figures_stand_to_the_right_and_words_to_the_left() -> None:
    table = Table("", "", ["codec", "weights", "bytes"], [["V1", "INT8", "1,234"], ["V2", "INT4", "–"]])
    assert [table.in_words(n) for n in range(3)] == [True, True, False]
    assert "| --- | --- | ---: |" in markdown_report_table(table)


def test_raw_rows_and_summary_can_be_read_back(report: Report, table) -> None:
    stored = pq.read_table(report.parquet)
    assert stored.equals(table)
    assert "libwebp" in json.loads(stored.schema.metadata[b"latentpack.codecs"])["WebP"]["description"]
    assert json.loads(json.dumps(report.summary))["headline"].startswith("mine: ")


def test_baselines_alone_and_a_single_picture(pictures, tmp_path: Path) -> None:
    codecs: dict[str, Codec] = {"JPEG": STANDARD["jpeg"], "lossless": STANDARD["lossless"]}
    one = {"larger.png": pictures["larger.png"]}
    table = measure(one, codecs, {"JPEG": [10, 50, 90]}, ssimulacra2_pictures=0)
    report = write_report(table, one, tmp_path, codecs)
    assert report.summary["headline"].startswith("JPEG: ") and "exact" in report.markdown.read_text()
    assert "ssimulacra2" not in report.plots


def test_what_is_stored_exactly_has_a_headline_without_a_level(pictures, tmp_path: Path) -> None:
    one = {"larger.png": pictures["larger.png"]}
    codecs: dict[str, Codec] = {"exactly": LosslessOfOurs(), "JPEG": STANDARD["jpeg"]}
    table = measure(one, codecs, {"exactly": [-1], "JPEG": [10, 50]}, ssimulacra2_pictures=0)
    report = write_report(table, one, tmp_path, codecs)
    assert re.fullmatch(r"exactly: [\d,]+ bytes a picture stored exactly", report.summary["headline"])
    assert json.loads(json.dumps(report.summary, allow_nan=False))["level_db"] is None
    assert "inf" not in re.sub(r"[a-z]inf|inf[a-z]", "", report.markdown.read_text())


@pytest.mark.parametrize("level", [255, 128])
def test_a_picture_that_some_codec_stores_exactly_changes_no_figure(
    pictures, codecs, report, table, tmp_path, level
) -> None:
    plain = {"blank.png": np.full((64, 64, 3), level, np.uint8)}
    mixed = pa.concat_tables([table, measure(plain, codecs, QUALITIES)])
    exact = [row for row in mixed.to_pylist() if np.isinf(row["psnr"])]
    assert {row["key"] for row in exact} == {"blank.png"} and len({row["codec"] for row in exact}) > 1
    again = write_report(mixed, {**plain, **pictures}, tmp_path, codecs, title="Tiles & <photographs>")
    assert again.summary["left_out"] == ["blank.png"] and report.summary["left_out"] == []
    for name in ("headline", "curves", "bytes_at_level", "tables"):
        assert again.summary[name] == report.summary[name], name
    said = "1 picture left out of every figure: what some codec stores exactly has no PSNR."
    assert (
        f"Mean over 4 pictures at a mean PSNR of 34 dB: {report.summary['detail'].partition(': ')[2]} {said}"
        == again.summary["detail"]
    )
    assert said in again.html.read_text() and said in again.markdown.read_text() and said not in report.html.read_text()
    assert pq.read_table(again.parquet).num_rows == mixed.num_rows


def test_a_benchmark_of_nothing_but_plain_pictures_is_refused(codecs, tmp_path: Path) -> None:
    plain = {f"{level}.png": np.full((32, 32, 3), level, np.uint8) for level in (0, 128)}
    with pytest.raises(LatentpackError, match="every picture measured is so plain"):
        write_report(measure(plain, codecs, QUALITIES), plain, tmp_path, codecs)


def test_strips_match_bytes_and_quality(pictures, codecs) -> None:
    compared = {name: codecs[name] for name in ("mine", "WebP", "JPEG")}
    equal_bytes, equal_quality = side_by_side(pictures, compared, "mine", 60)
    for strips, check in ((equal_bytes, 0), (equal_quality, 1)):
        assert [strip.key for strip in strips] == list(pictures)
        for strip in strips:
            assert [cell.codec for cell in strip.cells] == ["source", "mine", "WebP", "JPEG"]
            assert all(cell.pixels.shape[0] <= 96 and cell.pixels.shape[1] <= 96 for cell in strip.cells)
            figures = [re.fullmatch(r"([\d,]+) B · ([\d.]+) dB", cell.caption).groups() for cell in strip.cells[1:]]
            size, decibel = zip(*((int(b.replace(",", "")), float(db)) for b, db in figures), strict=True)
            if check == 0:
                assert max(size) == size[0]
            else:
                assert min(decibel) >= decibel[0] - 0.11


def test_a_codec_that_cannot_be_matched_is_shown_at_its_end_and_says_so(pictures, codecs) -> None:
    compared = {name: codecs[name] for name in ("JPEG", "WebP", "mine")}
    equal_bytes, _ = side_by_side(pictures, compared, "JPEG", 1)
    _, equal_quality = side_by_side(pictures, {"WebP": codecs["WebP"], "JPEG": Coarse()}, "WebP", 99)
    assert any(
        cell.codec == "mine" and cell.caption.endswith(" dB · its lowest")
        for strip in equal_bytes
        for cell in strip.cells
    )
    assert all(strip.cells[1].codec == "JPEG" for strip in equal_bytes)
    assert all(strip.cells[2].caption.endswith(" · its highest") for strip in equal_quality)


def test_a_report_cannot_lie_where_a_file_is(table, pictures, codecs, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LatentpackError, match="taken"):
        write_report(table, pictures, tmp_path / "taken", codecs)


def test_a_benchmark_of_nothing_is_refused(codecs) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        measure({}, codecs)


def test_default_qualities_lie_in_the_codecs_range(codecs) -> None:
    for codec in [*codecs.values(), *STANDARD.values()]:
        chosen = default_qualities(codec)
        assert chosen == sorted(set(chosen))
        assert chosen == [-1] if not len(codec.qualities) else set(chosen) <= set(codec.qualities)


def test_pictures_side_by_side_are_enlarged_by_whole_numbers(report: Report) -> None:
    html = report.html.read_text()
    cells = re.findall(r'--width: (\d+)"><img src="data:image/png;base64,([^"]+)" alt="picture \d, (\w+)"', html)
    assert {name for *_, name in cells} == {"source", "mine", "WebP", "JPEG"} and len(cells) == 2 * 4 * 4
    assert "image-rendering: pixelated" in html
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(cells[0][1]))))
    assert first.shape[1] == int(cells[0][0]) == 64

    drawn = np.asarray(Image.open(report.plots["equal_bytes"]).convert("RGB"))
    enlarged = first.repeat(3, axis=0).repeat(3, axis=1)  # 288 pixels are three times the widest picture's 96
    assert (drawn[12 : 12 + 192, 12 : 12 + 192] == enlarged).all()
