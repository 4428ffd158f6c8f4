"""Which pictures of an archive are meant: keys that are named one by one, and those that a file lists."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import LatentpackError
from flows.scratch import scratch

STANDARD_INPUT = "-"
PARQUET = ".parquet"


def named(keys: Sequence[str], keys_from: str | None) -> list[str]:
    """``keys``, and those that the file ``keys_from`` lists, if there is one, each once: on its lines, or as Parquet.

    LatentpackError where that file cannot be read, or names none: no keys at all would mean every picture.
    """
    if not keys_from:
        return list(dict.fromkeys(keys))
    is_table = keys_from.lower().endswith(PARQUET)
    listed = _column(keys_from) if is_table else _lines(keys_from)
    if not listed:
        wanted = "" if is_table else "; it should have one on each line"
        raise LatentpackError(f"{_shown(keys_from)}: there is no key in it{wanted}")
    return list(dict.fromkeys([*keys, *listed]))


@contextmanager
def in_a_file(keys_from: str | None) -> Iterator[str | None]:
    """``keys_from``, or a file of what standard input says where that is meant: a flow takes no other.

    Not the keys themselves, since a Prefect server refuses parameters of more than half a megabyte. LatentpackError as
    of :func:`named`.
    """
    if keys_from != STANDARD_INPUT:
        yield keys_from
        return
    keys = named([], keys_from)
    with scratch() as folder:
        path = folder / "keys"
        path.write_text("\n".join(keys), encoding="utf-8", newline="")
        yield str(path)


def _lines(path: str) -> list[str]:
    if path == STANDARD_INPUT and sys.stdin is None:
        raise LatentpackError("standard input is closed: name a file of keys instead of -")
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise LatentpackError(f"{_shown(path)}: keys cannot be read from it: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LatentpackError(f"{_shown(path)}: it is not text in UTF-8: {error}; keys are") from error
    return [key for line in text.split("\n") if (key := line.removesuffix("\r"))]


def _column(path: str) -> list[str]:
    """Keys of a table that a query has written: none of them is quoted there, or cut at the end of a line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with Path(path).open("rb") as file:
            columns = pq.ParquetFile(file).read(["key"]).columns
        keys = [key for column in columns for key in column.cast(pa.string()).to_pylist()]
    except (OSError, ValueError, pa.ArrowException) as error:
        told = getattr(error, "strerror", None) or error
        raise LatentpackError(f"{path}: keys cannot be read from it: {told}") from error
    if len(columns) != 1:
        raise LatentpackError(
            f"{path}: it has {len(columns) or 'no'} columns named key: select the keys under that name"
        )
    return [key for key in keys if key]


def _shown(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else path
