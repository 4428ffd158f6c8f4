"""The archive: what is committed is there once, whatever happens, and what is deleted is nowhere."""

import hashlib
import http.client
import http.server
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from deltalake import DeltaTable
from s3fs import S3FileSystem

from compressor import maintenance
from compressor.archive import CRASHED, Archive
from compressor.codec import ORIGINAL
from compressor.decoding import decoded_together
from compressor.errors import UNREADABLE, ArchiveError, CodecError, SourceError
from compressor.images import Limits, decode_picture, encode_picture
from compressor.keyed_table import KeyedTable
from compressor.parquet import QuarantineRow, Row
from compressor.repairing import repair
from compressor.sources import Source, SourceFile
from compressor.store import Store
from tests.codecs import smooth_pictures, tiny_artifact, tiny_codec
from tests.rows import (
    at_first_commit,
    commit_forever,
    commit_many,
    face_key,
    face_rows,
    lose_the_answer,
    original_row,
    picture_row,
)

spawn = multiprocessing.get_context("spawn")


def contents(archive: Archive) -> dict[str, Row]:
    """All rows by key, read afresh; fails where a key is there twice."""
    rows = [row for batch in Archive.open(archive.url).scan() for row in batch]
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: row for row in rows}


def add(archive: Archive, rows: list[Row], **how) -> None:
    archive.commit([archive.write_part(rows)], **how)


def files_of(archive: Archive, folder: str = "images") -> set[str]:
    return {name for name in os.listdir(f"{archive.url}/{folder}") if name.endswith(".parquet")}


def age(archive: Archive, seconds: float = 3700) -> None:
    """Have all its local files be written a while ago."""
    for path in Path(archive.url).rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def archive(tmp_path) -> Archive:
    return Archive.create(str(tmp_path / "archive"))


# --- opening ---


def test_created_filled_and_opened_again(archive):
    rows = [picture_row(f"{name}.png", seed) for seed, name in enumerate("cab")]
    add(archive, rows)
    again = Archive.open(archive.url)
    assert len(again) == 3
    assert list(again.keys()) == ["a.png", "b.png", "c.png"]
    assert again.read_row("c.png") == rows[0]
    assert again.read("c.png").shape == (24, 32, 3)
    with pytest.raises(ArchiveError, match=r"no picture 'd\.png'"):
        again.read("d.png")


def test_open_or_create(tmp_path):
    url = str(tmp_path / "new" / "an archive with % and #")
    add(Archive.open_or_create(url), [picture_row("a")])
    assert len(Archive.open_or_create(url)) == 1
    assert len(pickle.loads(pickle.dumps(Archive.open(url)))) == 1


def test_an_unfinished_creation_is_finished(tmp_path):
    archive = Archive.create(str(tmp_path / "archive"))
    (tmp_path / "archive" / "latentpack.json").unlink()
    with pytest.raises(ArchiveError, match="no archive"):
        Archive.open(archive.url)
    assert len(Archive.create(archive.url)) == 0


@pytest.mark.parametrize(
    "name", ["images/a.png", "images/2024/a.png", "images/part-00000-1.snappy.parquet", "quarantine/tmp-list.csv",
             "codecs/readme", "tmp-photos.zip"]
)  # fmt: skip
def test_a_folder_of_somebody_elses_is_not_taken_for_an_unfinished_creation(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ArchiveError, match=rf"not empty \(it holds '{'/'.join(name.split('/')[:2])}'\); name a folder"):
        Archive.open_or_create(str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("release", ["format-1", "format-1-parts"])
def test_all_that_an_archive_of_any_release_holds_may_be_left_of_a_creation(tmp_path, release):
    archive = shutil.copytree(Path(__file__).parent / "fixtures" / release / "archive", tmp_path / "archive")
    (archive / "latentpack.json").unlink()
    for name in ("images/tmp-x1_y", "codecs/tmp-abcdefgh", "tmp-a0b1c2d3", ".DS_Store", "images/.DS_Store"):
        (archive / name).write_bytes(b"x")
    assert len(Archive.create(str(archive))) > 0


# Each would have its log elsewhere than its files: another folder's rows are lost, and this one's never seen.
@pytest.mark.parametrize("name", ["p%20c", "p%2fc", "%FF", "p\\c", "p\tc", "p\nc", "\x7f", "\0", "\udcff"])
@pytest.mark.parametrize("made", [False, True])
def test_a_path_that_delta_rs_takes_for_another_is_refused(tmp_path, name, made):
    for other in ("p c", "p/c") if made else ():
        (tmp_path / other).mkdir(parents=True)
    for url in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}/below"):
        with pytest.raises(ArchiveError, match="its log would lie elsewhere than its files; name one in UTF-8") as told:
            Archive.open_or_create(url)
        str(told.value).encode()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_link_to_such_a_path_is_refused(tmp_path):
    (tmp_path / "p%20c").mkdir()
    (tmp_path / "link").symlink_to("p%20c")
    with pytest.raises(ArchiveError, match="holds no '%20': its log would lie elsewhere"):
        Archive.create(str(tmp_path / "link"))


@pytest.mark.parametrize("name", ["p%20c", "p\tc", "\udcff", "a#b", "a?b", "a//b", "a/./b", "a/../b", "a/.."])
def test_a_key_that_delta_rs_takes_for_another_is_refused(name):
    with pytest.raises(ArchiveError, match="its log would lie elsewhere"):
        Store(f"s3://bucket/{name}")


def test_a_key_that_delta_rs_takes_as_it_is_stays(bucket):
    archive = Archive.create(f"{bucket}/100% of ..x\\ [a]/.b")
    add(archive, [picture_row("a")])
    assert list(contents(archive)) == ["a"]
    stored = Store(bucket).fs.find(bucket)
    assert all(path.startswith(archive.url[5:] + "/") for path in stored)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for url in ("missing", "pictures", "file", "file/below"):
        with pytest.raises(ArchiveError, match="no archive here"):
            Archive.open(str(tmp_path / url))
    with pytest.raises(ArchiveError, match=r"not empty \(it holds 'a.png'\)"):
        Archive.create(str(tmp_path / "pictures"))
    with pytest.raises(ArchiveError, match="a file, where"):
        Archive.create(str(tmp_path / "file"))
    with pytest.raises(ArchiveError, match="cannot create an archive here"):
        Archive.create(str(tmp_path / "file" / "below"))
    with pytest.raises(ArchiveError, match="not in ftp://"):
        Archive.open("ftp://host/archive")


def test_a_newer_format_is_refused(archive):
    with open(f"{archive.url}/latentpack.json", "w") as marker:
        json.dump({"format": 99}, marker)
    with pytest.raises(ArchiveError, match="format is 99.*upgrade"):
        Archive.open(archive.url)


@pytest.mark.parametrize("damage", ["empty", "missing", "garbage"])
def test_a_damaged_log_is_refused(archive, damage):
    add(archive, [picture_row("a")])
    log = f"{archive.url}/images/_delta_log"
    for name in os.listdir(log):
        if damage == "missing":
            os.unlink(f"{log}/{name}")
        else:
            with open(f"{log}/{name}", "wb") as file:
                file.write(b"" if damage == "empty" else b"{garbage")
    with pytest.raises(ArchiveError, match="missing or damaged"):
        Archive.open_or_create(archive.url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_archive_reads_but_does_not_write(archive):
    add(archive, [picture_row("a")])
    os.chmod(f"{archive.url}/images", 0o500)
    reader = Archive.open(archive.url)
    assert reader.read_row("a").key == "a"
    with pytest.raises(ArchiveError, match="cannot write a part"):
        reader.write_part([picture_row("b")])


def test_a_commit_that_cannot_be_written_says_so(archive):
    part = archive.write_part([picture_row("a")])
    os.rename(f"{archive.url}/images/_delta_log", f"{archive.url}/images/elsewhere")
    with pytest.raises(ArchiveError):
        archive.commit([part])


# --- rows unique by key ---


def test_a_changed_picture_takes_the_place_of_the_old_one(archive):
    add(archive, [picture_row(key, 1) for key in "abcdef"])
    version = archive.version
    add(archive, [picture_row(key, 2) for key in "bx"], replaced=["b"])
    assert archive.version == version + 1  # one transaction: no instant without the row, or with two
    rows = contents(archive)
    assert {key: row.fingerprint[0] for key, row in rows.items()} == dict(a=1, b=2, c=1, d=1, e=1, f=1, x=2)


def test_a_key_that_is_there_stays_unless_it_is_to_be_replaced(archive):
    add(archive, [picture_row("a", 1), picture_row("b", 1)])
    add(archive, [picture_row("b", 2), picture_row("c", 2)])
    assert {key: row.fingerprint[0] for key, row in contents(archive).items()} == dict(a=1, b=1, c=2)


def test_replaced_keys_without_a_new_row_are_left_alone(archive):
    add(archive, [picture_row("a", 1), picture_row("b", 1)])
    add(archive, [picture_row("b", 2)], replaced=["a", "b", "never"])
    assert {key: row.fingerprint[0] for key, row in contents(archive).items()} == dict(a=1, b=2)


def test_a_commit_repeated_does_nothing(archive):
    part = archive.write_part([picture_row("a")])
    archive.commit([part], batch_id="run/1")
    version = archive.version
    archive.commit([part], batch_id="run/1")
    archive.commit([part])
    Archive.open(archive.url).commit([archive.write_part([picture_row("z")])], batch_id="run/1")
    assert archive.version == version
    assert list(contents(archive)) == ["a"]


def test_parts_of_one_commit_may_hold_the_same_key(archive):
    parts = [archive.write_part([picture_row("a", seed), picture_row(f"b{seed}", seed)]) for seed in (1, 2)]
    archive.commit(parts)
    assert {key: row.fingerprint[0] for key, row in contents(archive).items()} == dict(a=1, b1=1, b2=2)


def test_a_part_that_has_vanished_is_not_committed(archive):
    part = archive.write_part([picture_row("a")])
    os.unlink(f"{archive.url}/images/{part.path}")
    with pytest.raises(ArchiveError, match="gone or incomplete"):
        archive.commit([part])
    assert contents(archive) == {}


def test_whatever_is_done_the_table_is_as_a_dict_would_be(archive):
    """A random history against the plainest model there is."""
    chance = random.Random(5)
    model: dict[str, int] = {}
    names = [face_key(number) for number in range(40)]
    for step in range(40):
        keys = chance.sample(names, chance.randint(1, 12))
        action = chance.choice(["commit", "commit", "commit", "delete", "compact"])
        if action == "commit":
            replaced = [key for key in keys if chance.random() < 0.5]
            add(archive, [picture_row(key, step) for key in keys], replaced=replaced)
            model.update({key: step for key in keys if key not in model or key in replaced})
        elif action == "delete":
            assert archive.delete(keys) == sum(model.pop(key, None) is not None for key in keys)
        else:
            archive.compact()
        assert len(archive) == len(model)
    assert {key: row.fingerprint[0] for key, row in contents(archive).items()} == model


def test_several_runs_at_once_lose_nothing_and_double_nothing(archive):
    workers = [spawn.Process(target=commit_many, args=(archive.url, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    keys = set(contents(archive))
    assert {key for key in keys if key.startswith("own")} == {
        f"own-{worker}-{step}-{number}" for worker in range(3) for step in range(6) for number in range(4)
    }
    assert {key for key in keys if key.startswith("shared")} == {f"shared-{number}" for number in range(9)}


def test_killed_at_any_instant_the_archive_is_whole(archive):
    for attempt in range(3):
        run = spawn.Process(target=commit_forever, args=(archive.url,))
        run.start()
        deadline = time.monotonic() + 30
        while len(Archive.open(archive.url)) < 60 * (attempt + 1) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        rows = contents(archive)
        assert sorted(rows) == [face_key(number) for number in range(len(rows))]
    age(archive)
    archive.vacuum(0)
    assert files_of(archive) == {part.path for part in Archive.open(archive.url)._images.parts}
    assert len(contents(archive)) == len(rows)


def test_readers_see_the_old_row_or_the_new_one(archive):
    add(archive, [picture_row(key, 0) for key in "abc"])
    seen, stop = [], threading.Event()

    def read():
        reader = Archive.open(archive.url)
        while not stop.is_set():
            reader.refresh()
            seen.append((len(reader), reader.read_row("b").fingerprint[0]))

    thread = threading.Thread(target=read)
    thread.start()
    for seed in range(1, 20):
        add(archive, [picture_row("b", seed)], replaced=["b"])
    stop.set()
    thread.join()
    assert {count for count, _ in seen} == {3}
    assert [seed for _, seed in seen] == sorted(seed for _, seed in seen)


def test_what_is_committed_outlives_a_power_cut(tmp_path, monkeypatch):
    """All files and folders were synced after they last changed: at each commit, and before the log behind is cut."""
    synced: dict[int, int] = {}
    fsync, delete = os.fsync, Store.delete

    def noting(handle: int) -> None:
        fsync(handle)
        synced[os.fstat(handle).st_ino] = time.time_ns()

    def unsynced() -> list[str]:
        paths = [archive.url, *(str(path) for path in Path(archive.url).rglob("*"))]
        found = [os.stat(path) for path in paths]
        return [path for path, stat in zip(paths, found, strict=True) if synced.get(stat.st_ino, 0) < stat.st_mtime_ns]

    def delete_what_is_replaced(store: Store, names: list[str]) -> None:
        if any("_delta_log" in name for name in names):
            assert [path for path in unsynced() if "_delta_log" in path] == []
        delete(store, names)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Store, "delete", delete_what_is_replaced)
    archive = Archive.create(str(tmp_path / "new" / "archive"))
    assert unsynced() == []
    for number in range(21):  # beyond a checkpoint
        add(archive, [picture_row(f"{number}")])
        assert unsynced() == []
    assert any("checkpoint.parquet" in name for name in os.listdir(f"{archive.url}/images/_delta_log"))
    archive.delete(["7"])
    assert len(os.listdir(f"{archive.url}/images/_delta_log")) < 5


def test_a_batch_and_what_is_decoded_together_are_bounded(archive, monkeypatch):
    rows = [picture_row(f"{number}", height=8 * (number + 1)) for number in range(6)]
    add(archive, rows)
    size = sum(len(row.payload) for row in rows[:3])
    monkeypatch.setattr("compressor.archive.BYTES_AT_ONCE", size)
    batches = list(archive.scan(batch_size=5))
    assert [row for batch in batches for row in batch] == rows
    assert [len(batch) for batch in batches][0] == 3
    assert all(sum(len(row.payload) for row in batch) <= size for batch in batches)
    assert max(len(batch) for batch in archive.scan(["key"], batch_size=5)) == 5
    monkeypatch.setattr("compressor.decoding.DECODED_PIXELS", 32 * 32 * 3)
    assert [len(chunk) for chunk in decoded_together(rows)] == [3, 2, 1], "as a network pads them"


# --- erasure, compaction, vacuum ---


def test_deleted_pictures_are_in_no_file(archive):
    secret = picture_row("secret/person.png", 77)
    add(archive, [picture_row("a", 1), secret, picture_row("z", 2)])
    add(archive, [picture_row("b", 3)])
    archive.compact()
    archive.quarantine([QuarantineRow.now("secret/person.png", b"12345678", "corrupt", "no", "run")])
    assert archive.delete(["secret/person.png", "not there"]) == 1
    for folder, _, names in os.walk(archive.url):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            assert secret.payload not in data, name
            assert b"secret" not in data, name
    assert list(contents(archive)) == ["a", "b", "z"]
    assert list(Archive.open(archive.url).quarantined()) == []


def test_a_deletion_killed_before_its_bytes_were_gone_is_finished_by_the_next(archive):
    secret = picture_row("secret.png", 77)
    add(archive, [picture_row("a", 1), secret])
    archive._images.delete([secret.key])
    assert len(files_of(archive)) == 2
    assert archive.delete([secret.key]) == 0
    assert len(files_of(archive)) == 1


def test_others_go_on_after_a_deletion_has_cut_the_log(archive):
    add(archive, [picture_row(key, 1) for key in "abc"])
    reader, writer = Archive.open(archive.url), Archive.open(archive.url)
    for seed in range(3):
        add(archive, [picture_row(f"d{seed}")])
    archive.delete(["b"])
    assert reader.read_row("a").key == "a"  # its file is gone: it looks again
    add(writer, [picture_row("x")], batch_id="x")
    writer.compact()
    writer.vacuum()
    assert sorted(contents(archive)) == ["a", "c", "d0", "d1", "d2", "x"]


def test_compaction_makes_few_sorted_files_and_changes_no_row(archive):
    numbers = list(range(400))
    random.Random(1).shuffle(numbers)
    rows = face_rows(400)
    for start in range(0, 400, 20):
        add(archive, [rows[number] for number in numbers[start : start + 20]])
    before = contents(archive)
    assert maintenance.compact(archive._images, 60_000) > 10
    assert contents(archive) == before
    assert list(archive.keys()) == sorted(before)
    ranges = [part.key_range for part in archive._images.parts]
    assert 4 <= len(ranges) <= 6  # 300 KB
    assert max(part.size for part in archive._images.parts) < 80_000
    assert all(previous[1] < following[0] for previous, following in zip(ranges, ranges[1:], strict=False))
    assert maintenance.compact(archive._images, 60_000) == 0


def test_a_commit_whose_answer_is_lost_costs_nothing_though_others_went_on_from_it(archive):
    add(archive, [picture_row(f"a{number}") for number in range(5)])
    add(archive, [picture_row(f"b{number}") for number in range(5)])

    def go_on() -> None:
        add(Archive.open(archive.url), [picture_row("a2", 2)], replaced=["a2"])
        lose_the_answer()

    part = archive.write_part([picture_row("a1", 1), picture_row("b1", 1)])
    with at_first_commit(after=go_on):
        archive.commit([part], replaced=["a1", "b1"], batch_id="x")
    expected = {row.key: row for letter in "ab" for row in (picture_row(f"{letter}{number}") for number in range(5))}
    assert contents(archive) == expected | {
        "a1": picture_row("a1", 1),
        "b1": picture_row("b1", 1),
        "a2": picture_row("a2", 2),
    }
    archive.vacuum(0)
    assert Archive.open(archive.url).verify() == []


def test_what_is_damaged_on_its_way_is_read_again_before_it_is_written_anew(archive, monkeypatch):
    """A bit that flips in memory or in the network must not become the archive's."""
    rows = [picture_row(f"{number}", number) for number in range(4)]
    for row in rows:
        add(archive, [row])
    ranges, flipped = Store.ranges, []

    def flip_once(store: Store, name: str, spans: list[tuple[int, int]]) -> list[bytes]:
        answers = ranges(store, name, spans)
        for index, data in enumerate(answers):
            if not flipped and rows[2].payload in data:
                at = data.index(rows[2].payload) + 100
                answers[index] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                flipped.append(name)
        return answers

    monkeypatch.setattr(Store, "ranges", flip_once)
    assert Archive.open(archive.url).compact() == 3
    assert flipped and contents(archive) == {row.key: row for row in rows}


def test_a_compaction_steps_back_and_leaves_no_copies_where_a_picture_was_replaced_meanwhile(archive, monkeypatch):
    for row in face_rows(4):
        add(archive, [row])
    write = KeyedTable.write
    [newer] = face_rows(1, seed=9)

    def replace_meanwhile(table: KeyedTable, rows):
        monkeypatch.setattr(KeyedTable, "write", write)
        written = write(table, rows)
        add(Archive.open(archive.url), [newer], replaced=[face_key(0)])
        return written

    monkeypatch.setattr(KeyedTable, "write", replace_meanwhile)
    assert Archive.open(archive.url).compact() == 0
    assert contents(Archive.open(archive.url)) == {row.key: row for row in [newer, *face_rows(4)[1:]]}
    live = {part.path for part in Archive.open(archive.url).tables[0].parts}
    assert len(files_of(archive) - live) == 1, "the one that was replaced"


def test_a_compacted_file_that_others_go_on_from_at_once_stays(archive):
    rows = face_rows(200)
    for start in range(0, 200, 50):
        add(archive, rows[start : start + 50])
    before, changed = contents(archive), replace(rows[7], quality=3)
    with at_first_commit(after=lambda: add(Archive.open(archive.url), [changed], replaced=[changed.key])):
        assert maintenance.compact(archive._images, 100_000) == 3
    archive.vacuum(0)
    assert contents(archive) == before | {changed.key: changed}


def test_compaction_refuses_to_name_files_that_were_vacuumed_meanwhile(archive, monkeypatch):
    for row in face_rows(4):
        add(archive, [row])
    before, transact = contents(archive), KeyedTable.transact

    def vacuum_first(table, *arguments):
        for part in set(os.listdir(f"{archive.url}/images")) - {part.path for part in table.parts} - {"_delta_log"}:
            os.remove(f"{archive.url}/images/{part}")
        return transact(table, *arguments)

    monkeypatch.setattr(KeyedTable, "transact", vacuum_first)
    with pytest.raises(ArchiveError, match="gone or incomplete"):
        maintenance.compact(archive._images)
    monkeypatch.undo()
    assert contents(Archive.open(archive.url)) == before


def test_an_original_reads_back_whatever_limits_it_was_archived_under(archive, monkeypatch):
    pixels = np.zeros((40, 50, 3), np.uint8)
    add(archive, [original_row("a.png", encode_picture(pixels, 3), 50, 40)])
    monkeypatch.setattr(decode_picture, "__defaults__", (Limits(max_pixels=100),))
    monkeypatch.setattr(Limits, "max_pixels", 100)
    assert (archive.read("a.png") == pixels).all()


def test_deleting_takes_orphans_that_hold_the_picture(archive):
    secret = picture_row("secret.png", 77)
    add(archive, [picture_row("a", 1), secret])
    orphan = Path(archive.url, "images", archive.write_part([secret]).path)  # of a run that was killed
    os.utime(orphan, (time.time() - 3700,) * 2)
    assert archive.delete(["secret.png"]) == 1 and not orphan.exists()


@pytest.mark.parametrize("hours", [0, 1])
def test_vacuum_leaves_runs_in_flight_alone(archive, hours):
    add(archive, [picture_row("a")])
    archive.put_codec("x", b"x")
    Path(archive.url, "codecs", "tmp-killed01").touch()
    orphan = archive.write_part([picture_row("c")])
    age(archive)
    Path(archive.url, "codecs", "tmp-arriving").touch()
    waiting = archive.write_part([picture_row("b")])
    assert archive.vacuum(hours) == 2
    assert sorted(os.listdir(f"{archive.url}/codecs")) == ["tmp-arriving", "x.safetensors"]
    assert orphan.path not in files_of(archive)
    archive.commit([waiting])
    assert sorted(contents(archive)) == ["a", "b"]


@pytest.mark.parametrize("hours", [0, 1])
def test_the_age_that_vacuum_is_given_is_that_of_replaced_files(archive, hours):
    add(archive, [picture_row("a", 1)])
    add(archive, [picture_row("a", 2)], replaced=["a"])
    age(archive)
    assert archive.vacuum(hours) == (hours == 0)
    assert [row.fingerprint[0] for row in contents(archive).values()] == [2]


@pytest.mark.parametrize("erasing", [False, True])
def test_what_is_committed_while_vacuum_lists_orphans_stays(archive, monkeypatch, erasing):
    add(archive, [picture_row("a")])
    late = archive.write_part([picture_row("late")])
    age(archive)
    unneeded, waiting = KeyedTable.unneeded, [late]

    def commit_meanwhile(table: KeyedTable, hours: int, full: bool) -> list[str]:
        found = unneeded(table, hours, full)
        if late.path in found and waiting:
            Archive.open(archive.url).commit([waiting.pop()])
        return found

    monkeypatch.setattr(KeyedTable, "unneeded", commit_meanwhile)
    assert (archive.delete(["nothing"]) if erasing else archive.vacuum()) == 0
    assert not waiting and sorted(contents(archive)) == ["a", "late"]


def test_no_file_is_deleted_that_latentpack_did_not_write(archive):
    """However it came there: ``create`` of earlier versions took a folder that held only ``images``."""
    theirs = [
        "images/a.png", "images/tmp-a.png", "images/2024/part-793e49c8a0e6475dafc813ddefa86370.parquet",
        "images/part-00000-1.snappy.parquet", "quarantine/list.csv", "codecs/tmp-notes.txt", "codecs/tmp-old/x",
        "tmp-a.png",
    ]  # fmt: skip
    for name in theirs:
        Path(archive.url, name).parent.mkdir(exist_ok=True)
        Path(archive.url, name).write_bytes(b"theirs")
    ours = ["images/part-793e49c8a0e6475dafc813ddefa86370.parquet", "images/tmp-abcdefgh", "codecs/tmp-a0b1c2_d"]
    for name in ours:
        Path(archive.url, name).write_bytes(b"ours")
    add(archive, [picture_row("a"), picture_row("b")])
    assert archive.delete(["a"]) == 1
    age(archive)
    archive.vacuum(0)
    assert archive.delete(["b"]) == 1
    assert {name: Path(archive.url, name).read_bytes() for name in theirs} == dict.fromkeys(theirs, b"theirs")
    assert not any(Path(archive.url, name).exists() for name in ours)
    assert archive.verify() == [] and archive.info().files == 0


# --- what is known ---


def source_file(row: Row, **changes) -> SourceFile:
    return replace(SourceFile(row.key, row.key, row.source_bytes, row.fingerprint), **changes)


def test_known_tells_new_changed_same_and_quarantined(archive):
    rows = face_rows(50)
    add(archive, rows[:30])
    add(archive, rows[30:40])
    archive.quarantine(
        [
            QuarantineRow.now("bad.png", b"12345678", "corrupt", "no", "run"),
            QuarantineRow.now(rows[1].key, b"87654321", "corrupt", "the new version does not decode", "run"),
        ]
    )
    files = [
        source_file(rows[0]),
        source_file(rows[35]),
        source_file(rows[45]),
        source_file(rows[0], fingerprint=b"00000000"),
        source_file(rows[0], key="bad.png", fingerprint=b"12345678"),
        source_file(rows[0], key="bad.png", fingerprint=b"mended!!"),
        source_file(rows[1], fingerprint=b"87654321"),
    ]
    known = Archive.open(archive.url).known()
    assert known.state(files) == ["same", "same", "new", "changed", "quarantined", "new", "quarantined"]
    assert (len(known), known.nbytes) == (40, 42 * 16)
    assert Archive.create(archive.url + "-empty").known().state(files[:2]) == ["new", "new"]


def test_what_crashed_a_worker_or_was_not_given_is_tried_again(archive):
    reasons = {"a": CRASHED, "b": "corrupt", "c": UNREADABLE}
    archive.quarantine([QuarantineRow.now(key, bytes(8), reason, "", "run") for key, reason in reasons.items()])
    files = [SourceFile(key, key, 1, bytes(8)) for key in reasons]
    assert archive.known().state(files) == ["new", "quarantined", "new"]


def test_quarantine_keeps_the_latest_entry_until_it_is_cleared(archive):
    def entry(key, reason):
        return QuarantineRow.now(key, b"12345678", reason, "ends early", "run-1")

    archive.quarantine([entry("a", "truncated"), entry("b", "corrupt")])
    archive.quarantine([entry("a", "corrupt")])
    assert [(row.key, row.reason) for row in archive.quarantined()] == [("a", "corrupt"), ("b", "corrupt")]
    assert archive.info().quarantine_reasons == {"corrupt": 2}
    assert archive.clear_quarantine(["a", "c"]) == 1
    assert [row.key for row in Archive.open(archive.url).quarantined()] == ["b"]


# --- reading ---


def test_reading_one_picture_reads_one_row_group_and_is_fast(archive):
    for start in range(0, 20_000, 5_000):
        add(archive, face_rows(5_000, start))
    archive = Archive.open(archive.url)
    size = archive.info().table_bytes
    archive = Archive.open(archive.url)
    spans: list[tuple[int, int]] = []
    ranges = archive._store.ranges
    archive._store.ranges = lambda name, wanted: (spans.extend(wanted), ranges(name, wanted))[1]
    assert archive.read_row(face_key(12_345)).key == face_key(12_345)
    assert len(spans) <= 3  # footer, keys, row
    assert sum(end - start for start, end in spans) < size / 15
    started = time.perf_counter()
    for number in range(0, 20_000, 1_000):
        assert archive.read_row(face_key(number)).key == face_key(number)
    assert (time.perf_counter() - started) / 20 < 0.05


def test_scan_reads_the_columns_asked_for(archive):
    rows = face_rows(2_500)
    add(archive, rows)
    batches = list(archive.scan(["key", "source_bytes"], batch_size=1_000))
    assert [len(batch) for batch in batches] == [1_000, 1_000, 500]
    assert batches[2][3].key == rows[2_003].key and batches[2][3].source_bytes == rows[2_003].source_bytes
    assert batches[2][3].payload is None
    with pytest.raises(ArchiveError, match="no column 'size'"):
        next(archive.scan(["size"]))


def test_an_archive_carries_its_codec(archive):
    codec, data = tiny_codec("v5"), tiny_artifact("v5")
    pixels = smooth_pictures(2, 32, 48)
    archive.put_codec(codec.id, data)
    archive.put_codec(codec.id, b"not again")
    rows = []
    for number, one in enumerate(codec.encode(pixels, 3)):
        row = replace(picture_row(f"{number}"), **{name: getattr(one, name) for name in one.__dataclass_fields__})
        rows.append(original_row(row.key, row.payload, 48, 32))
        rows[-1] = replace(row, crc32c=rows[-1].crc32c)
    add(archive, [*rows, picture_row("jpeg")])
    again = Archive.open(archive.url)
    expected = codec.decode(codec.encode(pixels, 3))
    assert np.array_equal(again.read("1"), expected[1])
    assert [picture.shape for picture in again.decode([again.read_row(key) for key in ("1", "jpeg", "0")])] == [
        (32, 48, 3),
        (24, 32, 3),
        (32, 48, 3),
    ]
    assert again.verify() == []
    assert again.info().codec_bytes == len(data)
    with pytest.raises(ArchiveError, match="'unheard-of' is not in its codecs folder"):
        again.codec("unheard-of")
    os.rename(f"{archive.url}/codecs/{codec.id}.safetensors", f"{archive.url}/codecs/other.safetensors")
    with pytest.raises(ArchiveError, match="damaged or renamed"):
        again.codec("other")


def test_originals_come_back_as_they_were(archive):
    [pixels] = smooth_pictures(1, 20, 30)
    png = encode_picture(pixels, 3, "png")
    add(archive, [original_row("o.png", png, 30, 20)])
    assert np.array_equal(archive.read("o.png"), pixels)
    assert archive.read_row("o.png").payload == png
    assert archive.info().exact == 1


def test_others_read_the_table(archive):
    add(archive, face_rows(100))
    add(archive, face_rows(1, start=5, seed=9), replaced=[face_key(5)])
    images = DeltaTable(f"{archive.url}/images").to_pyarrow_table()
    assert images.num_rows == 100
    assert duckdb.sql("select count(distinct key), sum(octet_length(payload)) from images").fetchall() == [
        (100, archive.info().payload_bytes)
    ]


def test_the_digest_of_a_state_is_what_the_format_says(archive):
    """From the log's own text alone, as a reader in another language would have it."""
    add(archive, [picture_row(name, seed) for seed, name in enumerate("abc")])
    add(archive, [picture_row(name, seed) for seed, name in enumerate("bd")], replaced=["b"])
    log = sorted(Path(archive.url, "images", "_delta_log").glob("*.json"))
    entries = [json.loads(line) for path in log for line in path.read_text().splitlines()]
    of_kind = {
        kind: [one[kind] for one in entries if kind in one] for kind in ("add", "remove", "protocol", "metaData")
    }
    gone = {one["path"] for one in of_kind["remove"]}
    [protocol], [about] = of_kind["protocol"], of_kind["metaData"]
    columns = json.loads(about["schemaString"])["fields"]
    hashed = [
        (
            sorted(about["configuration"].items()),
            about["partitionColumns"],
            [(one["name"], f'PrimitiveType("{one["type"]}")', one["nullable"]) for one in columns],
            (protocol["minReaderVersion"], protocol["minWriterVersion"]),
        )
    ]
    for one in of_kind["add"]:
        if one["path"] not in gone:
            stats = json.loads(one["stats"])
            bounds = (stats["minValues"]["key"], stats["maxValues"]["key"])
            hashed.append((one["path"], one["size"], stats["numRecords"], *bounds))
    assert len(hashed) == 3, "two live files"
    sums = (int.from_bytes(hashlib.blake2b(repr(one).encode(), digest_size=8).digest(), "little") for one in hashed)
    stored = [
        one["commitInfo"]["latentpack.state"] for one in entries if "latentpack.state" in one.get("commitInfo", {})
    ]
    assert stored[-1] == f"{sum(sums) % 2**64:016x}"


@pytest.mark.parametrize("folder", ["", "long" * 20 + "/"])
@pytest.mark.parametrize("how", ["delete", "compact", "z_order"])
def test_what_another_program_has_written_is_read_and_written_on(archive, how, folder):
    """delta-rs writes strings as Arrow's views, rows in any order, and bounds of long keys shortened."""
    a, b, c, d, e, f, z = (f"{folder}{name}.png" for name in "abcdefz")
    add(archive, [picture_row(key, seed) for seed, key in enumerate((a, b, c))])
    add(archive, [picture_row(key, seed) for seed, key in enumerate((d, e, f))])
    table = DeltaTable(f"{archive.url}/images")
    if how == "delete":
        table.delete(f"key = '{b}'")
    else:
        table.optimize.compact() if how == "compact" else table.optimize.z_order(["key"])
    opened = Archive.open(archive.url)
    assert not [problem for problem in opened.verify() if "_delta_log" not in problem.key]
    assert opened.read(c).shape == (24, 32, 3)
    assert sorted(row.key for row in opened.read_rows([a, d, z])) == [a, d]
    repair(opened)  # takes the log, in whose last commit no latentpack had a part, for right
    assert opened.read(c).shape == opened.read(f).shape == (24, 32, 3)
    assert opened.remove([a, d]) == 2
    add(opened, [picture_row(c, 9)], replaced=[c])
    assert contents(opened).keys() == {b, c, e, f} - ({b} if how == "delete" else set())
    assert not opened.verify()


def test_one_key_is_not_taken_for_its_letters(archive):
    add(archive, [picture_row(key) for key in ("1", "2", "12")])
    calls = (archive.remove, archive.delete, archive.clear_quarantine, archive.scan, archive.dataset, archive.read_rows)
    for call in calls:
        with pytest.raises(TypeError, match="a list is needed"):
            call("12")
    with pytest.raises(TypeError, match="a list is needed"):
        archive.commit([], replaced="12")
    assert archive.remove(["12"]) == 1 and sorted(archive.keys()) == ["1", "2"]


def test_what_makes_no_sense_is_refused_in_words(archive):
    add(archive, [picture_row("a")])
    [[row]] = archive.scan(["key", "width", "key"])
    assert (row.key, row.width, row.payload) == ("a", 32, None)
    with pytest.raises(ArchiveError, match="a: to decode a row takes its height, channels, codec"):
        archive.decode([row])
    [[row]] = archive.scan([name for name in Row.__dataclass_fields__ if name != "crc32c"])
    with pytest.raises(ArchiveError, match="takes its crc32c too"):
        archive.decode([row])
    with pytest.raises(ArchiveError, match="at least 1 row, not 0"):
        archive.scan(batch_size=0)
    for call in (archive.scan, archive.batches):
        with pytest.raises(ArchiveError, match="no column 'nope'"):
            call(["nope"])
    with pytest.raises(ArchiveError, match="there is no picture"):
        archive.read("b\udcff")  # a name in another encoding, which no key can be
    assert archive.remove(["a\udcff"]) == 0 and list(archive.read_rows(["\udcff"])) == []
    with pytest.raises(ArchiveError, match="not -5"):
        archive.vacuum(-5)
    for wrong in ({"psnr": float("nan")}, {"psnr": float("inf")}, {"width": -1}, {"height": 0}):
        with pytest.raises(ArchiveError, match="'b'"):
            archive.write_part([replace(picture_row("b"), **wrong)])


def test_other_programs_are_told_which_files_hold_the_pictures(tmp_path):
    archive = Archive.create(str(tmp_path / "a folder, ünï {100 %}"))
    add(archive, [picture_row(key, seed) for seed, key in enumerate("abc")])
    add(archive, [picture_row("b", 7)], replaced=["b"])
    seen = duckdb.read_parquet(archive.files())
    assert sorted(key for (key,) in seen.project("key").fetchall()) == ["a", "b", "c"]


# --- verify, info ---


def test_verify_names_every_bad_picture(archive):
    [pixels] = smooth_pictures(1, 20, 30)
    good = [picture_row(f"good-{seed}", seed) for seed in range(5)]
    bad = [
        replace(picture_row("checksum", 9), crc32c=1),
        original_row("size", encode_picture(pixels, 3), 31, 20),
        original_row("garbage", b"no picture at all", 30, 20),
        replace(picture_row("codec", 9), codec="lost"),
    ]
    add(archive, good + bad)
    progress = []
    problems = {problem.key: problem.reason for problem in archive.verify(lambda *step: progress.append(step))}
    assert progress == [(9, 9)]
    assert set(problems) == {"checksum", "size", "garbage", "codec"}
    assert "stored crc32c 0x00000001, computed 0x" in problems["checksum"]
    assert "stored as 31x20, decodes to 30x20" in problems["size"]
    assert "'lost'" in problems["codec"]
    with pytest.raises(CodecError, match="crc32c"):
        archive.read("checksum")
    assert ORIGINAL in archive.info().codecs


def test_verify_reports_damaged_and_missing_files(archive):
    add(archive, [picture_row(f"a{seed}", seed) for seed in range(3)])
    add(archive, [picture_row("b")])
    parts = archive._images.parts
    path = f"{archive.url}/images/{parts[0].path}"
    payload = picture_row("", 1).payload
    with open(path, "rb+") as file:
        file.seek(file.read().index(payload) + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.unlink(f"{archive.url}/images/{parts[1].path}")
    problems = {problem.key for problem in Archive.open(archive.url).verify()}
    assert problems == {"a1", parts[1].path}  # its neighbours in the page have checksums of their own


def test_info_counts_everything(archive):
    rows = face_rows(500)
    add(archive, rows)
    info = archive.info()
    assert (info.pictures, info.quarantined, info.exact) == (500, 0, 0)
    assert info.source_bytes == sum(row.source_bytes for row in rows)
    assert info.payload_bytes == sum(len(row.payload) for row in rows)
    assert info.codecs == {"a3f09b12c45d6e78": 500}
    assert info.sizes == {"128x128": 500}
    assert info.psnr_mean == pytest.approx(np.mean([row.psnr for row in rows]), abs=1e-3)
    assert info.psnr_min == min(row.psnr for row in rows)
    assert info.psnr_percentiles["50"] == pytest.approx(np.median([row.psnr for row in rows]), abs=0.02)
    assert sum(info.psnr_histogram.values()) == 500
    assert info.metadata_bytes_per_picture < 24
    json.dumps(info.to_dict())
    json.dumps(Archive.create(archive.url + "-empty").info().to_dict())


# --- S3 ---


def test_the_same_on_s3(bucket):
    archive = Archive.create(f"{bucket}/some/archive")
    add(archive, face_rows(300), batch_id="1")
    add(archive, face_rows(100, start=250, seed=1), replaced=[face_key(250)], batch_id="2")
    reader = Archive.open(archive.url)
    assert sorted(reader.keys()) == [face_key(number) for number in range(350)]
    spans = []
    ranges = reader._store.ranges
    reader._store.ranges = lambda name, wanted: (spans.extend(wanted), ranges(name, wanted))[1]
    assert reader.read_row(face_key(250)) == face_rows(100, start=250, seed=1)[0]
    assert len(spans) < 5
    assert archive.delete([face_key(0)]) == 1
    archive.compact()
    archive.vacuum(0)
    assert reader.read_row(face_key(1)) == face_rows(300)[1]
    assert len(pickle.loads(pickle.dumps(archive))) == 349
    assert archive.known().state([source_file(row) for row in face_rows(2)]) == ["new", "same"]


def test_a_bucket_of_somebody_elses_is_refused_at_the_first_page(bucket, monkeypatch):
    import boto3

    client = boto3.client("s3")
    for number in range(9):
        client.put_object(Bucket=bucket[5:], Key=f"images/{number}.png", Body=b"x")
        client.put_object(Bucket=bucket[5:], Key=f".other/flat/{number}.png", Body=b"x")
    monkeypatch.setattr("compressor.store.KEYS_A_PAGE", 2)
    listed: list[str] = []
    call_s3 = S3FileSystem.call_s3

    def noting(fs: S3FileSystem, method: str, **request):
        listed.append(request["Prefix"])
        return call_s3(fs, method, **request)

    monkeypatch.setattr(S3FileSystem, "call_s3", noting)
    for prefix, found in ((".other/flat/", "0.png"), ("", "images/0.png")):
        with pytest.raises(ArchiveError, match=rf"not empty \(it holds '{found}'\)"):
            Archive.create(f"{bucket}/{prefix}")
    assert [listed.count(prefix) for prefix in (".other/flat/", "", "images/")] == [1, 1, 1]
    assert len(client.list_objects_v2(Bucket=bucket[5:])["Contents"]) == 18


def test_a_folder_that_an_s3_console_made_is_empty(bucket):
    import boto3

    boto3.client("s3").put_object(Bucket=bucket[5:], Key="made/by/console/", Body=b"")
    boto3.client("s3").put_object(Bucket=bucket[5:], Key="made/by/console/images/", Body=b"")
    archive = Archive.open_or_create(f"{bucket}/made/by/console")
    add(archive, [picture_row("a")])
    assert list(contents(archive)) == ["a"]


def test_s3_errors_are_told_plainly(bucket, monkeypatch):
    with pytest.raises(ArchiveError, match="no archive here"):
        Archive.open(f"{bucket}/none")
    with pytest.raises(ArchiveError, match="bucket does not exist"):
        Archive.create("s3://there-is-no-such-bucket/archive")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ArchiveError, match="no TLS; .* set AWS_ALLOW_HTTP=true"):
        Archive.create(f"{bucket}/archive")


class OtherStore(http.server.BaseHTTPRequestHandler):
    """An S3 server in front of another that does as some do: it may drop conditions, refuse them, or say less."""

    behind = ""
    conditions = "honoured"  # or "ignored", or "refused"
    tells_codes_alone = False
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        left_out = {"expect"} | ({"if-none-match"} if self.conditions == "ignored" else set())
        if self.conditions == "refused" and "If-None-Match" in self.headers:
            self.answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            return
        connection = http.client.HTTPConnection(self.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 400 and self.tells_codes_alone:
            content = re.sub(rb"<Condition>.*?</Condition>", b"", content)
            content = re.sub(rb"<Message>.*?</Message>", b"<Message></Message>", content)
            del answer.headers["Content-Length"]
        self.answer(answer.status, dict(answer.getheaders()), content)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        if self.command == "HEAD" or status != 204:
            self.send_header("Content-Length", headers.get("Content-Length", str(len(content))))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815

    def log_message(self, *args) -> None:
        pass


@contextmanager
def other_store(s3_server, **ways):
    """Options of a store of other ways."""
    handler = type("Handler", (OtherStore,), {"behind": s3_server.removeprefix("http://"), **ways})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_store_without_conditional_puts_is_refused_before_the_first_write(bucket, s3_server, conditions):
    import boto3

    sound = Archive.create(f"{bucket}/sound")
    with other_store(s3_server, conditions=conditions) as options:
        with pytest.raises(ArchiveError, match="ignores conditional puts"):
            Archive.create(f"{bucket}/archive", options)
        moved = Archive.open(sound.url, options)
        with pytest.raises(ArchiveError, match="ignores conditional puts"):
            add(moved, [picture_row("a")])
    objects = boto3.client("s3").list_objects_v2(Bucket=bucket[5:])["Contents"]
    assert all(entry["Key"].startswith("sound/") and "probe" not in entry["Key"] for entry in objects)
    assert len(Archive.open(sound.url)) == 0


def test_a_store_that_tells_codes_alone_as_ceph_does_is_written_to_and_understood(bucket, s3_server):
    with other_store(s3_server, tells_codes_alone=True) as options:
        archive = Archive.create(f"{bucket}/archive", options)
        add(archive, [picture_row("a")])
        assert list(Archive.open(archive.url, options).keys()) == ["a"]
        with pytest.raises(ArchiveError, match="cannot create an archive here: NoSuchBucket"):
            Archive.create("s3://there-is-no-such-bucket/archive", options)
        settings = {"endpoint_url": options["AWS_ENDPOINT_URL"]}
        with pytest.raises(SourceError, match="NoSuchBucket"):
            list(Source.open("s3://there-is-no-such-bucket/pictures", settings).files())


# --- scans that end early ---


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_scan_says_whether_it_ended_for_another_run_or_for_damage(tmp_path, request, where):
    archive = Archive.create(str(tmp_path / "archive") if where == "disk" else f"{request.getfixturevalue('bucket')}/a")
    add(archive, [picture_row("a"), picture_row("b")])
    scans = [Archive.open(archive.url).scan, Archive.open(archive.url).keys]
    archive.delete(["a"])
    for scan in scans:
        with pytest.raises(ArchiveError, match="another run has compacted or vacuumed it; read it again"):
            list(scan())
    store, (part,) = archive._store, archive._images.parts
    chunk = archive._images.footer(part).row_group(0).column(0)
    data = bytearray(store.get(f"images/{part.path}"))
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    store.put(f"images/{part.path}", bytes(data))
    opened = Archive.open(archive.url)
    for scan in (opened.scan, opened.keys):
        with pytest.raises(ArchiveError, match="it is damaged; see 'latentpack verify' and 'latentpack repair'"):
            list(scan())


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), TimeoutError(110, "timed out")])
def test_a_scan_that_storage_refuses_speaks_of_no_damage(archive, monkeypatch, error):
    def refuse(*_):
        raise error

    add(archive, [picture_row("a")])
    monkeypatch.setattr(Store, "ranges", refuse)
    with pytest.raises(ArchiveError, match=rf"cannot read it to the end: .*{error.strerror}"):
        list(Archive.open(archive.url).keys())
