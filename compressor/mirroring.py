"""Pictures that are gone from a source, so that an archive may let them go too. Lists nothing itself: it is told.

A listing that may lack pictures must never delete one, so this refuses where it cannot be sure.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from compressor.archive import Archive
from compressor.known import Listed, hash_keys
from compressor.sources import Source


class Mirror:
    """The keys of an archive that a listing did not name: 9 bytes of memory for each that is archived.

    Of the keys themselves it holds those that are gone, and no more of them than may be deleted.

    Parameters
    ----------
    archive
        As it is before the listing. What others add to it later is never taken for gone.
    """

    def __init__(self, archive: Archive) -> None:
        hashes = [np.zeros(0, np.uint64), hash_keys([row.key for row in archive.quarantined()])]
        hashes += [hash_keys(table["key"].to_pylist()) for table in archive.batches(["key"])]
        self._archive = archive
        self._archived = len(archive)
        # Two keys with the same hash keep each other: a collision leaves a picture too many, and none too few.
        self._hashes = np.unique(np.concatenate(hashes))
        self._seen = np.zeros(len(self._hashes), bool)
        self._gone: list[str] = []

    def see(self, files: Sequence[Listed]) -> None:
        """Be told of listed files."""
        at, there = self._find([file.key for file in files])
        self._seen[at[there]] = True

    def refusal(self, source: Source, listed: int, skipped: Sequence[tuple[str, str]], limit: str) -> str | None:
        """Why nothing may be deleted; None where :meth:`delete` may follow.

        Parameters
        ----------
        listed
            Files that the listing named.
        skipped
            Names, with reasons, that it passed over: behind each there may be pictures.
        limit
            The most pictures to delete: a count, or a share of those archived such as ``"10%"``.
        """
        if not source.is_whole:
            return f"{source.shown} is a pattern or one file, which need not name all that the archive was made of"
        if not listed:
            return f"no picture is listed at {source.shown}: is it mounted, is the address right?"
        if skipped:
            name, reason = skipped[0]
            return f"the listing passed over names such as {name!r} ({reason}), and may lack pictures"
        at_most = most(limit, self._archived)
        gone = 0
        self._gone = []
        for key in self._unlisted():
            gone += 1
            if gone <= at_most:
                self._gone.append(key)
        if gone > at_most:
            self._gone = []
            return (
                f"{gone:,} of {self._archived:,} archived pictures are gone from {source.shown}, more than "
                f"--mirror-limit {limit}; if that is right, raise it for one run"
            )
        return None

    def delete(self) -> int:
        """Take what is gone out of the archive and off its quarantine list. Returns how many pictures there were."""
        self._archive.clear_quarantine(self._unseen([row.key for row in self._archive.quarantined()]))
        return self._archive.remove(self._gone)

    def _unlisted(self) -> Iterator[str]:
        """Keys of archived pictures that were not listed, with those of one batch of rows in memory."""
        for table in self._archive.batches(["key"]):
            yield from self._unseen(table["key"].to_pylist())

    def _unseen(self, keys: list[str]) -> list[str]:
        at, there = self._find(keys)
        there[there] = ~self._seen[at[there]]
        return [keys[index] for index in np.flatnonzero(there)]

    def _find(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """For each key where its hash would be among the archive's, and whether it is: int (N,), bool (N,)."""
        hashes = hash_keys(keys)
        at = np.searchsorted(self._hashes, hashes)
        there = at < len(self._hashes)
        there[there] = self._hashes[at[there]] == hashes[there]
        return at, there


def most(limit: str, total: int) -> float:
    """How many pictures of a total a limit allows: a count, or a share such as ``"10%"``."""
    return float(limit[:-1]) / 100 * total if limit.endswith("%") else int(limit)
