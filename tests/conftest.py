"""Fixtures that several test modules share: an empty archive, and real servers, started once a session."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.prefect_api import own_server as own_server
from tests.prefect_api import prefect_api as prefect_api

if TYPE_CHECKING:
    from compressor.archive import Archive

os.environ.setdefault("OMP_NUM_THREADS", "1")  # with a test process for each core, more threads only wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has jobs in the background ignore it
logging.raiseExceptions = False  # Prefect's handler writes to the stderr that pytest gave the first test that had one
settings.register_profile("latentpack", deadline=None)  # a busy machine is no failure
settings.load_profile("latentpack")


def pytest_xdist_auto_num_workers() -> int:
    """Of ``-n auto``: one more than there are cores, as a sixth of the time is waiting for servers to start and end."""
    from flows.machine import cores

    return cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs flows."""
    for item in items:
        if "prefect_api" in getattr(item, "fixturenames", ()):
            item.add_marker("server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def archive(tmp_path: Path) -> "Archive":
    """An empty archive on disk."""
    from compressor.archive import Archive

    return Archive.create(str(tmp_path / "archive"))


@pytest.fixture(scope="session")
def s3_server():
    """The URL of an S3 server on loopback (moto); the AWS_* variables of the whole session point at it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended at its start"
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The address of a bucket of its own there."""
    import boto3

    name = f"bucket-{random.getrandbits(40):x}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
