"""Where things kept between runs lie, outside archives. Imports nothing heavy: the command line needs it at once."""

import os
from contextlib import suppress
from pathlib import Path

from compressor.errors import LatentpackError

UNWATCHED = "LATENTPACK_UNWATCHED"  # set where Prefect's server is one command's own, whose pages nobody can open


def home() -> Path:
    """``LATENTPACK_HOME``, or ``latentpack`` in the user's cache; made for this user alone where it is not there."""
    if given := os.environ.get("LATENTPACK_HOME"):
        folder = Path(os.path.expanduser(given))
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or user_home() / ".cache") / "latentpack"
    with suppress(OSError):  # what needs it says so
        folder.mkdir(0o700, parents=True, exist_ok=True)
    return folder


def user_home() -> Path:
    """LatentpackError where the user has none, as in a container that runs under any number."""
    try:
        return Path.home()
    except RuntimeError:
        raise LatentpackError("this user has no home directory: set HOME to a folder that it may write to") from None


def is_watched() -> bool:
    """Whether somebody may look at what this run shows in Prefect."""
    return UNWATCHED not in os.environ
