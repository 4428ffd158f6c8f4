"""Where things kept between runs lie, outside archives. Imports nothing heavy: the command line needs it at once."""

import os
from pathlib import Path


def home() -> Path:
    """``LATENTPACK_HOME``, or ``latentpack`` in the user's cache."""
    given = os.environ.get("LATENTPACK_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentpack"
