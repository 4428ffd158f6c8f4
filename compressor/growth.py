"""How an archive grew: what each of its commits led to."""

from dataclasses import dataclass
from datetime import datetime

from compressor.archive import Archive

COMMITS = 500  # of the log's end that are looked at


@dataclass(frozen=True)
class Growth:
    """What an archive held after a commit: rows, and bytes of their Parquet files."""

    at: datetime
    pictures: int
    bytes: int


def growth(archive: Archive, limit: int = COMMITS) -> list[Growth]:
    """The latest ``limit`` commits, oldest first; those that the log has let go are missing."""
    images, _ = archive.tables
    return [Growth(*commit) for commit in images.history(limit)]
