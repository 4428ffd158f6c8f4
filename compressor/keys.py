"""Names that a caller gives, of pictures or columns: text, several of it where several are meant, patterns."""

import fnmatch
import re
from collections.abc import Callable, Iterable


def several(names: Iterable[str]) -> list[str]:
    """All names, also of an iterator. TypeError where there is one instead, and would be taken for its letters."""
    if isinstance(names, str):
        raise TypeError(f"a list is needed, not {names!r} alone: [{names!r}]")
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise TypeError(f"a list is needed, not {type(names).__name__}: {names!r}")
    return list(names)


def several_keys(keys: Iterable[str]) -> list[str]:
    """The same of keys. TypeError where one of them is no text."""
    keys = several(keys)
    for key in keys:
        require_text(key)
    return keys


def require_text(key: object) -> None:
    """TypeError where a key is no text."""
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}: {key!r}")


def matcher(pattern: str | None) -> Callable[[str], object]:
    """What is true of keys that match ``pattern``: ``*`` is any text, even /, ``?`` any character; None: of all."""
    return re.compile(fnmatch.translate(pattern or "*")).match
