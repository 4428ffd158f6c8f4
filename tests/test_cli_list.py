"""``latentpack list``: keys as other commands take them, and more of each picture for programs."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compressor.archive import Archive
from flows.cli import run
from tests.commands import LATENTPACK, ended, said
from tests.rows import picture_row

KEYS = ("a b.png", "Sub/b.jpg", "sub/[x].png", "sub/deep/b.jpg", "sub/ö.png")


def archive_of(folder: Path, keys: Sequence[str] = KEYS) -> Archive:
    """An archive of two files, with a picture for each key."""
    archive = Archive.create(str(folder / "archive"))
    for part in (keys[:2], keys[2:]):
        archive.commit([archive.write_part([picture_row(key) for key in part])])
    return Archive.open(archive.url)


@pytest.mark.parametrize(
    "pattern, listed",
    [
        ([], KEYS),
        (["sub/*.jpg"], ("sub/deep/b.jpg",)),  # not Sub/b.jpg; a * is a / too
        (["*[[]x].png"], ("sub/[x].png",)),
        (["sub/?.png"], ("sub/ö.png",)),
        (["b.jpg"], ()),
    ],
)
def test_keys_in_the_order_of_the_archive(
    pattern: list[str], listed: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = archive_of(tmp_path)
    code, out, err = said(capsys, "list", archive.url, *pattern)
    assert code == 0 and out.splitlines() == [key for key in archive if key in listed]
    assert len(out.splitlines()) == len(listed)
    assert ("no key matches 'b.jpg'" in err) == (not listed)


def test_no_payload_is_read_for_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, read = archive_of(tmp_path), []
    plain = Archive.row_group

    def seen(self: Archive, part: Any, group: int, columns: Sequence[str] | None = None) -> Any:
        read.append(tuple(columns or ["all"]))
        return plain(self, part, group, columns)

    monkeypatch.setattr(Archive, "row_group", seen)
    assert said(capsys, "list", archive.url)[0] == 0
    assert read == [("key",)] * 2
    assert said(capsys, "list", archive.url, "a*", "--json")[0] == 0
    assert sum("payload" in columns for columns in read) == 1  # of the file that has such a key


def test_json_has_an_object_for_each_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = archive_of(tmp_path)
    code, out, _ = said(capsys, "list", archive.url, "--json", "*.png")  # in any order
    assert (
        out
        == said(capsys, "list", archive.url, "*.png", "--json")[1]
        == said(capsys, "list", "--json", archive.url, "*.png")[1]
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["key"] for one in found] == [key for key in archive if key.endswith(".png")]
    for one in found:
        row = archive.read_row(one["key"])
        expected = {name: getattr(row, name) for name in ("key", "width", "height", "codec", "quality", "psnr")}
        assert one == expected | {"bytes": len(row.payload)}


def test_what_it_lists_can_be_erased_by_it(tmp_path: Path) -> None:
    archive = archive_of(tmp_path)
    listed = subprocess.run([*LATENTPACK, "list", archive.url, "sub/*"], capture_output=True, timeout=60)
    done = subprocess.run(
        [*LATENTPACK, "delete", archive.url, "--keys-from", "-"], input=listed.stdout, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout == b"3 pictures erased\n"
    assert set(Archive.open(archive.url).keys()) == {"a b.png", "Sub/b.jpg"}


def test_a_key_with_a_line_end_is_never_read_as_two(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, ("a\nb.png", "b.png", "c.png\r", "d\x1b.png"))
    listed = subprocess.run([*LATENTPACK, "list", archive.url], capture_output=True, timeout=60).stdout
    assert listed.split(b"\n") == [rb"a\nb.png", b"b.png", rb"c.png\r", b"d\x1b.png", b""]


def test_a_terminal_gets_no_orders_from_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, ("a.png", "b.png", "d\x1b[31m.png"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["list", archive.url, "d*"]) == 0
    assert capsys.readouterr().out == "d\\x1b[31m.png\n"


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, [f"{number:07}.png" for number in range(20_000)])  # more than a pipe holds
    for more in ([], ["--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as gone:
            assert ended("list", archive.url, *more, stdout=gone, stderr=subprocess.PIPE) == (0, "")
