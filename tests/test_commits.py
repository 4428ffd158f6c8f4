"""What is committed is there once, whatever happens: runs at once, kills, answers that are lost, power cuts."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from compressor import delta_log
from compressor.archive import Archive
from compressor.delta_log import DeltaLog
from compressor.errors import ArchiveError
from compressor.store import Store
from tests.rows import (
    add,
    age,
    at_first_commit,
    commit_forever,
    commit_many,
    contents,
    face_key,
    files_of,
    lose_the_answer,
    picture_row,
)

spawn = multiprocessing.get_context("spawn")


def test_a_commit_that_cannot_be_written_says_so(archive):
    part = archive.write_part([picture_row("a")])
    os.rename(f"{archive.url}/images/_delta_log", f"{archive.url}/images/elsewhere")
    with pytest.raises(ArchiveError):
        archive.commit([part])


def test_a_changed_picture_takes_the_place_of_the_old_one(archive):
    add(archive, [picture_row(key, 1) for key in "abcdef"])
    before = archive.version
    add(archive, [picture_row(key, 2) for key in "bx"], replaced=["b"])
    assert archive.version == before + 1  # one transaction: no instant without the row, or with two
    rows = contents(archive)
    assert {key: row.fingerprint[0] for key, row in rows.items()} == dict(a=1, b=2, c=1, d=1, e=1, f=1, x=2)


def test_a_commit_names_the_version_that_made_it(archive):
    add(archive, [picture_row("a")])
    entry = Path(archive.url, "images", "_delta_log", f"{archive.version:020}.json").read_text()
    assert f'"latentpack.version":"{version("latentpack")}"' in entry


def test_a_key_that_is_there_stays_unless_it_is_to_be_replaced(archive):
    add(archive, [picture_row("a", 1), picture_row("b", 1)])
    add(archive, [picture_row("b", 2), picture_row("c", 2)])
    assert {key: row.fingerprint[0] for key, row in contents(archive).items()} == dict(a=1, b=1, c=2)


def test_a_part_that_is_named_twice_is_committed_once(archive):
    part = archive.write_part([picture_row("a", 1), picture_row("b", 1)])
    archive.commit([part, part])
    assert list(contents(archive)) == ["a", "b"] and archive.verify() == []


@pytest.mark.parametrize("times", [1, 4, 99])
def test_a_log_that_is_cut_while_it_is_read_is_read_again(archive, monkeypatch, times):
    add(archive, [picture_row("a")])
    read, left = DeltaLog._read, [times]

    def cut_meanwhile(log: DeltaLog, anew: bool) -> Any:
        if left[0]:
            left[0] -= 1
            raise Exception("00000000000000000009.checkpoint.parquet not found")
        return read(log, anew)

    opened = Archive.open(archive.url)
    monkeypatch.setattr(DeltaLog, "_read", cut_meanwhile)
    if times == 99:
        with pytest.raises(ArchiveError, match="missing or damaged"):
            opened.refresh()
        assert opened.read_row("a").key == "a" and opened.version == archive.version, "what was seen is seen still"
        with pytest.raises(
            ArchiveError, match="0+9.checkpoint.parquet not found; it is missing or damaged: 'latentpack salvage'"
        ):
            Archive.open(archive.url)
    else:
        assert len(Archive.open(archive.url)) == 1


@pytest.mark.parametrize(
    "said", ["Permission denied (os error 13)", "status 403 Forbidden", "OS can't spawn worker thread"]
)
def test_a_log_that_may_not_be_read_is_not_called_damaged(archive, monkeypatch, said):
    def refused(log: DeltaLog, anew: bool) -> Any:
        raise OSError(said)

    monkeypatch.setattr(DeltaLog, "_read", refused)
    with pytest.raises(ArchiveError, match="see that it may be read, and try again") as told:
        Archive.open(archive.url)
    assert said in str(told.value) and "damaged" not in str(told.value)


def test_too_few_threads_are_told_where_delta_rs_would_wait_for_ever(archive, monkeypatch):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(delta_log, "_opened_by", 0)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(ArchiveError, match="lets this process start no more threads"):
        Archive.open(archive.url)


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


def test_a_removal_whose_answer_is_lost_is_counted(archive):
    for letter in "ab":
        add(archive, [picture_row(f"{letter}{number}") for number in range(5)])
    with at_first_commit(after=lose_the_answer):
        assert archive.remove([f"a{number}" for number in range(5)]) == 5
    assert len(contents(archive)) == 5

    def merged() -> None:
        Archive.open(archive.url).compact()
        lose_the_answer()

    add(archive, [picture_row(f"c{number}") for number in range(5)])
    with at_first_commit(before=merged):  # the file is gone, and its pictures are not
        assert archive.remove([f"b{number}" for number in range(5)]) == 5
    assert sorted(contents(archive)) == [f"c{number}" for number in range(5)]


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


def test_a_copy_of_what_is_written_meanwhile_opens_without_the_hint_of_a_newer_checkpoint(archive, tmp_path):
    """As the guide to operations has it: logs first, without ``_last_checkpoint``, then all else."""
    copy = tmp_path / "copy"
    for number in range(25):
        add(archive, [picture_row(f"{number:02}")])
    hint = shutil.ignore_patterns("_last_checkpoint")
    for folder in ("images/_delta_log", "quarantine/_delta_log"):
        shutil.copytree(f"{archive.url}/{folder}", copy / folder, ignore=hint)
    for number in range(25, 45):
        add(archive, [picture_row(f"{number:02}")])
    shutil.copytree(archive.url, copy, ignore=shutil.ignore_patterns("_delta_log"), dirs_exist_ok=True)
    there = Archive.open(str(copy))
    assert len(there) == 25 and there.verify() == []
    newer = Path(archive.url, "images/_delta_log/_last_checkpoint").read_bytes()
    (copy / "images/_delta_log/_last_checkpoint").write_bytes(newer)
    with pytest.raises(ArchiveError, match="_last_checkpoint hint"):  # what the guide says to delete then
        Archive.open(str(copy))


def test_threads_that_commit_by_one_archive_take_turns(archive):
    """What one has planned on the others would refresh away: keys were there twice, and the log no longer right."""
    add(archive, [picture_row("z", 0)])
    start = threading.Barrier(4)

    def commit(name: str) -> None:
        start.wait(60)
        for number in range(4):
            add(archive, [picture_row("z", number + 1), picture_row(f"{name}{number}")], replaced=["z"])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(commit, "abcd"))
    assert contents(archive).keys() == {"z", *(f"{name}{number}" for name in "abcd" for number in range(4))}
    add(archive, [picture_row("last")])  # which a log that is damaged would not take
