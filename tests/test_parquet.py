"""Parquet files of the archive: rows come back as they went in, and cost no more than promised."""

import io
import json
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ArchiveError
from compressor.known import FINGERPRINT_BYTES
from compressor.parquet import (
    GROUP_BYTES,
    GROUP_ROWS,
    IMAGES,
    QUARANTINE,
    Part,
    QuarantineRow,
    RangeFile,
    Row,
    Spans,
    encode,
    from_table,
    payload_bytes,
    read_groups,
    read_metadata,
    row_groups_with,
    to_table,
)
from tests.rows import face_key, face_rows, picture_row


def open_bytes(data: bytes) -> tuple[RangeFile, list[tuple[int, int]]]:
    """A file in memory, and the ranges that are fetched of it."""
    fetched: list[tuple[int, int]] = []

    def fetch(ranges):
        fetched.extend(ranges)
        return [data[start:end] for start, end in ranges]

    return RangeFile(fetch, len(data)), fetched


def decode(data: bytes, layout=IMAGES) -> list:
    file, _ = open_bytes(data)
    metadata = read_metadata(file)
    return from_table(read_groups(file, metadata, range(metadata.num_row_groups), layout.names), layout)


keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
rows = st.builds(
    Row,
    key=keys,
    fingerprint=st.binary(min_size=FINGERPRINT_BYTES, max_size=FINGERPRINT_BYTES),
    width=st.integers(1, 2**31 - 1),
    height=st.integers(1, 2**31 - 1),
    channels=st.sampled_from([1, 3]),
    source_bytes=st.integers(0, 2**63 - 1),
    codec=st.text(max_size=20),
    quality=st.integers(-1, 2**15 - 1),
    packer=st.text(max_size=8),
    payload=st.binary(max_size=200),
    crc32c=st.integers(0, 2**32 - 1),
    psnr=st.none() | st.integers(0, 9999).map(lambda n: round(n / 100, 2)),
    ssim=st.none() | st.integers(-1000, 1000).map(lambda n: round(n / 1000, 3)),
)


@given(st.lists(rows, min_size=1, max_size=20, unique_by=lambda row: row.key))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_sorted_by_key(written):
    data, count, stats = encode([to_table(written, IMAGES)], IMAGES)
    assert count == len(written)
    read = decode(data)
    assert read == sorted(written, key=lambda row: row.key)
    smallest, largest = Part("p", len(data), count, stats).key_range
    assert (smallest, largest) == (read[0].key, read[-1].key)


def test_quarantine_rows_come_back():
    row = QuarantineRow.now("a/b.png", b"12345", "truncated", "ends after 17 bytes", "run-1")
    data, _, _ = encode([to_table([row], QUARANTINE)], QUARANTINE)
    assert decode(data, QUARANTINE) == [row]
    assert json.loads(json.dumps(row.to_dict()))["fingerprint"] == row.fingerprint.hex()


def test_metadata_costs_less_than_promised():
    written = face_rows(1000)
    data, _, _ = encode([to_table(written, IMAGES)], IMAGES)
    payloads = sum(len(row.payload) for row in written)
    assert (len(data) - payloads) / len(written) < 17.5
    assert payload_bytes(read_metadata(open_bytes(data)[0])) == payloads


def test_psnr_and_ssim_are_rounded():
    row = replace(picture_row("a"), psnr=34.123456, ssim=0.98765)
    [read] = decode(encode([to_table([row], IMAGES)], IMAGES)[0])
    assert (read.psnr, read.ssim) == (34.12, 0.988)


def test_row_groups_end_at_their_rows_or_bytes():
    many = face_rows(2 * GROUP_ROWS + 5)
    metadata = read_metadata(open_bytes(encode([to_table(many, IMAGES)], IMAGES)[0])[0])
    assert [metadata.row_group(group).num_rows for group in range(3)] == [GROUP_ROWS, GROUP_ROWS, 5]
    large = [replace(picture_row(face_key(n)), payload=bytes(GROUP_BYTES // 3)) for n in range(7)]
    metadata = read_metadata(open_bytes(encode([to_table(large, IMAGES)], IMAGES)[0])[0])
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [3, 3, 1]


def test_one_key_is_one_row_group_and_its_metadata_one_range():
    written = face_rows(4 * GROUP_ROWS)
    data, _, _ = encode([to_table(written, IMAGES)], IMAGES)
    file, fetched = open_bytes(data)
    metadata = read_metadata(file)
    [group] = row_groups_with(metadata, Spans([(face_key(2000), face_key(2000))]))
    assert group == 1
    fetched.clear()
    read_groups(file, metadata, [group], ["key"])
    read_groups(file, metadata, [group], IMAGES.names)
    assert len(fetched) == 2
    assert sum(end - start for start, end in fetched) < len(data) / 3.5


def test_a_flipped_bit_in_a_page_is_noticed():
    written = face_rows(50)
    data = bytearray(encode([to_table(written, IMAGES)], IMAGES)[0])
    data[data.index(written[20].payload) + 30] ^= 1
    with pytest.raises((OSError, pa.ArrowException)):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ([picture_row("a"), picture_row("a")], "twice"),
        ([replace(picture_row("a"), fingerprint=b"four")], "fingerprint"),
        ([replace(picture_row("a"), key="\udc80.png")], "cannot be stored"),  # a file name that is not UTF-8
        ([replace(picture_row("a"), quality=40000)], "cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_refused(written, complaint):
    with pytest.raises(ArchiveError, match=complaint):
        to_table(written, IMAGES)


@pytest.mark.parametrize("column", ["crc32c", "fingerprint", "width", "payload", "codec"])
def test_a_row_that_was_scanned_without_a_column_is_refused_by_name(column):
    with pytest.raises(ArchiveError, match=f"'a': it has no {column}: was it scanned without"):
        to_table([replace(picture_row("a"), **{column: None})], IMAGES)


def test_others_read_the_file(tmp_path):
    written = face_rows(100)
    (tmp_path / "part.parquet").write_bytes(encode([to_table(written, IMAGES)], IMAGES)[0])
    query = f"select key, payload, crc32c, round(psnr, 2) from '{tmp_path}/part.parquet' where key = ?"
    [(key, payload, checksum, psnr)] = duckdb.sql(query, params=[face_key(7)]).fetchall()
    assert (key, payload, np.uint32(checksum & 0xFFFFFFFF)) == (written[7].key, written[7].payload, written[7].crc32c)
    assert psnr == pytest.approx(written[7].psnr)
    assert pq.read_table(io.BytesIO((tmp_path / "part.parquet").read_bytes())).num_rows == 100
