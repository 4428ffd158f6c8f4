"""Small files merged into large ones: no row changes, whatever others commit or vacuum meanwhile."""

import itertools
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from compressor import maintenance, parquet
from compressor.archive import Archive
from compressor.delta_log import DeltaLog
from compressor.errors import ArchiveError
from compressor.keyed_table import KeyedTable
from compressor.store import Store
from tests.rows import add, at_first_commit, contents, face_key, face_rows, files_of, picture_row


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
    log = sorted(Path(archive.url).glob("images/_delta_log/*.json"))
    *_, appended, compacted = (set(re.findall('"dataChange":(true|false)', path.read_text())) for path in log)
    assert (appended, compacted) == ({"true"}, {"false"}), "for whoever follows the log, no row is new"


def test_many_files_that_overlap_are_read_twice_and_not_for_each_new_file(archive, monkeypatch):
    numbers = list(range(1200))
    random.Random(1).shuffle(numbers)
    rows = face_rows(1200)
    for start in range(0, 1200, 20):
        add(archive, [rows[number] for number in numbers[start : start + 20]])
    before, size = contents(archive), sum(part.size for part in archive._images.parts)
    read, ranges, told = [], Store.ranges, []

    def counted(store: Store, name: str, spans: list[tuple[int, int]]) -> list[bytes]:
        answers = ranges(store, name, spans)
        read.append(sum(map(len, answers)))
        return answers

    monkeypatch.setattr(Store, "ranges", counted)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 8)  # merged files have many row groups
    write, left = KeyedTable.write, [3]

    def killed(table: KeyedTable, rows):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return write(table, rows)

    monkeypatch.setattr(KeyedTable, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        maintenance.compact(archive._images, 90_000)
    monkeypatch.setattr(KeyedTable, "write", write)
    archive.refresh()
    assert len(archive._images.parts) < 60 and contents(archive) == before, "what it had merged is kept"
    read.clear()
    fewer = maintenance.compact(archive._images, 90_000, lambda *done: told.append(done))
    parts = archive._images.parts
    assert sum(read) < 4 * size, "each file again for each new one would be eleven times and more"
    assert fewer > 30 and contents(archive) == before
    assert maintenance._overlap(parts) < maintenance.MAX_OVERLAP, "what was merged before stays beside the rest"
    assert told[-1][0] == told[-1][1] and told == sorted(told)


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
    before, transact = contents(archive), DeltaLog.transact

    def vacuum_first(log, *arguments):
        for part in set(os.listdir(f"{archive.url}/images")) - {part.path for part in log.parts} - {"_delta_log"}:
            os.remove(f"{archive.url}/images/{part}")
        return transact(log, *arguments)

    monkeypatch.setattr(DeltaLog, "transact", vacuum_first)
    with pytest.raises(ArchiveError, match="gone or incomplete"):
        maintenance.compact(archive._images)
    monkeypatch.undo()
    assert contents(Archive.open(archive.url)) == before


def test_large_files_that_overlap_no_other_large_one_stay_whatever_else_is_merged(archive):
    """As years of sorted pictures do, beside some nights of others."""
    for start in range(0, 600, 100):
        add(archive, face_rows(100, start))
    old = {part.path for part in archive._images.parts}
    numbers = list(range(5000, 6000))
    random.Random(1).shuffle(numbers)
    rows = {row.key: row for row in face_rows(1000, 5000)}
    for start in range(0, 1000, 25):
        add(archive, [rows[face_key(number)] for number in numbers[start : start + 25]])
    before = contents(archive)
    assert maintenance._overlap(archive._images.parts) > maintenance.MANY_OVERLAP
    assert maintenance.compact(archive._images, 100_000) > 20
    parts = archive._images.parts
    assert contents(archive) == before and old <= {part.path for part in parts}
    assert all(previous.key_range[1] < following.key_range[0] for previous, following in itertools.pairwise(parts))
