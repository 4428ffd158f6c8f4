"""Rows read: few bytes for one, bounded batches for all, and a plain word where a scan ends early."""

import time
from pathlib import Path

import pytest

from compressor.archive import Archive
from compressor.decoding import decoded_together
from compressor.errors import ArchiveError
from compressor.store import Store
from tests.rows import add, face_key, face_rows, picture_row


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


def test_keys_that_are_looked_up_are_read_once(archive):
    add(archive, [picture_row(key) for key in "ac"])
    opened = Archive.open(archive.url)
    assert "a" in opened  # has read the footer
    requests = []
    ranges = opened._store.ranges
    opened._store.ranges = lambda name, wanted: (requests.append(name), ranges(name, wanted))[1]
    assert "a" in opened and len(requests) == 1
    assert opened.missing(["a", "b", "c"]) == ["b"] and len(requests) == 2


def test_scan_reads_the_columns_asked_for(archive):
    rows = face_rows(2_500)
    add(archive, rows)
    batches = list(archive.scan(["key", "source_bytes"], batch_size=1_000))
    assert [len(batch) for batch in batches] == [1_000, 1_000, 500]
    assert batches[2][3].key == rows[2_003].key and batches[2][3].source_bytes == rows[2_003].source_bytes
    assert batches[2][3].payload is None
    with pytest.raises(ArchiveError, match="no column 'size'"):
        next(archive.scan(["size"]))


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


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_scan_says_whether_it_ended_for_another_run_or_for_damage(tmp_path, request, where):
    archive = Archive.create(str(tmp_path / "archive") if where == "disk" else f"{request.getfixturevalue('bucket')}/a")
    for key in "xa":
        add(archive, [picture_row(key), picture_row(key + "b")])
    readers = [Archive.open(archive.url) for _ in range(3)]
    scans = [iter(readers[0].scan(batch_size=1)), readers[1].keys(), readers[2].read_rows(["a", "ab", "x", "xb"])]
    for scan in scans:
        next(scan)
    archive.delete(["a", "x", "xb"])
    again = list(readers[1].keys())  # which refreshes what the scan under way had open
    assert again == ["ab"]
    for reader, scan in zip(readers, scans, strict=True):
        with pytest.raises(
            ArchiveError, match=r"another run .* deleted from it; open it again \(in Python: refresh\(\) it\)"
        ):
            list(scan)
        reader.refresh()
        assert list(reader.keys()) == ["ab"]
    store, (part,) = archive._store, archive._images.parts
    chunk = archive._images.footer(part).row_group(0).column(0)
    data = bytearray(store.get(f"images/{part.path}"))
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    store.put(f"images/{part.path}", bytes(data))
    opened = Archive.open(archive.url)
    for scan in (opened.scan, opened.keys):
        with pytest.raises(ArchiveError, match="it is damaged; see 'latentpack verify' and 'latentpack repair'"):
            list(scan())


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize(
    "keys",
    [
        Archive.keys,
        lambda reader: (row.key for batch in reader.scan() for row in batch),
        lambda reader: (row.key for row in reader.read_rows(["a", "b"])),
    ],
)
def test_what_has_given_no_row_yet_begins_anew_where_another_run_has_taken_files_away(archive, keys, used):
    add(archive, [picture_row("a"), picture_row("b")])
    reader = Archive.open(archive.url)
    if used:
        assert "a" in reader  # has read the footer
    archive.delete(["a"])
    assert list(keys(reader)) == ["b"] and reader.version == archive.version
    Path(archive.files()[0]).unlink()
    with pytest.raises(ArchiveError, match="a file that its log names is missing"):
        list(keys(Archive.open(archive.url)))


def test_a_data_set_begins_with_the_newest_row_groups_where_those_that_were_open_are_gone(archive):
    add(archive, [picture_row("a"), picture_row("b")])
    reader = Archive.open(archive.url)
    archive.delete(["a"])
    dataset = reader.dataset()
    assert len(dataset) == 1 and dataset.row(0).key == "b"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), TimeoutError(110, "timed out")])
def test_a_scan_that_storage_refuses_speaks_of_no_damage(archive, monkeypatch, error):
    def refuse(*_):
        raise error

    add(archive, [picture_row("a")])
    monkeypatch.setattr(Store, "ranges", refuse)
    with pytest.raises(ArchiveError, match=rf"cannot read it to the end: .*{error.strerror}"):
        list(Archive.open(archive.url).keys())
