"""Work in portions that fit in memory."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

BYTES_AT_ONCE = 64 * 2**20  # of files or payloads


def bounded_chunks(
    items: Iterable[T], weight: Callable[[T], int], heaviest: int, longest: int = sys.maxsize
) -> Iterator[list[T]]:
    """Items in order, together as long as they are not more than ``longest`` and do not weigh more than ``heaviest``.

    One that weighs more is alone.
    """
    chunk: list[T] = []
    total = 0
    for item in items:
        more = weight(item)
        if chunk and (len(chunk) == longest or total + more > heaviest):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += more
    if chunk:
        yield chunk
