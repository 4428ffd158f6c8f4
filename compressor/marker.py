"""What makes a folder an archive: a file that says so and names the format. And where one may be made."""

import json
import re

from compressor.carried import CODEC_FILE
from compressor.delta_log import OWN_FILE
from compressor.errors import ArchiveError, NewerError, s3_response
from compressor.store import TEMPORARY_NAME, Store

FORMAT = 1
MARKER = "latentpack.json"
# What a folder may hold of a run that was killed before it wrote the marker, which comes last: all else is another's.
_TABLE_NAME = re.compile(rf"_delta_log|{OWN_FILE.pattern}")
_OWN_NAMES = {
    "": re.compile(rf"codecs|images|quarantine|{TEMPORARY_NAME}"),
    "codecs": re.compile(rf"{CODEC_FILE.pattern}|{TEMPORARY_NAME}"),
    "images": _TABLE_NAME,
    "quarantine": _TABLE_NAME,
}


def write_marker(store: Store) -> None:
    """Make an archive of a folder that holds its tables."""
    store.put(MARKER, json.dumps({"format": FORMAT, "product": "latentpack"}).encode() + b"\n")


def check_marker(store: Store) -> None:
    """ArchiveError where there is no archive, or one whose format is not known or newer than this version reads."""
    try:
        marker = store.get(MARKER)
    except (FileNotFoundError, NotADirectoryError) as error:
        if s3_response(error).get("Error", {}).get("Code") == "NoSuchBucket":
            raise ArchiveError(f"{store.url}: there is no such bucket") from None
        raise ArchiveError(f"{store.url}: no archive here ({MARKER} is missing)") from None
    try:
        number = json.loads(marker)["format"]
        if not isinstance(number, int):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ArchiveError(f'{store.url}: {MARKER} is damaged; a sound one holds {{"format": {FORMAT}}}') from None
    if number > FORMAT:
        raise NewerError(
            f"{store.url}: the archive's format is {number}, this version reads up to {FORMAT}; upgrade latentpack"
        )


def check_vacant(store: Store) -> None:
    """ArchiveError where there is an archive, or anything but what a run that was killed leaves, or hidden."""
    if store.exists(MARKER):
        raise ArchiveError(f"{store.url}: there is an archive here already")
    for folder, own in _OWN_NAMES.items():
        for name in store.entries(folder):
            if not (name.startswith(".") or own.fullmatch(name)):
                found = f"{folder}/{name}" if folder else name
                raise ArchiveError(
                    f"{store.url}: not an archive, and not empty (it holds {found!r}); name a folder of its own"
                )
