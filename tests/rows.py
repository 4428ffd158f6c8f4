"""Rows to put in archives: JPEGs of small pictures, or random bytes of the size that a learned codec writes.

And what tests of several modules do with an archive.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
from deltalake import DeltaTable

from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.codec import ORIGINAL
from compressor.known import FINGERPRINT_BYTES
from compressor.parquet import Row
from compressor.sources import SourceFile


def picture_row(key: str, seed: int = 0, height: int = 24, width: int = 32) -> Row:
    """A picture as JPEG; ``seed`` decides its content."""
    return replace(_jpeg_row(seed, height, width), key=key)


@cache
def _jpeg_row(seed: int, height: int, width: int) -> Row:
    corner = np.random.default_rng(seed).uniform(50, 200, (1, 1, 3))
    slope = np.mgrid[:height, :width].sum(0)[:, :, None]
    pixels = np.clip(corner + slope, 0, 255).astype(np.uint8)
    [encoded] = STANDARD["jpeg"].encode([pixels], 80)
    return Row(
        key="",
        fingerprint=seed.to_bytes(FINGERPRINT_BYTES, "little"),
        width=width,
        height=height,
        channels=3,
        source_bytes=pixels.nbytes,
        codec="jpeg",
        quality=80,
        packer="",
        payload=encoded.payload,
        crc32c=crc32c.crc32c(encoded.payload),
        psnr=35.12,
        ssim=0.961,
    )


def original_row(key: str, content: bytes, width: int, height: int) -> Row:
    """A picture kept as its file's bytes."""
    return replace(
        picture_row(key),
        width=width,
        height=height,
        codec=ORIGINAL,
        quality=-1,
        payload=content,
        crc32c=crc32c.crc32c(content),
        psnr=None,
        ssim=None,
    )


def face_key(number: int) -> str:
    """FFHQ's layout."""
    return f"{number // 1000 * 1000:05d}/{number:05d}.png"


def face_rows(count: int, start: int = 0, seed: int = 0) -> list[Row]:
    """Rows as a learned codec writes them for FFHQ thumbnails; payloads are noise of about 700 bytes."""
    random = np.random.default_rng([seed, start])
    rows = []
    for number in range(start, start + count):
        payload = random.bytes(max(20, int(random.normal(700, 100))))
        rows.append(
            Row(
                key=face_key(number),
                fingerprint=random.bytes(FINGERPRINT_BYTES),
                width=128,
                height=128,
                channels=3,
                source_bytes=int(random.normal(28000, 4000)),
                codec="a3f09b12c45d6e78",
                quality=int(random.integers(8, 30)),
                packer="entropy",
                payload=payload,
                crc32c=crc32c.crc32c(payload),
                psnr=round(34 + float(random.exponential(0.25)), 2),
                ssim=round(float(random.normal(0.95, 0.012)), 3),
            )
        )
    return rows


def source_file(row: Row, **changes: Any) -> SourceFile:
    """The file that a row was made from."""
    return replace(SourceFile(row.key, row.key, row.source_bytes, row.fingerprint), **changes)


def add(archive: Archive, rows: list[Row], **how: Any) -> None:
    """Commit rows as one part."""
    archive.commit([archive.write_part(rows)], **how)


def contents(archive: Archive) -> dict[str, Row]:
    """All rows by key, read afresh; fails where a key is there twice."""
    rows = [row for batch in Archive.open(archive.url).scan() for row in batch]
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: row for row in rows}


def files_of(archive: Archive, folder: str = "images") -> set[str]:
    """Names of its Parquet files, live or not."""
    return {name for name in os.listdir(f"{archive.url}/{folder}") if name.endswith(".parquet")}


def age(archive: Archive, seconds: float = 3700) -> None:
    """Have all its local files be written a while ago."""
    for path in Path(archive.url).rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def commit_many(url: str, worker: int) -> None:
    """What one of several runs at once does: rows of its own, and rows that all of them want to write."""
    archive = Archive.open(url)
    for step in range(6):
        rows = [picture_row(f"shared-{number}", worker) for number in range(step, step + 4)]
        rows += [picture_row(f"own-{worker}-{step}-{number}", worker) for number in range(4)]
        archive.commit([archive.write_part(rows)], [f"shared-{step}"], f"{worker}/{step}")


def commit_forever(url: str) -> None:
    """What a run does until it is killed: half of each batch is there already, and one picture of it has changed."""
    archive = Archive.open(url)
    for step in range(10_000):
        archive.commit([archive.write_part(face_rows(20, start=step * 10))], [face_key(step * 10)])


@contextmanager
def at_first_commit(
    before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """While it lasts, do something right before, or right after, the first commit to a table of pictures."""
    commit, seen = DeltaTable.create_write_transaction, []

    def interrupted(table: DeltaTable, *arguments: Any, **options: Any) -> None:
        first = not seen and "images" in table.table_uri
        if first:
            seen.append(table)
            before()
        commit(table, *arguments, **options)
        if first:
            after()

    DeltaTable.create_write_transaction = interrupted  # type: ignore[method-assign]
    try:
        yield
    finally:
        DeltaTable.create_write_transaction = commit  # type: ignore[method-assign]
    assert seen


def lose_the_answer() -> None:
    """As a connection that ends at the wrong moment."""
    raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")
