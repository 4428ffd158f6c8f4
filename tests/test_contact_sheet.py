"""``latentpack sheet``: what it shows is what a reader sees, and what cannot be shown is named."""

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from compressor.archive import Archive
from compressor.contact_sheet import SIDE, contact_sheet
from compressor.destinations import Bucket
from compressor.errors import ArchiveError
from compressor.images import decode_picture
from compressor.picture_writing import encode_picture
from compressor.sources import Source
from tests.commands import said
from tests.rows import original_row, picture_row


def archive_of(folder: Path, levels: dict[str, float | None]) -> Archive:
    """An archive of two files, with a picture of that PSNR for each key."""
    rows = [replace(picture_row(key, seed), psnr=psnr) for seed, (key, psnr) in enumerate(levels.items())]
    archive = Archive.create(str(folder / "archive"))
    for part in filter(None, (rows[::2], rows[1::2])):
        archive.commit([archive.write_part(part)])
    return archive


def shown(page: str) -> list[str]:
    """Keys in the order of the page."""
    return [unescape(key) for key in re.findall("<strong>(.*?)</strong>", page)]


def images(page: str) -> list[np.ndarray]:
    return [decode_picture(base64.b64decode(data)).pixels for data in re.findall(r'src="data:[^,]*,([^"]*)"', page)]


def test_each_picture_is_shown_as_a_reader_sees_it(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, {"b": 35.0, "a": 34.0, "c": None})
    sheet = contact_sheet(archive)
    assert shown(sheet.html) == ["a", "b", "c"] and (sheet.pictures, sheet.matching) == (3, 3)
    for key, pixels in zip("abc", images(sheet.html), strict=True):
        assert np.array_equal(pixels, archive.read(key))
    assert "3 pictures, 34.00 to 35.00" in sheet.html and "exact · jpeg" in sheet.html


def test_keys_are_shown_in_the_order_they_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, {"b": 35.0, "a": 34.0, "c": None})
    sheet = contact_sheet(archive, keys=["none", "c", "c", "a", "b", "nor", "none"], limit=2)
    assert shown(sheet.html) == ["c", "a"] and (sheet.pictures, sheet.matching) == (2, 3)
    assert sheet.problems == [(key, "it is not in the archive") for key in ("none", "nor")]
    for keys in (["none"], []):
        with pytest.raises(ArchiveError, match="it holds none of these pictures"):
            contact_sheet(archive, keys=keys)

    page = tmp_path / "page.html"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"c\na\n")))
    assert said(capsys, "sheet", archive.url, "--keys-from", "-", "--out", page)[0] == 0
    assert shown(page.read_text()) == ["c", "a"]
    for too_much in (["a*"], ["--worst"]):
        code, _, err = said(capsys, "sheet", archive.url, *too_much, "--keys-from", page)
        assert code == 2 and "neither a pattern nor --worst goes with it" in err


def test_large_pictures_are_reduced_and_small_ones_enlarged_by_a_whole_number(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([picture_row("large", height=300, width=600), picture_row("small")])])
    page = contact_sheet(archive).html
    large, small = images(page)
    assert large.shape[:2] == (SIDE // 2, SIDE) and small.shape[:2] == (24, 32)
    assert re.findall(r'style="width: (\d+)px" alt', page) == ["256", "256"]


def test_the_worst_come_first_and_exact_ones_last(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, {"a": 36.0, "b": None, "c": 34.5, "d": 34.0, "e": 40.0})
    assert shown(contact_sheet(archive, worst=True).html) == ["d", "c", "a", "e", "b"]
    two = contact_sheet(archive, worst=True, limit=2)
    assert shown(two.html) == ["d", "c"] and (two.pictures, two.matching) == (2, 5)
    assert "The 2 of lowest PSNR of 5 pictures: 34.00 to 34.50" in two.html


def test_of_many_pictures_evenly_spread_ones(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, {f"{n:02d}/{side}": 34.0 for n in range(10) for side in "lr"})
    archive.compact()
    sheet = contact_sheet(archive, "*/r", limit=5)
    assert shown(sheet.html) == ["00/r", "02/r", "04/r", "06/r", "08/r"] and sheet.matching == 10


def test_each_beside_its_source(tmp_path: Path) -> None:
    pixels = np.full((24, 32, 3), 90, np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    for key in ("changed.png", "here.png"):
        (folder / key).write_bytes(encode_picture(pixels, 3))
    (folder / "broken.png").write_bytes(b"no picture")
    source = Source.open(folder)
    [here] = [file for file in source.files() if file.key == "here.png"]
    archive = Archive.create(str(tmp_path / "archive"))
    rows = [picture_row(key) for key in ("broken.png", "changed.png", "gone.png")]
    archive.commit([archive.write_part([*rows, replace(picture_row("here.png"), fingerprint=here.fingerprint)])])
    sheet = contact_sheet(archive, source=source)
    assert not sheet.problems  # none of the archive's
    assert np.array_equal(images(sheet.html)[-2], pixels)
    assert np.array_equal(images(sheet.html)[-1], archive.read("here.png"))
    labels = re.findall(r'title="(.*?)"', sheet.html)
    assert labels == ["archive", "source, changed or copied since", "archive", "archive", "source", "archive"]
    assert "source: no longer there" in sheet.html
    assert "source, changed or copied since: no known picture format" in sheet.html


def test_fingerprints_of_earlier_versions_are_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_picture(np.zeros((4, 4, 3), np.uint8), 3))
    source = Source.open(tmp_path / "in")
    [file] = source.files()
    earlier = replace(picture_row("a.png"), fingerprint=file.fingerprint + b"abc")
    monkeypatch.setattr(Archive, "read_rows", lambda *_: iter([earlier]))
    sheet = contact_sheet(archive_of(tmp_path, {"a.png": 34.0}), source=source)
    assert sheet.found == 1 and "changed or copied since" not in sheet.html


def test_what_was_appended_from_memory_is_compared_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    content = encode_picture(np.zeros((4, 4, 3), np.uint8), 3)
    (tmp_path / "in" / "a.png").write_bytes(content)
    archive = Archive.create(str(tmp_path / "archive"))
    archive.append({"a.png": content}, "webp")
    assert "changed or copied since" not in contact_sheet(archive, source=Source.open(tmp_path / "in")).html


def test_pictures_that_are_taken_out_meanwhile_are_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Archive, "read_rows", lambda *_: iter(()))
    with pytest.raises(ArchiveError, match="another run has taken these pictures out meanwhile"):
        contact_sheet(archive_of(tmp_path, {"a": 34.0}))


def test_a_source_with_none_of_the_pictures_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = archive_of(tmp_path, {"a": 34.0})
    (tmp_path / "other").mkdir()
    out = tmp_path / "sheet.html"
    code, _, err = said(capsys, "sheet", archive.url, "--out", out, "--beside", tmp_path / "other")
    assert code == 0 and "other has no file of these pictures" in err
    assert "1 picture, 34.00 dB" in unescape(out.read_text()).replace("\N{NO-BREAK SPACE}", " ")


def test_a_damaged_picture_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([picture_row("a"), replace(picture_row("b"), crc32c=1), picture_row("c")])])
    out = tmp_path / "made" / "page.html"
    code, said_out, err = said(capsys, "sheet", archive.url, "--out", out, "--json")
    result = json.loads(said_out)
    assert code == 1 and (result["pictures"], result["matching"]) == (3, 3)
    assert [key for key, _ in result["problems"]] == ["b"] and "\nb: stored crc32c" in f"\n{err}"
    assert len(images(out.read_text())) == 2 and "archive: stored crc32c" in unescape(out.read_text())


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    key = "<script>alert(1)</script>\n&"
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([original_row(key, encode_picture(np.zeros((1, 1, 3), np.uint8), 3), 1, 1)])])
    page = contact_sheet(archive).html
    assert "<script" not in page and shown(page) == [key.replace("\n", "\\n")]


@pytest.mark.parametrize(
    "options, told",
    [
        (["nothing*"], "no key matches 'nothing*'"),
        (["--out", "a.png"], "--out: it must end in .html"),
        (["--beside", "nowhere"], "no source at nowhere"),
        (["--out", "archive/images/sheet.html"], "sheet.html is in the archive itself"),
        (["--limit", "0"], "--limit: "),
        (["", "--out", "sheet.html"], "PATTERN: it is empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = archive_of(tmp_path, {"a": 34.0})
    code, out, err = said(capsys, "sheet", archive.url, *options)
    assert code == 2 and not out and told in err and not Path("sheet.html").exists()


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = archive_of(tmp_path, {"a": 34.0})
    (tmp_path / "page.html").mkdir()
    code, _, err = said(capsys, "sheet", archive.url, "--out", tmp_path / "page.html")
    assert code == 2 and "page.html: Is a directory; name another file" in err


def test_from_bucket_to_bucket(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    archive = Archive.create(f"{bucket}/archive")
    archive.commit([archive.write_part([picture_row("a")])])
    assert said(capsys, "sheet", archive.url, "--out", f"{bucket}/pages/sheet.html")[0] == 0
    page = Bucket(f"{bucket}/pages").read("sheet.html")
    assert page and shown(page.decode()) == ["a"]
