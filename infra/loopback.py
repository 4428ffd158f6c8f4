"""A production site as plain processes on loopback, and what a client asks of it.

A Prefect server with its services and its database, a process worker, a Dask scheduler with two workers and an S3
server on free ports of 127.0.0.1.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceph_gateway import CephGateway
from postgresql import Postgresql

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
START_S, RUN_S = 120, 300
BUSY_S = 180  # three times as long as a Prefect server waits for a lock of SQLite before it answers 503


class Failed(Exception):
    """Something is not as it must be."""


def check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Failed(otherwise)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Run:
    """A flow run that has ended, or that was given up waiting for."""

    id: str
    state: str
    auto_scheduled: bool


class Site:
    """All processes, and what a client asks of them."""

    def __init__(self, folder: Path, with_ceph: bool, with_postgresql: bool) -> None:
        self.folder = folder
        self.with_ceph = with_ceph
        self.postgresql = Postgresql(folder / "postgresql", free_port()) if with_postgresql else None
        self.api = f"http://127.0.0.1:{free_port()}/api"
        self.s3 = f"http://127.0.0.1:{free_port()}"
        self.dask = f"tcp://127.0.0.1:{free_port()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # Both for the processes and for the archives that are opened here.
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_ALLOW_HTTP": "true",
        }
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "prefect"),
            "LATENTPACK_HOME": str(folder / "latentpack"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        if self.postgresql:
            self.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.postgresql.url

    # --- processes ---

    def start(self, name: str, *command: str, user: str | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
            )

    def start_server(self) -> None:
        port = self.api.removesuffix("/api").rpartition(":")[2]
        self.start("server", *PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port)
        self._answers("server", f"{self.api}/health")

    def start_all(self) -> None:
        if self.with_ceph:
            ceph = CephGateway(self.folder / "ceph", self.s3, free_port())
            ceph.start(self.start)
        else:
            self.start("s3", sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.s3.rpartition(":")[2])
        if self.postgresql:
            self.postgresql.start(self.start)
            self._accepts("postgresql", self.postgresql.port)
        self.start_server()
        self._answers("radosgw" if self.with_ceph else "s3", self.s3)
        if self.with_ceph:
            ceph.add_user(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        dask = (sys.executable, "-m", "distributed.cli")
        self.start("scheduler", *dask[:2], f"{dask[2]}.dask_scheduler", "--host", self.dask, "--no-dashboard")
        for number in (1, 2):
            self.start_dask_worker(number)

    def start_dask_worker(self, number: int) -> None:
        module = "distributed.cli.dask_worker"
        options = ("--nthreads", "1", "--no-dashboard", "--name", f"worker-{number}")
        self.start(f"dask-{number}", sys.executable, "-m", module, self.dask, *options)

    def start_worker(self) -> None:
        self.start("worker", *PREFECT, "worker", "start", "--pool", "latentpack", "--type", "process")

    def _answers(self, name: str, url: str) -> None:
        self._started(name, lambda: urllib.request.urlopen(url, timeout=5).close())

    def _accepts(self, name: str, port: int) -> None:
        self._started(name, lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close())

    def _started(self, name: str, connect: Callable[[], None]) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.processes[name].poll() is None:
            try:
                connect()
                return
            except OSError:
                time.sleep(0.2)
        raise Failed(f"{name} did not start: {(self.folder / f'{name}.log').read_text()[-2000:]}")

    def kill(self, name: str) -> None:
        """SIGKILL to a process and its children."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # --- the Prefect server ---

    def ask(self, path: str, body: Any) -> Any:
        """Post ``body`` to the server. Failed where it refuses, or does not answer for three minutes."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        end = time.monotonic() + BUSY_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:  # 503: SQLite is busy with other requests
                if error.code != 503 or time.monotonic() > end:
                    raise Failed(f"{path} answered {error.code}: {error.read()[:500]!r}") from error
                time.sleep(1)
            except OSError as error:  # no answer in time, or a server that has just been killed
                if time.monotonic() > end:
                    raise Failed(f"{path} was not answered: {error}") from error
                time.sleep(1)

    def deployment(self, name: str) -> dict[str, Any]:
        found = [one for one in self.ask("/deployments/filter", {}) if one["name"] == name]
        check(len(found) == 1, f"there is no deployment {name!r}")
        return dict(found[0])

    def trigger(self, name: str, **parameters: Any) -> str:
        body = {"parameters": {"parameters": parameters}, "idempotency_key": uuid.uuid4().hex}
        return str(self.ask(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"])

    def ended(self, run: str, seconds: float = RUN_S) -> Run:
        """The run once it has ended, or as it stands after ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            try:
                (found,) = self.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            except (OSError, Failed):
                found = {"state_type": "unknown: the server does not answer", "auto_scheduled": False}
            if found["state_type"] in ENDED or time.monotonic() > end:
                return Run(run, found["state_type"], found["auto_scheduled"])
            time.sleep(0.5)

    def completed(self, run: str) -> None:
        state = self.ended(run).state
        check(state == "COMPLETED", f"the run ended as {state}; {self._last_words()}")

    def _last_words(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")[-1500:]
