"""How an archive grew: what each of its commits led to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from compressor.archive import Archive

COMMITS = 500  # of the log's end that are looked at
PAUSE = timedelta(minutes=10)  # without a commit: what follows is another run


@dataclass(frozen=True)
class Growth:
    """What an archive held after a commit: rows, and bytes of their Parquet files."""

    at: datetime
    pictures: int
    bytes: int


def growth(archive: Archive, limit: int = COMMITS) -> list[Growth]:
    """The latest ``limit`` commits, oldest first; those that the log has let go are missing."""
    images, _ = archive.tables
    return [Growth(*commit) for commit in images.log.history(limit)]


def by_run(commits: Sequence[Growth]) -> list[Growth]:
    """The last of the commits that follow each other closely: what each run led to, as far as time tells runs apart."""
    ends = [one for one, after in itertools.pairwise(commits) if after.at - one.at > PAUSE]
    return [*ends, *commits[-1:]]
