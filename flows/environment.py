"""What has to be settled before Prefect is imported: quiet defaults, and a private server where none is named.

Prefect's own temporary server is started only once the client has imported all of the server's code itself, one after
the other; starting it here, first and beside everything else, halves the time to the first task.
"""

import atexit
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compressor.errors import LatentpackError
from compressor.files import replacing
from flows.scratch import scratch
from tasks.home import UNWATCHED

START_S = 120  # a slow disk's first start makes the database
_POLL_S = 0.05

# Nobody watches the private server, so what it does for watchers and schedules is left out.
_SERVICES = (
    "EVENT_PERSISTER", "TASK_RUN_RECORDER", "TRIGGERS", "SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP", "REPOSSESSOR", "CLEANUP_RECONCILER", "DB_VACUUM",
)  # fmt: skip


def set_defaults(verbose: bool = False) -> None:
    """Settings that anything in the user's environment takes precedence over. Call before Prefect is imported."""
    defaults = {
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Of Prefect's own temporary server, which a flow called from Python has; Prefect waits 20.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_S),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DASK_LOGGING__DISTRIBUTED": "info" if verbose else "error",
        # Threads that spin while they wait for work make a shared machine ten times slower, and an idle one no faster.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def api_is_configured() -> bool:
    """Whether the user has named a Prefect server: in the environment, ``.env``, a project's settings or a profile.

    As Prefect finds it, whose own settings take a second to import.
    """
    environment = {**_dotenv(), **os.environ}
    if environment.get("PREFECT_API_URL"):
        return True
    projects = [_toml(Path("prefect.toml")), _toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {})]
    if any(project.get("api", {}).get("url") for project in projects):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or os.path.expanduser("~/.prefect"))
    named = [environment.get("PREFECT_PROFILES_PATH"), *(project.get("profiles_path") for project in projects)]
    profiles = _toml(Path(next(filter(None, named), home / "profiles.toml")))
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return bool(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL"))


def _dotenv() -> dict[str, str]:
    if not Path(".env").is_file():
        return {}
    import dotenv  # by which Prefect reads it

    try:
        return {name.upper(): value for name, value in dotenv.dotenv_values(".env").items() if value}
    except (OSError, ValueError):
        return {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _bypass_proxies(host: str) -> None:
    """Have nothing in this process, or started by it, look for ``host`` behind a proxy of the environment."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")  # as urllib reads them
    hosts = [one.strip() for one in given.split(",") if one.strip()]
    if not {host, "*"}.intersection(hosts):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*hosts, host])


# The pipe on its standard input closes with this process, however that ends: no server is left behind by a kill.
_SERVE = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
import uvicorn
app = "prefect.server.api.server:create_app"
uvicorn.run(app, factory=True, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="on")
"""


class PrivateServer:
    """A Prefect server for one command, on a free port of the loopback interface.

    It has a database of its own, gone with it: servers that made one together, or brought it up to date, failed. What
    outlives it is an empty database with all tables, whose making takes longer than the rest of a start.

    Parameters
    ----------
    folder
        Where the empty database lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._empty = folder / f"empty-{version('prefect')}.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = ExitStack()
        self.url = self.auth_string = ""

    def start(self) -> None:
        """Start it and return at once; everything in this process is told to use it. See :meth:`wait`.

        LatentpackError where its folder, or one for temporary files, cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LatentpackError(
                f"{self._folder}: the private Prefect server cannot keep its database here: {error.strerror}; "
                "set LATENTPACK_HOME to a folder that can be written"
            ) from error
        try:
            folder = self._scratch.enter_context(scratch())
            self._database, self._log = folder / "prefect.db", folder / "server.log"
            with suppress(FileNotFoundError):  # the first command of all
                shutil.copyfile(self._empty, self._database)
        except OSError as error:
            raise LatentpackError(
                f"the private Prefect server has no place for its database among the temporary files: {error}; "
                "set TMPDIR to a folder that can be written"
            ) from error
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self.auth_string = f"latentpack:{secrets.token_urlsafe()}"  # other users of the machine reach the port
        _bypass_proxies("127.0.0.1")
        environment = {
            **os.environ,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            "PREFECT_SERVER_API_AUTH_STRING": self.auth_string,
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
            **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _SERVICES},
        }
        environment.pop("PREFECT_API_URL", None)
        command = [sys.executable, "-c", _SERVE, str(port)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(  # a session of its own, so that Ctrl-C leaves it to us
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        atexit.register(self.stop)
        os.environ["PREFECT_API_URL"] = self.url
        os.environ["PREFECT_API_AUTH_STRING"] = self.auth_string
        os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        os.environ[UNWATCHED] = "1"

    def wait(self) -> None:
        """Return when it answers. LatentpackError, with its last words, where it does not."""
        assert self._process is not None
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        self._keep_empty()
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)
        last = self._log.read_text(errors="replace").strip()[-2000:]
        raise LatentpackError(
            f"the private Prefect server did not start; name one with PREFECT_API_URL. It said: {last}"
        )

    def _keep_empty(self) -> None:
        """Keep the database for later commands, before anything is in it. One that cannot be kept is made again."""
        if self._empty.exists():
            return
        import sqlite3

        with (
            suppress(OSError, sqlite3.Error),
            closing(sqlite3.connect(self._database)) as database,
            replacing(self._empty) as partial,
        ):
            database.execute("VACUUM INTO ?", (str(partial),))

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._scratch.close()
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_LOGGING_TO_API_ENABLED", UNWATCHED):
            os.environ.pop(name, None)
        atexit.unregister(self.stop)
