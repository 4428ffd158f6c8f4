"""What a run has to do: a source's listing minus what an archive holds, kept on disk in batches.

Nothing is read of any picture here. A listing of any length passes through in chunks, and on disk there is one wave of
it at a time, so that neither memory nor disk grows with it (but for 16 bytes for each picture that the archive knows).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from compressor.chunks import bounded_chunks
from compressor.known import FINGERPRINT_BYTES, KnownKeys
from compressor.sources import Source, SourceFile

CHUNK = 4096  # listed files that are compared with the archive together
# Bytes of source files in a batch: some twenty photographs, minutes of work, which is what a kill costs. 1,000 small
# pictures have fewer. Who asks for a larger batch than that gets as many bytes for each of its pictures.
BATCH_BYTES, PICTURE_BYTES = 64 * 2**20, 64 * 2**10
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("fingerprint", pa.binary(FINGERPRINT_BYTES)),
        ("changed", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Batch:
    """Files to encode together; ``changed`` are the keys whose archived rows are out of date.

    ``name`` is unique in a run: ``0``, ``1``, ... and ``1a``, ``1b``, ``1ab``, ... for parts of one.
    """

    name: str
    files: tuple[SourceFile, ...]
    changed: frozenset[str] = frozenset()

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same files in two batches, to narrow down which one takes its worker with it."""
        middle = len(self.files) // 2
        first, second = (
            Batch(self.name + letter, files, self.changed & {file.key for file in files})
            for letter, files in (("a", self.files[:middle]), ("b", self.files[middle:]))
        )
        return first, second


@dataclass(frozen=True)
class Plan:
    """Counts of a listing and where the batches lie.

    ``listed`` is the sum of ``pending``, ``already_there``, ``quarantined`` (failed before, unchanged since),
    ``accepted`` (such that a person accepted) and ``left`` (pending and listed, but beyond the limit). ``bytes`` are
    those of the pending files, as far as known. ``skipped`` are names, with reasons, that cannot be keys at all,
    ``ignored`` counts hidden ones and links to what is listed anyway; ``ignored_names`` are some of them; these three
    are of the whole listing so far. ``more``: there is more of it, for another wave; ``limited``: there is, and the
    limit ended it. ``healed`` are those of ``already_there`` that are on the quarantine list still.
    """

    path: str
    listed: int
    pending: int
    already_there: int
    quarantined: int
    left: int
    accepted: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    ignored_names: list[tuple[str, str]] = field(default_factory=list)
    more: bool = False
    limited: bool = False
    healed: list[str] = field(default_factory=list)

    def batches(
        self, size: int, most_bytes: int = BATCH_BYTES, numbers: Iterator[int] | None = None
    ) -> Iterator[Batch]:
        """The pending files in order, ``size`` at a time or fewer: two have no more than ``most_bytes`` together.

        Parameters
        ----------
        numbers
            Of the batches, which name them: default 0, 1, ...
        """
        numbers = itertools.count() if numbers is None else numbers
        rows = itertools.chain.from_iterable(self._rows())
        for chunk in bounded_chunks(rows, lambda row: max(0, row["size"]), most_bytes, size):
            yield _batch(str(next(numbers)), chunk)

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        with pa.OSFile(self.path) as file, pa.ipc.open_stream(file) as reader:
            for rows in reader:
                yield rows.to_pylist()

    def even_batches(self, workers: int, most: int, most_bytes: int = BATCH_BYTES) -> int:
        """Batch size, at most ``most`` and on average ``most_bytes``, that keeps ``workers`` busy to a plan's end."""
        rounds = max(1, -(-self.pending // (workers * most)), -(-self.bytes // (workers * most_bytes)))
        return max(1, min(most, -(-self.pending // (workers * rounds))))


def most_bytes(pictures: int) -> int:
    """Bytes of source files at which a batch of at most so many pictures ends."""
    return max(BATCH_BYTES, pictures * PICTURE_BYTES)


class Listing:
    """A source's files, one wave after another; a wave whose listing failed can be asked for again.

    Parameters
    ----------
    source
        What is listed: once, unless something fails.
    tell
        Called with each chunk of files; with some of them twice, after a failure.
    """

    def __init__(self, source: Source, tell: Callable[[Sequence[SourceFile]], None] | None = None) -> None:
        self.source = source
        self._tell = tell
        self._files: Iterator[SourceFile] | None = None
        self._ended_well = True
        self._after = self._seen = ""  # keys: the last of the waves that are done, the last that was listed

    def start_wave(self) -> None:
        """Go on after the last wave; where that one failed, list anew and go back to its start."""
        if self._files is None or not self._ended_well:
            after = self._after
            self._files = (file for file in self.source.files() if file.key > after)  # they come sorted by key
        self._ended_well = False

    def chunk(self) -> list[SourceFile]:
        """The next files; none at the end of the listing."""
        assert self._files is not None
        found = list(itertools.islice(self._files, CHUNK))
        if found:
            self._seen = found[-1].key
            if self._tell:
                self._tell(found)
        return found

    def goes_on(self) -> bool:
        """Whether there are further files. One of them is lost, so ask when no chunk will be asked for."""
        assert self._files is not None
        return next(self._files, None) is not None

    def end_wave(self) -> None:
        """All that was listed so far is dealt with."""
        self._after, self._ended_well = self._seen, True


def plan(
    listing: Listing,
    known: KnownKeys,
    path: Path,
    limit: int | None = None,
    wave: int | None = None,
) -> Plan:
    """List files, leave out what ``known`` has archived or failed on as it is, and write the rest to ``path``.

    Parameters
    ----------
    listing
        All of a source, or what an earlier wave left of it.
    path
        An Arrow stream, written anew. It holds keys and fingerprints, no pictures.
    limit
        Most files to plan for. The listing ends with the chunk in which they are found, for a bucket may hold millions
        more; others in that chunk are counted as ``left``.
    wave
        How many of them to stop at, or some thousands later (default: the end of the listing).

    Raises
    ------
    SourceError
        The listing fails.
    """
    states: Counter[str] = Counter()
    pending = left = size = 0
    healed: list[str] = []
    more = limited = False
    source = listing.source
    listing.start_wave()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        while chunk := listing.chunk():
            found = known.state(chunk)
            states.update(found)
            healed += known.healed([file.key for file, state in zip(chunk, found, strict=True) if state == "same"])
            wanted = [(file, state) for file, state in zip(chunk, found, strict=True) if state in ("new", "changed")]
            if limit is not None:
                left += max(0, len(wanted) - (limit - pending))
                wanted = wanted[: max(0, limit - pending)]
            pending += len(wanted)
            size += sum(max(0, file.size) for file, _ in wanted)
            if wanted:
                writer.write_batch(_record_batch(wanted))
            if limit is not None and pending >= limit:
                limited = listing.goes_on()
                break
            if wave is not None and pending >= wave:
                more = True
                break
    listing.end_wave()
    return Plan(
        path=str(path),
        listed=states.total(),
        pending=pending,
        already_there=states["same"],
        quarantined=states["quarantined"],
        left=left,
        accepted=states["accepted"],
        bytes=size,
        skipped=[(name, reason) for name, reason in source.skipped],
        ignored=source.ignored_count,
        ignored_names=[(name, reason) for name, reason in source.ignored],
        more=more,
        limited=limited,
        healed=healed,
    )


def _record_batch(wanted: Sequence[tuple[SourceFile, str]]) -> pa.RecordBatch:
    rows = [{**vars(file), "changed": state == "changed"} for file, state in wanted]
    return pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _batch(name: str, rows: Sequence[dict[str, Any]]) -> Batch:
    files = tuple(SourceFile(row["key"], row["path"], row["size"], row["fingerprint"]) for row in rows)
    return Batch(name, files, frozenset(row["key"] for row in rows if row["changed"]))
