"""Pictures back as files: each by its key, the same whichever others are asked for, and never outside the folder."""

import errno
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from skimage import data

from compressor import restoring
from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.destinations import Bucket, Folder
from compressor.errors import ArchiveError
from compressor.images import decode_picture
from compressor.keyed_table import KeyedTable
from compressor.metrics import psnr
from compressor.parquet import Row
from compressor.picture_writing import encode_picture
from compressor.quality import encode_to_target
from compressor.restoring import file_name, find_clashes, restore, safe_path
from compressor.sources import Source
from compressor.store import s3_filesystem
from tests.codecs import smooth_pictures
from tests.rows import original_row, picture_row


def archive_of(tmp_path: Path, *keys: str) -> Archive:
    """Other pictures under each key."""
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([picture_row(key, seed) for seed, key in enumerate(keys)])])
    return archive


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "key",
    [
        "../out.png",
        "/etc/passwd",
        "a/../../b.png",
        "C:\\b.png",
        "a\0b.png",
        "a\nb.png",
        "",
        "x" * 1000 + ".png",
        "con.png",
    ],
)
def test_a_restored_path_stays_inside_and_names_one_file(key: str, tmp_path: Path) -> None:
    path = safe_path(key)
    assert (tmp_path / path).resolve().is_relative_to(tmp_path.resolve())
    assert not path.startswith("/") and "\0" not in path and "\\" not in path
    assert all(0 < len(part.encode()) < 256 and part not in (".", "..") for part in path.split("/"))
    assert path != key


def test_a_full_disk_ends_a_restore_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, "a.png", "b.png", "c.png")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name != "a.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ArchiveError, match="cannot write b.png: No space left on device; what is written stays"):
            archive.restore(tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png"}
    assert archive.restore(tmp_path / "out").written == 3


@pytest.mark.parametrize("format", ["jpeg", "avif"])
def test_a_picture_that_a_format_cannot_hold_keeps_nothing_else_back(tmp_path: Path, format: str) -> None:
    archive = archive_of(tmp_path, "a.png")
    grain = np.random.default_rng(1).normal(128, 8, (1, 70_000, 3)).astype(np.uint8)
    archive.append({"wide.png": grain}, "jpegxl")
    done = archive.restore(tmp_path / "out", format=format)
    assert done.written == 1 and [key for key, _ in done.problems] == ["wide.png"]
    assert f"cannot write it as {format.upper()}" in done.problems[0][1]


def test_what_the_locale_cannot_name_keeps_nothing_else_back(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png", "ö.png", "z.png")
    restoring = "ascii(Archive.open(sys.argv[1]).restore(sys.argv[2]).problems)"
    code = f"import sys; from compressor import Archive; print({restoring})"
    latin = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, archive.url, tmp_path / "out"]
    ended = subprocess.run(command, env=latin, capture_output=True, text=True, timeout=100)
    assert "set PYTHONUTF8=1" in ended.stdout and names(tmp_path / "out") == {"a.png", "z.png"}, ended.stderr


def test_a_key_that_looks_like_a_replaced_one_is_another_file(tmp_path: Path) -> None:
    key = "a?.png"
    keys = [key, safe_path(key), safe_path(safe_path(key)), "550e8400-e29b-41d4-a716-446655440000.png"]
    archive = archive_of(tmp_path, *keys)
    assert archive.restore(tmp_path / "out", overwrite=True).written == len(names(tmp_path / "out")) == 4
    assert safe_path(keys[3]) == keys[3]
    for workers in (0, None):
        with pytest.raises(ArchiveError, match="workers are 1 or more"):
            archive.restore(tmp_path / "other", workers=workers)  # type: ignore[arg-type]


def test_an_original_needs_no_decoder_to_come_back_but_its_checksum(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    good, bad = (original_row(name, b"what this version cannot decode", 9, 9) for name in ("good.tif", "bad.tif"))
    archive.commit([archive.write_part([replace(bad, crc32c=bad.crc32c ^ 1), good])])
    done = restore(archive, tmp_path / "out")
    assert (tmp_path / "out" / "good.tif").read_bytes() == good.payload
    assert [key for key, reason in done.problems if "crc32c" in reason] == ["bad.tif"]


@pytest.mark.parametrize("workers", [1, 2])
def test_restored_files_hold_the_pictures_of_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(restoring, "BATCH", 2)
    archive = Archive.create(str(tmp_path / "archive"))
    keys = ("a.jpg", "a.png", "b.png", "c/d.png", "e.png")
    archive.commit([archive.write_part([picture_row(key, seed) for seed, key in enumerate(keys)])])
    out = tmp_path / "out"
    assert restore(archive, out, format="webp", workers=workers).written == len(keys)
    found = {str(path.relative_to(out)): decode_picture(path.read_bytes()) for path in out.rglob("*.webp")}
    assert len(found) == len(keys) and {one.format for one in found.values()} == {"webp"}
    for key in keys:
        stem = key.rpartition(".")[0]
        named = [one.pixels for name, one in found.items() if name.startswith(stem)]
        assert any((pixels == archive.read(key)).all() for pixels in named), key


@pytest.mark.parametrize(("format", "most"), [("jpeg", 0.9), ("avif", 0.5)])
def test_a_file_of_another_format_loses_little_of_a_picture_however_good_it_is(
    tmp_path: Path, format: str, most: float
) -> None:
    pixels = np.ascontiguousarray(data.astronaut()[40:168, 160:288])
    stored = {f"{goal}": encode_to_target(STANDARD["avif-444"], [pixels], goal)[0] for goal in (30, 34, 40, 45)}
    stored["exact"] = encode_to_target(STANDARD["lossless"], [pixels], 45)[0]
    archive = Archive.create(str(tmp_path / "archive"))
    rows = []
    for key, one in stored.items():
        assert one is not None
        encoded = one.encoded
        row = replace(picture_row(f"{key}.{format}", height=128, width=128), codec=encoded.codec, packer=encoded.packer)
        row = replace(row, quality=encoded.quality, payload=encoded.payload, crc32c=crc32c.crc32c(encoded.payload))
        rows.append(replace(row, psnr=None if key == "exact" else round(one.psnr, 2)))
    archive.commit([archive.write_part(rows)])
    restore(archive, tmp_path / "out", format=format)
    sizes = []
    for row in rows:
        file = (tmp_path / "out" / row.key).read_bytes()
        sizes.append(len(file))
        picture = decode_picture(file)
        assert picture.keep is None, "it can be archived again"
        if row.psnr is not None:
            assert psnr(pixels, picture.pixels) > row.psnr - most, row.key
        elif format == "avif":
            assert (picture.pixels == pixels).all()
    assert sizes == sorted(sizes) and sizes[-1] > 1.5 * sizes[0], "no file is larger than its picture is good"


def test_one_damaged_row_costs_no_other_its_file(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    rows = [picture_row(name, seed) for seed, name in enumerate("abc")]
    rows[1] = replace(rows[1], crc32c=rows[1].crc32c ^ 1)
    archive.commit([archive.write_part(rows)])
    done = restore(archive, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "c.png"] and [key for key, _ in done.problems] == ["b"]


def test_no_two_keys_share_a_path() -> None:
    long = ["x" * 1000 + ".png", "x" * 999 + ".png"]
    keys = ["a_b.png", "a:b.png", "a\nb.png", "a?b.png", "..", ".", "", "_", "con.png", "_con.png", *long]
    assert len({safe_path(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("row_of", [picture_row, partial(original_row, content=b"as it came", width=8, height=8)])
@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_picture_whose_path_is_the_folder_of_others_gets_another(
    tmp_path: Path, row_of: Callable[..., Row], format: str
) -> None:
    keys = ["p.png", "p.png/a.png", "p.png/b.png", "p.png/b.png/c.png"]
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([row_of(key) for key in keys])])
    whole = restore(archive, tmp_path / "out", format=format)
    assert (whole.written, whole.problems) == (len(keys), [])
    for key in keys:
        one = restore(archive, tmp_path / "one", [key], format)
        assert (one.written, one.problems) == (1, [])
    assert names(tmp_path / "one") == names(tmp_path / "out")
    clashes, _ = find_clashes(archive.keys(), format)  # as the operations' page says
    own = None if archive.read_row("p.png").codec == "original" else format
    assert names(tmp_path / "out") == {file_name(key, own, clashes) for key in keys}


@pytest.mark.parametrize("row_of", [picture_row, partial(original_row, content=b"as it came", width=8, height=8)])
@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_on_a_disk_that_folds_names_no_picture_takes_anothers_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, row_of: Callable[..., Row]
) -> None:
    """As exFAT, SMB and APFS do, by case or by Unicode form."""
    monkeypatch.setattr(Folder, "folds", lambda folder: True)
    meeting = [
        "IMG.png",
        "img.png",
        "Img.png",
        "a/\u00e9.jpg",
        "a/e\u0301.png",
        "A/E\u0301.png",
        "D.png",
        "d.png/a.png",
    ]
    keys = [*meeting, "b.png", "B/b.png", "C.jpg", "c.jpg", "f.png", "F.jpg"]
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([*(row_of(key) for key in keys), picture_row("C.png")])])
    keys += ["C.png"]
    assert restore(archive, tmp_path / "out", format=format, overwrite=True).written == len(keys)
    found = names(tmp_path / "out")
    folded = {unicodedata.normalize("NFC", name.casefold()) for name in found}
    assert len(found) == len(folded) == len(keys)
    assert not any(f"{name}/" in other for name in folded for other in folded), "a file is another's folder"
    own = None if row_of is not picture_row else format
    unmarked = ["b.png", "B/b.png", "f.png" if format == "png" else "F.jpg"]
    assert {file_name(key, own) for key in unmarked} <= found, "no more names are changed than must be"
    for key in keys:
        assert restore(archive, tmp_path / "one", [key], format).written == 1
    assert names(tmp_path / "one") == found, "a path depends on what else is restored"


def test_a_disk_is_asked_whether_it_folds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Folder(tmp_path).folds() and not Folder(tmp_path / "none").folds()

    def folding(path: Path) -> bool:
        return path.name.casefold() in {name.casefold() for name in os.listdir(path.parent)}

    monkeypatch.setattr(os.path, "lexists", folding)
    assert Folder(tmp_path).folds() and not os.listdir(tmp_path)


def test_a_link_where_a_file_should_be_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "mine")
    out = Folder(tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        out.write("a.png", b"mine")
    assert (tmp_path / "out" / "a.png").is_symlink(), "what it leads to is none of a restore's files"
    out.write("a.png", b"picture", overwrite=True)
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "out" / "a.png").read_bytes() == b"picture"


@pytest.mark.parametrize("workers", [1, 2])
def test_another_file_of_the_name_is_left_alone_until_it_is_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(restoring, "BATCH", 1)
    archive, out = archive_of(tmp_path, "a.png", "b.png", "sub/c.png"), tmp_path / "out"
    whole = restore(archive, out)
    assert restore(archive, out) == whole, "the same bytes are as good as written"
    pictures = {name: (out / name).read_bytes() for name in names(out)}
    shorter, as_long = b"the original", bytes(len(pictures["sub/c.png"]))
    (out / "a.png").write_bytes(shorter)
    (out / "sub" / "c.png").write_bytes(as_long)
    done = restore(archive, out, workers=workers)
    assert done.written == 1 and done.bytes == len(pictures["b.png"])
    assert sorted(done.problems) == [
        (name, f"cannot write {name}: another file of that name is there; --overwrite replaces it")
        for name in ("a.png", "sub/c.png")
    ]
    assert ((out / "a.png").read_bytes(), (out / "sub" / "c.png").read_bytes()) == (shorter, as_long)
    assert archive.restore(out, workers=workers, overwrite=True) == whole
    assert {name: (out / name).read_bytes() for name in names(out)} == pictures


def test_a_folder_of_the_name_is_told_and_stays(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    for overwrite in (False, True):
        [(_, reason)] = restore(archive, tmp_path / "out", overwrite=overwrite).problems
        assert reason == "cannot write a.png: Is a directory"


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_picture_has_the_same_path_whichever_others_are_restored(tmp_path: Path, format: str) -> None:
    keys = ("a", "a.JPG", "a.jpeg", "a.jpg", "a.png", "a.tar.png", "a/b.png", "a/b.webp", "b.png", "c d.png", "c.png")
    archive = archive_of(tmp_path, *keys)
    assert restore(archive, tmp_path / "all", format=format).written == len(keys)
    assert len(names(tmp_path / "all")) == len(keys)
    for key in keys:
        done = restore(archive, tmp_path / "one by one", [key, key], format)
        assert done.written == 1 and not done.problems
    assert restore(archive, tmp_path / "some", keys[::2], format).written == len(keys[::2])
    assert names(tmp_path / "one by one") == names(tmp_path / "all") > names(tmp_path / "some")
    for name in names(tmp_path / "all"):
        assert (tmp_path / "one by one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes(), name


def test_keys_that_are_not_there_are_told_and_keep_nothing_back(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png", "c.png")
    done = restore(archive, tmp_path / "out", ["d.png", "c.png", "b.png"])
    assert names(tmp_path / "out") == {"c.png"}
    assert [(key, reason.partition(": ")[2]) for key, reason in done.problems] == [
        (key, f"there is no picture {key!r}") for key in ("b.png", "d.png")
    ]


def test_no_keys_are_no_pictures_and_none_given_all(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png", "b.png")
    assert restore(archive, tmp_path / "none", set()).written == 0 and not names(tmp_path / "none")
    assert restore(archive, tmp_path / "all").written == 2


def test_a_key_that_may_be_in_what_cannot_be_read_is_not_said_to_be_missing(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png")
    archive.commit([archive.write_part([picture_row(key) for key in ("x.png", "y.png")])])
    [broken] = [path for path in archive.files() if "y.png" in Path(path).read_bytes().decode("latin-1")]
    os.truncate(broken, 100)
    done = restore(archive, tmp_path / "out", ["a.png", "nope.png", "x.png"])
    told = dict(done.problems)
    assert done.written == 1 and told.keys() == {Path(broken).name, "nope.png", "x.png"}
    assert "there is no picture" in told["nope.png"] and "which cannot be read" in told["x.png"]
    [row] = Archive.open(archive.url).read_rows(["a.png"])  # opens no other file
    assert row.key == "a.png"


def test_originals_come_back_byte_for_byte(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.jpg")
    archive.commit([archive.write_part([original_row("a.png", b"whatever it is", 9, 9)])])
    restore(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"whatever it is" and len(names(tmp_path / "out")) == 2


def test_restoring_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "sub/000.png")
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (out / "sub").symlink_to(outside)
    done = restore(archive, out)
    assert done.problems[0][0] == "sub/000.png" and "link" in done.problems[0][1]
    assert not list(outside.iterdir())


def test_a_killed_restore_stands_in_no_other_ones_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in that of one of the same process number, as in a container; an hour later what it left is gone."""
    archive = archive_of(tmp_path, "a.png", "sub/a.png")
    out = tmp_path / "out"

    def killed(*_: Any, **__: Any) -> None:
        raise OSError("killed before it renames")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", killed)
        assert len(restore(archive, out).problems) == 2
    left = [path for path in out.rglob("*") if path.is_file()]
    assert {path.parent for path in left} == {out, out / "sub"} and not list(Source.open(str(out)).files())
    assert restore(archive, out).written == 2
    assert all(path.exists() for path in left), "another restore might be at work"
    left.append(left[0].with_name(f".latentpack-{'a' * 32}"))
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    (out / "other").mkdir()
    kept = left[0].rename(out / "other" / left[0].name)
    assert restore(archive, out).written == 2
    assert names(out) == {"a.png", "sub/a.png", str(kept.relative_to(out))}, "no folder is looked into but its own"


def test_many_keys_read_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.parquet.GROUP_ROWS", 4)
    archive = archive_of(tmp_path, *(f"{number:03d}.png" for number in range(40)))
    asked: list[int] = []
    read = KeyedTable.read

    def counting(table, part, groups, columns, salvage=False):
        if "payload" in columns:
            asked.extend(groups)
        return read(table, part, groups, columns, salvage)

    monkeypatch.setattr(KeyedTable, "read", counting)
    keys = [f"{number:03d}.png" for number in (7, 5, 6, 30)]
    assert [row.key for row in archive.read_rows(keys)] == sorted(keys) and asked == [1, 7]
    assert len(archive.decode(archive.read_rows(keys))) == 4
    asked.clear()
    assert restore(archive, tmp_path / "out", keys).written == 4 and asked == [1, 7]


def test_a_destination_may_be_text_and_restoring_a_method(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png", "b.png")
    assert restore(archive, str(tmp_path / "out")).written == 2
    assert archive.restore(str(tmp_path / "one"), ["b.png"], "webp").written == 1
    assert (names(tmp_path / "out"), names(tmp_path / "one")) == ({"a.png", "b.png"}, {"b.webp"})


def test_what_cannot_be_restored_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "a.png")
    with pytest.raises(ArchiveError, match="cannot restore pictures as 'gif': choose one of png, jpeg"):
        restore(archive, tmp_path / "out", format="gif")
    with pytest.raises(TypeError, match="a list is needed"):
        restore(archive, tmp_path / "out", "a.png")


def test_workers_have_the_options_of_the_archive_that_was_opened(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "BATCH", 2)
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    archive = Archive.create(f"{bucket}/archive", {name: os.environ[name] for name in names})
    for name in names:
        monkeypatch.delenv(name)
    archive.commit([archive.write_part([picture_row(f"{number}.png", number) for number in range(6)])])
    assert restore(archive, tmp_path / "out", workers=2).written == 6


def test_pictures_restored_with_other_neighbours_are_those_that_are_there(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    archive.append({f"{number}.png": picture for number, picture in enumerate(smooth_pictures(6, 64, 64))})
    learned = [key for key in archive if archive.read_row(key).codec not in STANDARD]
    assert len(learned) > 2
    for key in learned:
        (tmp_path / "out").mkdir(exist_ok=True)
        pixels = archive.read(key).astype(int)
        pixels[::3] += np.where(pixels[::3] < 128, 1, -1)  # as sums in another batch are rounded
        (tmp_path / "out" / key).write_bytes(encode_picture(pixels.astype(np.uint8), 3))
    there = {key: (tmp_path / "out" / key).read_bytes() for key in learned}
    assert restore(archive, tmp_path / "out").problems == []
    assert {key: (tmp_path / "out" / key).read_bytes() for key in learned} == there, "none is written again"
    (tmp_path / "out" / learned[0]).write_bytes(encode_picture(smooth_pictures(1, 64, 64, seed=9)[0], 3))
    broken = (tmp_path / "out" / learned[1]).read_bytes()[:-20]
    (tmp_path / "out" / learned[1]).write_bytes(broken)
    assert [key for key, _ in restore(archive, tmp_path / "out").problems] == learned[:2]
    assert (tmp_path / "out" / learned[1]).read_bytes() == broken


def objects(prefix: str) -> dict[str, bytes]:
    """What lies below an ``s3://`` address, by its path from there."""
    fs, root = s3_filesystem(), prefix.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bucket_gets_the_files_that_a_folder_gets(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(restoring, "BATCH", 2)
    archive = archive_of(tmp_path, "a.jpg", "a.png", "../b.png", "p.png", "p.png/c d+%.png", "sub/ö.png")
    archive.commit([archive.write_part([original_row("kept.tif", b"as it came", 9, 9)])])
    here, there = tmp_path / "out", f"{bucket}/some/where"
    assert restore(archive, f"{there}/", workers=workers) == restore(archive, f"file://{here}", workers=workers)
    assert objects(there) == {name: (here / name).read_bytes() for name in names(here)}
    kinds = {
        s3_filesystem().call_s3("head_object", Bucket=bucket[5:], Key=f"some/where/{name}")["ContentType"]
        for name in ("a.png", "kept.tif")
    }
    assert kinds == {"image/png", "image/tiff"}, "as a browser shows them"


def test_another_object_of_the_name_is_left_alone_until_it_is_to_be_replaced(tmp_path: Path, bucket: str) -> None:
    archive = archive_of(tmp_path, "a.png", "b.png", "c.png")
    whole = restore(archive, bucket)
    pictures = objects(bucket)
    assert restore(archive, bucket) == whole, "the same bytes are as good as written"
    s3_filesystem().pipe({f"{bucket}/a.png": b"shorter", f"{bucket}/b.png": bytes(len(pictures["b.png"]))})
    done = restore(archive, bucket)
    assert done.written == 1 and sorted(done.problems) == [
        (name, f"cannot write {name}: another file of that name is there; --overwrite replaces it")
        for name in ("a.png", "b.png")
    ]
    assert objects(bucket)["a.png"] == b"shorter"
    assert restore(archive, bucket, overwrite=True) == whole and objects(bucket) == pictures


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_no_restored_file_gets_among_those_of_the_archive(tmp_path: Path, bucket: str, where: str) -> None:
    parent = str(tmp_path / "all") if where == "folder" else f"{bucket}/all"
    archive = Archive.create(f"{parent}/archive")
    rows = [original_row(f"archive{name}", b"{}", 9, 9) for name in ("/images/_delta_log/9.json", "/a.png", "s/b.png")]
    archive.commit([archive.write_part(rows)])
    done = restore(archive, parent, overwrite=True)
    assert done.written == 1 and {key for key, _ in done.problems} == {row.key for row in rows[:2]}
    assert all("in the archive itself" in reason for _, reason in done.problems)
    assert len(Archive.open(archive.url)) == 3


@pytest.mark.parametrize("where", ["", "file://", Path("s3://bucket/a"), "s3:/bucket/a"])
def test_an_address_that_is_half_written_is_no_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str | Path
) -> None:
    archive = archive_of(tmp_path, "a.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ArchiveError, match="is empty: name a folder|begins with s3://"):
        restore(archive, where)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("prefix", ["x/../archive", "a/./b", "a//b", "a?versionId=1", "a#b", "a/.."])
def test_a_prefix_that_others_take_for_another_is_refused(prefix: str) -> None:
    with pytest.raises(ArchiveError, match="a prefix holds no"):
        Bucket(f"s3://bucket/{prefix}")


def test_a_key_that_is_too_long_for_a_bucket_keeps_nothing_else_back(tmp_path: Path, bucket: str) -> None:
    archive = archive_of(tmp_path, "a.png", "/".join(["x" * 210] * 5) + "/b.png")
    [(_, reason)] = restore(archive, f"{bucket}/in/a/prefix").problems
    assert reason.endswith("File name too long") and list(objects(f"{bucket}/in/a/prefix")) == ["a.png"]


def test_what_a_bucket_refuses_ends_a_restore_with_one_message(tmp_path: Path, bucket: str) -> None:
    archive = archive_of(tmp_path, "a.png", "b.png")
    with pytest.raises(ArchiveError, match=r"s3://no-such-bucket-at-all: cannot use it: .*bucket does not"):
        restore(archive, "s3://no-such-bucket-at-all")
    inside = Archive.create(f"{bucket}/archive")
    inside.commit([inside.write_part([picture_row("a.png")])])
    for address, why in [
        (f"{inside.url}/restored", "is in the archive itself"),
        (inside.url.replace("s3://", "s3a://"), "is in the archive itself"),
        ("s3://", "a bucket is missing"),
        ("s3://key:secret@bucket", "holds no password"),
        ("gs://bucket/pictures", "written to a local folder or to s3://, not to gs://"),
    ]:
        with pytest.raises(ArchiveError, match=why) as told:
            restore(inside, address)
        assert "secret" not in str(told.value)
    assert restore(inside, f"{inside.url}s").written == 1, "its neighbour is not inside"


def test_who_has_no_credentials_is_told_which_to_set(
    tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ArchiveError, match="credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        restore(archive_of(tmp_path, "a.png"), "s3://bucket/a")
