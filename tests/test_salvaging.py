"""An archive that can no longer be opened: what is sound in it is brought into a new one, and the old one stays."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.defaults import CODEC
from compressor.errors import ArchiveError, NewerError
from compressor.parquet import IMAGES, QuarantineRow, Row, to_table
from compressor.salvaging import Salvaged, salvage
from compressor.store import Store
from tests.codecs import smooth_pictures, tiny_artifact
from tests.commands import said
from tests.rows import add, contents, face_rows, picture_row

Damage = Callable[[Path], object]


@pytest.fixture
def filled(archive: Archive) -> dict[str, Row]:
    """Rows of an archive of several files, of which some were replaced, and one taken out."""
    archive.quarantine([QuarantineRow.now("bad.png", b"12345", "corrupt", "no picture", "run")])
    add(archive, [picture_row("gone"), *(picture_row(f"{n}", n) for n in range(4))])
    add(archive, [picture_row("5", 5), picture_row("1", 11)], replaced=["1"])
    archive.remove(["gone"])
    archive.append({"learned": smooth_pictures(1)[0]}, tiny_artifact("v2"), target_psnr=None)
    archive.compact()
    add(archive, [picture_row("2", 12)], replaced=["2"])
    return contents(archive)


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "images" / "_delta_log").glob("*.json"))


def lose_an_entry_and_a_digit(folder: Path) -> None:
    """The newest entry, and a time in the one before: what was replaced by the newest must not seem newer."""
    *_, before, newest = entries(folder)
    newest.write_text("{")
    text = before.read_text()
    at = text.index('"modificationTime":') + len('"modificationTime":')
    before.write_text(f"{text[:at]}9{text[at + 1 :]}")


def lose_the_log(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "_delta_log")


def salvaged(archive: Archive, tmp_path: Path) -> tuple[dict[str, Row], Salvaged]:
    """What a new archive holds, and what was told; the old one is as it was, and cannot be opened."""

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path(archive.url).rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(ArchiveError):
        Archive.open(archive.url)
    new, done = salvage(archive.url, str(tmp_path / "new"))
    assert files() == before
    assert not list(new.quarantined()) and done.pictures == len(new)
    return contents(new), done


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: entries(folder)[-1].write_bytes(b"\0" * 700),
        lambda folder: entries(folder)[4].write_text("{"),
        lambda folder: entries(folder)[0].unlink(),
        lose_an_entry_and_a_digit,
        lambda folder: (folder / "latentpack.json").unlink(),
        lambda folder: (folder / "latentpack.json").write_text("{"),
        lambda folder: shutil.rmtree(folder / "quarantine"),
        lambda folder: next((folder / "quarantine" / "_delta_log").glob("*1.json")).write_text("?"),
    ],
    ids=["newest entry", "an entry", "first entry", "a digit too", "no marker", "marker", "no list", "the list's log"],
)
def test_a_new_archive_holds_what_the_old_one_did(
    archive: Archive, filled: dict[str, Row], damage: Damage, tmp_path: Path
) -> None:
    damage(Path(archive.url))
    rows, done = salvaged(archive, tmp_path)
    assert rows == filled and not done.problems
    new = Archive.open(str(tmp_path / "new"))
    assert new.verify() == [] and new.read("learned").shape == smooth_pictures(1)[0].shape


def test_without_any_log_the_newest_row_of_each_picture_counts_and_what_was_taken_out_is_back(
    archive: Archive, filled: dict[str, Row], tmp_path: Path
) -> None:
    lose_the_log(Path(archive.url))
    rows, done = salvaged(archive, tmp_path)
    assert rows == filled | {"gone": picture_row("gone")} and done.older > 0 and not done.problems


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_tells_what_was_taken_out_in_entries_that_are_gone(
    archive: Archive, filled: dict[str, Row], whole: bool, tmp_path: Path
) -> None:
    log = Path(archive.url) / "images" / "_delta_log"
    DeltaTable(str(log.parent)).create_checkpoint()
    add(archive, [picture_row("new")])
    *before, newest = entries(Path(archive.url))
    for entry in before:  # as of those over a week old
        entry.unlink()
    newest.write_text("{")
    if not whole:
        [checkpoint] = log.glob("*.checkpoint.parquet")
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    rows, done = salvaged(archive, tmp_path)
    taken_out = {} if whole else {"gone": picture_row("gone")}
    assert rows == filled | {"new": picture_row("new")} | taken_out and not done.problems


@pytest.mark.parametrize("paths", [[None], [["a"]], [b"\xff"], [7]])
def test_a_checkpoint_that_names_no_files_is_passed_over(
    archive: Archive, filled: dict[str, Row], paths: list[Any], tmp_path: Path
) -> None:
    [*_, newest] = entries(Path(archive.url))
    newest.write_text("{")
    table = pa.table({kind: [{"path": path} for path in paths] for kind in ("add", "remove")})
    pq.write_table(table, newest.with_name(newest.name.replace(".json", ".checkpoint.parquet")))
    rows, done = salvaged(archive, tmp_path)
    assert rows.items() >= filled.items() and not done.problems


def test_a_file_that_counts_at_a_checkpoint_is_brought(
    archive: Archive, filled: dict[str, Row], tmp_path: Path
) -> None:
    table = DeltaTable(str(Path(archive.url) / "images"))
    table.create_checkpoint()
    add(archive, [picture_row("new")])
    *earlier, before, last, newest = entries(Path(archive.url))
    for entry in (*earlier, last, newest):
        entry.write_text("{")
    # Taken out once, and put back by an entry that is damaged
    before.write_text("\n".join(json.dumps({"remove": {"path": Path(uri).name}}) for uri in table.file_uris()))
    rows, done = salvaged(archive, tmp_path)
    assert rows == filled | {"new": picture_row("new")} and not done.problems


def test_what_is_damaged_itself_is_named(archive: Archive, tmp_path: Path) -> None:
    for number in range(3):
        add(archive, [picture_row(f"{number}{letter}", number) for letter in "abc"])
    parts, folder = archive.tables[0].parts, Path(archive.url)
    lose_the_log(folder)
    payload = picture_row("1b", 1).payload
    bad = folder / "images" / parts[1].path
    data = bytearray(bad.read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 1
    bad.write_bytes(data)
    (folder / "images" / parts[2].path).write_bytes(b"PAR1")
    rows, done = salvaged(archive, tmp_path)
    assert sorted(name for name, _ in done.problems) == sorted(["1a", parts[2].path]), done.problems
    assert sorted(rows) == ["0a", "0b", "0c", "1b", "1c"]


def test_a_codec_is_brought_or_named(archive: Archive, tmp_path: Path) -> None:
    learned, shipped = archive.put_codec(tiny_artifact("v1")), "0" * 32
    rows = [replace(row, codec=codec) for row, codec in zip(face_rows(2), (learned, shipped), strict=True)]
    add(archive, rows)
    lose_the_log(Path(archive.url))
    assert salvaged(archive, tmp_path)[1].problems == [
        (f"codecs/{shipped}.safetensors", "missing or damaged: 1 picture cannot be decoded until it is put there")
    ]
    assert identify(tiny_artifact("v1")) == learned
    assert (tmp_path / "new" / "codecs" / f"{learned}.safetensors").read_bytes() == tiny_artifact("v1")


def test_a_shipped_codec_is_put_back(archive: Archive, tmp_path: Path) -> None:
    archive.append({"a": smooth_pictures(1, 48, 48)[0]}, CODEC, target_psnr=None, quality=30)
    for path in Path(archive.url, "codecs").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    lose_the_log(Path(archive.url))
    assert not salvaged(archive, tmp_path)[1].problems
    assert Archive.open(str(tmp_path / "new")).read("a").shape == (48, 48, 3)


def test_an_interrupted_one_goes_on_and_another_archive_is_left_alone(
    archive: Archive, filled: dict[str, Row], tmp_path: Path
) -> None:
    entries(Path(archive.url))[-1].write_text("{")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        salvage(archive.url, str(tmp_path / "new"), stop)
    assert salvaged(archive, tmp_path)[0] == filled
    assert salvaged(archive, tmp_path)[0] == filled
    other = Archive.create(str(tmp_path / "other"))
    add(other, [picture_row("mine")])
    for place, why in [(other.url, "other pictures"), (archive.url, "itself"), (f"{archive.url}/new", "in it")]:
        with pytest.raises(ArchiveError, match=why):
            salvage(archive.url, place)
    assert list(Archive.open(other.url).keys()) == ["mine"]


def test_where_it_goes_on_it_tells_again_of_what_it_could_not_bring(archive: Archive, tmp_path: Path) -> None:
    damaged = replace(picture_row("b", 1), crc32c=1)
    add(archive, [picture_row("a"), damaged, replace(picture_row("c", 2), codec="0" * 32)])
    lose_the_log(Path(archive.url))
    rows, done = salvaged(archive, tmp_path)
    assert sorted(rows) == ["a", "c"] and [name for name, _ in done.problems] == ["b", f"codecs/{'0' * 32}.safetensors"]
    assert salvaged(archive, tmp_path)[1].problems == done.problems


def test_links_and_dots_lead_to_the_archive_itself_or_away_from_it(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(archive, [picture_row("a")])
    lose_the_log(Path(archive.url))
    Path(archive.url, "latentpack.json").unlink()
    (tmp_path / "link").symlink_to(archive.url)
    before = sorted(Path(archive.url).rglob("*"))
    for place in ("link", "link/new"):
        with pytest.raises(ArchiveError, match="itself, or in it"):
            salvage(archive.url, str(tmp_path / place))
    assert sorted(Path(archive.url).rglob("*")) == before
    monkeypatch.chdir(archive.url)
    assert salvage(".", "../away")[1].pictures == 1


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"x":{"timestamp":' + b"9" * 5000 + b"}}",
        b'{"add":{"path":[]}}',
        b'{"remove":{"path":3}}',
        b"3",
    ],
    ids=["deep", "a long number", "no path", "no name", "no entry"],
)
def test_no_line_of_a_log_ends_it(archive: Archive, line: bytes, tmp_path: Path) -> None:
    for key in "ab":
        add(archive, [picture_row(key)])
    entry, last = entries(Path(archive.url))[1:]
    entry.write_bytes(entry.read_bytes() + b"\n" + line + b"\n")
    last.write_bytes(b"{")
    rows, done = salvaged(archive, tmp_path)
    assert sorted(rows) == ["a", "b"] and not done.problems


def test_what_a_disk_does_not_read_is_as_good_as_damaged(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "ab":
        add(archive, [picture_row(key)])
    archive.put_codec(tiny_artifact("v1"))
    entries(Path(archive.url))[-1].write_text("{")
    get = Store.get

    def read(store: Store, name: str) -> bytes:
        if store.url == archive.url and name.endswith(("1.json", ".safetensors")):
            raise OSError(errno.EIO, "Input/output error")
        return get(store, name)

    monkeypatch.setattr(Store, "get", read)
    rows, done = salvaged(archive, tmp_path)
    assert sorted(rows) == ["a", "b"] and not done.problems and not (tmp_path / "new" / "codecs").exists()


def test_a_file_that_the_log_names_and_that_is_gone_is_told(archive: Archive, tmp_path: Path) -> None:
    for key in "abc":
        add(archive, [picture_row(key)])
    gone = archive.tables[0].parts[0].path
    Path(archive.url, "images", gone).unlink()
    entries(Path(archive.url))[-1].write_text("{")
    rows, done = salvaged(archive, tmp_path)
    assert sorted(rows) == ["b", "c"] and [name for name, _ in done.problems] == [gone]


def test_a_file_whose_name_is_damaged_in_the_log_is_not_gone(archive: Archive, tmp_path: Path) -> None:
    for key in "ab":
        add(archive, [picture_row(key)])
    entry, last = entries(Path(archive.url))[1:]
    path = archive.tables[0].parts[0].path
    damaged = path
    for at in (8, 16, 24):
        damaged = f"{damaged[:at]}{'01'[path[at] == '0']}{damaged[at + 1 :]}"
    entry.write_text(entry.read_text().replace(path, damaged))
    last.write_text("{")
    rows, done = salvaged(archive, tmp_path)
    assert sorted(rows) == ["a", "b"] and not done.problems


def test_a_file_of_another_program_that_is_not_of_pictures_costs_no_other(archive: Archive, tmp_path: Path) -> None:
    add(archive, [picture_row("a")])
    lose_the_log(Path(archive.url))
    images = Path(archive.url, "images")
    rows = to_table([picture_row("b"), picture_row("c")], IMAGES)
    pq.write_table(pa.table({"key": ["d"]}), images / "other.parquet")
    pq.write_table(pa.table({"key": [{"key": "d"}]}), images / "nested.parquet")
    no_payload = pa.array([None, b"e"], pa.binary())
    pq.write_table(rows.drop_columns(["payload"]).append_column("payload", no_payload), images / "null.parquet")
    pq.write_table(pa.concat_tables([rows, rows]), images / "twice.parquet")
    brought, done = salvaged(archive, tmp_path)
    assert sorted(brought) == ["a", "b", "c"]
    assert sorted(name for name, _ in done.problems) == ["b", "c", "nested.parquet", "null.parquet", "other.parquet"]


def test_a_codec_that_only_a_newer_version_loads_is_brought_as_it_is(archive: Archive, tmp_path: Path) -> None:
    data = b"of a newer version"
    add(archive, [replace(picture_row("a"), codec=identify(data))])
    Path(archive.url, "codecs").mkdir()
    Path(archive.url, "codecs", f"{identify(data)}.safetensors").write_bytes(data)
    lose_the_log(Path(archive.url))
    assert not salvaged(archive, tmp_path)[1].problems
    assert (tmp_path / "new" / "codecs" / f"{identify(data)}.safetensors").read_bytes() == data


def test_what_can_be_opened_or_is_none_is_refused(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="it can be opened: 'latentpack verify' tells"):
        salvage(archive.url, str(tmp_path / "new"))
    with pytest.raises(ArchiveError, match="there is no archive"):
        salvage(str(tmp_path / "nothing"), str(tmp_path / "new"))
    Path(archive.url, "latentpack.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(NewerError, match="upgrade"):
        salvage(archive.url, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_from_bucket_to_bucket(bucket: str) -> None:
    from compressor.store import s3_filesystem

    archive = Archive.create(f"{bucket}/old")
    add(archive, [picture_row("a"), picture_row("b")])
    add(archive, [picture_row("b", 2)], replaced=["b"])
    expected = contents(archive)
    s3_filesystem().pipe_file(f"{bucket}/old/images/_delta_log/{2:020}.json", b"{")
    new, done = salvage(archive.url, f"{bucket}/new")
    assert contents(new) == expected and done.pictures == 2


def test_a_sound_archive_that_settings_keep_out_is_not_taken_for_a_damaged_one(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.create(f"{bucket}/old")
    add(archive, [picture_row("a"), picture_row("gone")])
    archive.remove(["gone"])
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ArchiveError, match="set AWS_ALLOW_HTTP"):
        salvage(archive.url, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_command_that_is_named_where_a_log_is_damaged(
    archive: Archive, filled: dict[str, Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_the_log(Path(archive.url))
    code, _, err = said(capsys, "info", archive.url)
    assert code == 2 and "'latentpack salvage' brings the pictures into a new archive" in err
    code, out, err = said(capsys, "salvage", archive.url, tmp_path / "new")
    assert (code, out) == (0, "") and f"{len(filled) + 1} pictures in {tmp_path}/new; " in err
    assert said(capsys, "verify", tmp_path / "new")[0] == 0
    code, out, _ = said(capsys, "salvage", archive.url, tmp_path / "again", "--json")
    assert code == 0 and json.loads(out)["pictures"] == len(filled) + 1
