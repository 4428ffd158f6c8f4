"""PostgreSQL on loopback, as a plain process: the database of a Prefect server that many clients ask at once."""

import os
import shutil
import subprocess
from collections.abc import Callable
from glob import glob
from pathlib import Path

USER = "postgres"  # PostgreSQL refuses to run as root


class PostgresqlError(Exception):
    """The database cannot be made."""


def _program(name: str) -> str:
    """Its file, on the path or where Debian keeps it; empty where there is none."""
    found = glob(f"/usr/lib/postgresql/*/bin/{name}")
    return shutil.which(name) or max(found, key=lambda path: float(path.split("/")[4]), default="")


def is_installed() -> bool:
    return bool(_program("initdb") and _program("postgres"))


class Postgresql:
    """One database cluster, its files in ``folder``, open to whoever is on this machine."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"postgresql+asyncpg://{USER}@127.0.0.1:{port}/postgres"

    def start(self, start: Callable[..., None]) -> None:
        """Make the database and start it by ``start(name, *command, user=...)``; it answers some seconds later."""
        user = USER if os.geteuid() == 0 else None
        self.folder.mkdir()
        if user:
            shutil.chown(self.folder, user)
        options = ("-U", USER, "--auth", "trust", "--encoding", "UTF8", "--no-sync")
        command = (_program("initdb"), "-D", str(self.folder), *options)
        made = subprocess.run(command, capture_output=True, text=True, user=user, cwd=self.folder)
        if made.returncode:
            raise PostgresqlError(f"initdb: {made.stderr.strip()[-500:]}")
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        given = [word for setting in settings for word in ("-c", setting)]
        start("postgresql", _program("postgres"), "-D", str(self.folder), *given, user=user)
