"""Errors that a user can act on: each message says what is wrong, where, and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Reasons of pictures on the quarantine list that a run tries again.
UNREADABLE = "unreadable"  # the source did not give the file
ACCEPTED = "accepted"  # a person has seen why, and does not want to be told again
CRASHED = "crashed"  # its batch ended its worker, or failed as nothing foresaw
DAMAGED = "damaged"  # its row could not be read and was taken out
NO_FAULT = frozenset({UNREADABLE, CRASHED, DAMAGED})  # of the file: runs try it again


class LatentpackError(Exception):
    """Base of all errors that the command line prints without a traceback."""


class SourceError(LatentpackError):
    """A source cannot be opened, listed or read."""


class ArchiveError(LatentpackError):
    """An archive cannot be opened, written or trusted."""


class NewerError(ArchiveError):
    """A later version of latentpack, or another program, has made an archive what this version does not read."""


class NoPictureError(ArchiveError, KeyError):
    """An archive holds no picture of a key."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the whole message


class CodecError(LatentpackError):
    """A codec cannot be loaded, or a payload is not one it wrote."""


class CheckpointError(LatentpackError):
    """A training's checkpoint is of another one, as after an upgrade."""


class ImageError(LatentpackError):
    """A file's bytes are not a picture that can be stored.

    ``reason`` is one of ``empty``, ``not_a_picture``, ``truncated``, ``unsupported``, ``too_large``, ``corrupt``, or
    ``unreadable`` where the bytes could not be fetched.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def s3_response(error: BaseException) -> dict[str, Any]:
    """What an S3 store answered, as botocore reads it, where a foreign error comes from such an answer."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}


def s3_status(error: BaseException) -> int | None:
    """The HTTP status of that answer."""
    status = s3_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


# PyTorch's and libavif's words for it: what they raise is no MemoryError, also where a GPU has no more.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)


def is_shortage(error: BaseException | None) -> bool:
    """Whether memory ran out, which says nothing of what was being read."""
    return any(
        isinstance(one, MemoryError) or (isinstance(one, RuntimeError) and _OUT_OF_MEMORY.search(str(one)) is not None)
        for one in causes(error)
    )


@contextmanager
def enough_memory(where: str, doing: str) -> Iterator[None]:
    """Turn what is raised where memory runs out into ArchiveError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LatentpackError) or not is_shortage(error):
            raise
        raise ArchiveError(f"{where}: not enough memory to {doing}: {told(error)}; try again with more") from error


def told(error: BaseException) -> str:
    """What a foreign error says, on one line."""
    answer = s3_response(error).get("Error", {})
    # Some stores (Ceph) send a code and no message, of which s3fs makes the word None.
    text = str(error) if answer.get("Message", error) else answer.get("Code", "")
    text = re.split(r"\s+0: <unknown>", text)[0]  # where a backtrace of delta-rs's begins
    return " ".join(text.split()) or type(error).__name__


def told_of(key: str, error: BaseException) -> str:
    """:func:`told` for where the key stands before it, which an error may name as well."""
    return told(error).removeprefix(" ".join(f"{key}:".split())).lstrip()
