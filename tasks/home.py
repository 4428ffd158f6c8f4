"""Where things kept between runs lie, outside archives. Imports nothing heavy: the command line needs it at once."""

import os
from pathlib import Path

UNWATCHED = "LATENTPACK_UNWATCHED"  # set where Prefect's server is one command's own, whose pages nobody can open


def home() -> Path:
    """``LATENTPACK_HOME``, or ``latentpack`` in the user's cache."""
    given = os.environ.get("LATENTPACK_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentpack"


def is_watched() -> bool:
    """Whether somebody may look at what this run shows in Prefect."""
    return UNWATCHED not in os.environ
