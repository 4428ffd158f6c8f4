"""Checksums of an archive's files and of the state that its log describes: what tells damage from what was written.

A Parquet file's name carries the crc32c of all of it and of its footer, so that nothing else has to be kept or fetched:
``part-<16 random hex>-<file><footer>.parquet``, 8 hexadecimal digits each. Files of earlier versions have none.
"""

import re
import uuid
from collections.abc import Iterable
from hashlib import blake2b

import crc32c

from compressor.errors import ArchiveError

FOOTER_TAIL = 8  # bytes at the end of a Parquet file: the footer's length, little-endian, and "PAR1"
STATE = "latentpack.state"  # where a commit keeps the digest of the state that it leads to
_NAME = re.compile(r"part-[0-9a-f]{16}-([0-9a-f]{8})([0-9a-f]{8})\.parquet")


def part_name(data: bytes) -> str:
    """A new name for a Parquet file's bytes."""
    return f"part-{uuid.uuid4().hex[:16]}-{crc32c.crc32c(data):08x}{crc32c.crc32c(footer_of(data)):08x}.parquet"


def footer_of(data: bytes) -> bytes:
    """The footer with its length, from a file's last bytes; ``b""`` where they do not hold all of it."""
    start = len(data) - FOOTER_TAIL - int.from_bytes(data[-FOOTER_TAIL:-4], "little")
    return data[start:] if data[-4:] == b"PAR1" and start >= 0 else b""


def has_checksums(name: str) -> bool:
    """Whether a file's name carries them."""
    return _NAME.fullmatch(name) is not None


def check_footer(name: str, footer: bytes) -> None:
    """ArchiveError where a footer is not the one that ``name`` was made for."""
    if found := _NAME.fullmatch(name):
        _check(name, "its footer", int(found[2], 16), crc32c.crc32c(footer))


def check_file(name: str, computed: int) -> None:
    """ArchiveError where a whole file's crc32c is not the one in its name."""
    if found := _NAME.fullmatch(name):
        _check(name, "the file", int(found[1], 16), computed)


def _check(name: str, what: str, stored: int, computed: int) -> None:
    if stored != computed:
        raise ArchiveError(f"{name}: {what} is damaged: stored crc32c {stored:#010x}, computed {computed:#010x}")


def state_digest(parts: Iterable[int], description: object) -> str:
    """16 hexadecimal digits over a table's live files, in any order, and its schema and configuration.

    A sum modulo 2^64 of 8-byte BLAKE2b hashes, ``parts`` those of the files: a file more or less changes it, and one
    can be added to it.
    """
    total = sum(parts) + hash_of(description)
    return f"{total % 2**64:016x}"


def hash_of(value: object) -> int:
    """What one file, or the description, adds to the digest."""
    return int.from_bytes(blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
