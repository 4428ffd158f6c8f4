"""Where things kept between runs lie, outside archives. Imports nothing heavy: the command line needs it at once."""

import os
from pathlib import Path

from compressor.errors import LatentpackError

UNWATCHED = "LATENTPACK_UNWATCHED"  # set where Prefect's server is one command's own, whose pages nobody can open


def home() -> Path:
    """``LATENTPACK_HOME``, or ``latentpack`` in the user's cache."""
    given = os.environ.get("LATENTPACK_HOME")
    if given:
        return Path(os.path.expanduser(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or user_home() / ".cache") / "latentpack"


def user_home() -> Path:
    """LatentpackError where the user has none, as in a container that runs under any number."""
    try:
        return Path.home()
    except RuntimeError:
        raise LatentpackError("this user has no home directory: set HOME to a folder that it may write to") from None


def is_watched() -> bool:
    """Whether somebody may look at what this run shows in Prefect."""
    return UNWATCHED not in os.environ
