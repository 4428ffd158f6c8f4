"""A Prefect server for the tests that run flows: the one that the command line starts, once a session."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.environment import PrivateServer, set_defaults

set_defaults()


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[str]:
    """Its URL; Prefect in this process uses it, and what is kept between runs lies in a folder of its own."""
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    folder: Path = tmp_path_factory.mktemp("home")
    if cache := getattr(pytestconfig, "cache", None):  # an empty database takes seconds to make
        (folder / "prefect").symlink_to(cache.mkdir("prefect"))
    server = PrivateServer(folder / "prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPACK_HOME", str(folder))
        server.start()
        try:
            server.wait()
            settings = {PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: server.auth_string}
            with temporary_settings({**settings, PREFECT_LOGGING_TO_API_ENABLED: False}):
                yield server.url
        finally:
            server.stop()


@pytest.fixture
def own_server(tmp_path: Path, prefect_api: str) -> dict[str, str]:
    """The environment of a command that starts a server of its own, with a home in which its tables are made."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LATENTPACK_"))}
    home = tmp_path / "home"
    shutil.copytree(Path(os.environ["LATENTPACK_HOME"]) / "prefect", home / "prefect")
    return kept | {"LATENTPACK_HOME": str(home), "PREFECT_HOME": str(tmp_path / "prefect")}
