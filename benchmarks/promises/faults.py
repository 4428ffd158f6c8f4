"""Faults of storage and of machines under real runs: what was said, what is archived, and whether a re-run completes.

S3 is moto's server behind a proxy that breaks answers; full and read-only disks are a tmpfs of its own (root only).
"""

import http.client
import http.server
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.archive import Archive
from compressor.codec import artifact_bytes
from compressor.defaults import CODEC as DEFAULT
from compressor.errors import LatentpackError
from promises.common import print_table

RATE = 0.15  # of the requests that meet the fault
SLOW_S = 0.5
RUNS = 4  # tries to complete
BATCH = "8"
BUCKET = "promise"
GROUPS = ("s3", "disk", "runs", "worker")
S3_FAULTS = ("500", "503 SlowDown", "slow answers", "connections reset", "bodies cut short")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--count", type=int, default=40, help="pictures in each run")


def run(options: Namespace, scratch: Path) -> bool:
    """Every fault once. True where each archive is whole in the end."""
    folder = scratch / "in"
    folder.mkdir()
    files = sorted(path for path in options.pictures.rglob("*") if path.is_file())[: options.count]
    for path in files:
        os.link(path, folder / path.name) if path.stat().st_dev == folder.stat().st_dev else (
            folder / path.name
        ).write_bytes(path.read_bytes())
    keys = {path.name for path in folder.iterdir()}
    rows = []
    if "s3" in options.only:
        rows += _s3(folder, keys, options.seed)
    if "disk" in options.only:
        rows += _disk(folder, keys, scratch)
    if "runs" in options.only:
        rows.append(_two_runs(folder, keys, scratch))
    if "worker" in options.only:
        rows.append(_lost_worker(folder, keys, scratch))
    print(f"{len(keys)} pictures, {RATE:.0%} of the requests to S3 meet the fault\n")
    print_table(("fault", "what happened", "runs", "rows of pictures", "twice", "problems that verify found"), rows)
    return all(row[3] == f"{len(keys)} of {len(keys)}" and not row[4] and not row[5] for row in rows)


def _latentpack(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and the last line that a user reads."""
    _, err = process.communicate(timeout=600)
    if "Traceback" in err:
        return process.returncode, "TRACEBACK: " + err.strip().splitlines()[-1]
    lines = [line for line in err.strip().splitlines() if line.startswith("latentpack:")]
    return process.returncode, lines[-1].removeprefix("latentpack: ") if lines else ""


def _archived(url: str, keys: set[str], fault: str, happened: str, runs: int) -> tuple[Any, ...]:
    try:
        archive = Archive.open(url)
    except LatentpackError as error:
        return fault, f"{happened}; in the end {error}", runs, f"0 of {len(keys)}", 0, 0
    found = list(archive.keys())
    rows = f"{len(keys & set(found))} of {len(keys)}"
    return fault, happened, runs, rows, len(found) - len(set(found)), len(archive.verify())


def _until_done(*arguments: Any, **environment: str) -> tuple[str, int]:
    """Run until the exit code is 0. What happened, and how many runs it took."""
    told = []
    for number in range(1, RUNS + 1):
        code, last = _end(_latentpack("run", *arguments, "--batch-size", BATCH, "--workers", "1", **environment))
        if code == 0:
            return "; ".join(dict.fromkeys([*told, "completed"])), number
        told.append(f"exit {code}: {last[:160]}")
    return "; ".join(dict.fromkeys(told)), RUNS


# --- S3 ---


class _Faulty(http.server.BaseHTTPRequestHandler):
    """Passes requests on, and breaks some of the answers."""

    protocol_version = "HTTP/1.1"
    behind = ""
    fault = ""
    choose = random.Random(1)
    met = 0

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        broken = self.choose.random() < RATE
        type(self).met += broken
        fault = self.fault if broken else ""
        if fault in ("500", "503 SlowDown"):
            code, name = (500, "InternalError") if fault == "500" else (503, "SlowDown")
            self._answer(code, [], f"<Error><Code>{name}</Code><Message>injected</Message></Error>".encode())
            return
        if fault == "connections reset":  # half of them after the server has done what was asked
            if self.choose.random() < 0.5:
                self._ask(body)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
            return
        if fault == "slow answers":
            time.sleep(SLOW_S)
        status, headers, content = self._ask(body)
        self._answer(status, headers, content, cut=fault == "bodies cut short" and len(content) > 1)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Silence."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True


@contextmanager
def _moto() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _s3(folder: Path, keys: set[str], seed: int) -> list[tuple[Any, ...]]:
    import boto3

    rows = []
    with _moto() as behind:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": f"http://{behind}",
        }  # fmt: skip
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for path in folder.iterdir():
            client.put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())
        _Faulty.behind, _Faulty.choose = behind, random.Random(seed)
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Faulty)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for number, fault in enumerate(S3_FAULTS):
            _Faulty.fault, _Faulty.met = fault, 0
            url = f"s3://{BUCKET}/archive-{number}"
            endpoint = f"http://127.0.0.1:{proxy.server_port}"
            happened, runs = _until_done(f"s3://{BUCKET}/in", url, AWS_ENDPOINT_URL=endpoint)
            rows.append(_archived(url, keys, f"S3: {fault}, {_Faulty.met} times", happened, runs))
            print(rows[-1], flush=True)
        proxy.shutdown()
    return rows


# --- disks, other runs, workers ---


def _short(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "")[:160]


def _fill(filler: Path) -> None:
    """Leave no room on a disk."""
    with open(filler, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def _disk(folder: Path, keys: set[str], scratch: Path) -> list[tuple[Any, ...]]:
    if os.geteuid() != 0:
        print("full and read-only disks are left out: they need root")
        return []
    disk = scratch / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    try:
        url = str(disk / "archive")
        filler = disk / "filler"
        Archive.create(url)
        _fill(filler)
        told = []
        # Room for nothing, for the codec alone, and for a part but not for all of them
        for room in (0, len(artifact_bytes(DEFAULT)) + 20480, 16384):
            os.truncate(filler, filler.stat().st_size - room)
            code, last = _end(_latentpack("run", folder, url, "--batch-size", BATCH, "--workers", "1"))
            told.append(f"{len(Archive.open(url))} archived, exit {code}: {_short(last, disk)}")
            _fill(filler)
        filler.unlink()
        happened, runs = _until_done(folder, url)
        rows = [_archived(url, keys, "disk full, three times", f"{'; '.join(told)}; with room {happened}", runs + 3)]
        (folder / "new.png").write_bytes((folder / min(keys)).read_bytes())
        _mount("-o", "remount,ro", str(disk))
        code, last = _end(_latentpack("run", folder, url, "--workers", "1"))
        read = _end(_latentpack("verify", url))[0]
        before = f"exit {code}: {_short(last, disk)}; verify exit {read}"
        _mount("-o", "remount,rw", str(disk))
        happened, runs = _until_done(folder, url)
        rows.append(_archived(url, keys | {"new.png"}, "read-only archive", f"{before}; writable {happened}", runs + 1))
        (folder / "new.png").unlink()
        rows[-1] = (
            *rows[-1][:3],
            f"{len(keys)} of {len(keys)}" if rows[-1][3].startswith(f"{len(keys) + 1} ") else rows[-1][3],
            *rows[-1][4:],
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return rows


def _two_runs(folder: Path, keys: set[str], scratch: Path) -> tuple[Any, ...]:
    url = str(scratch / "shared")
    Archive.create(url)
    both = [_latentpack("run", folder, url, "--batch-size", BATCH, "--workers", "1", "--json") for _ in range(2)]
    counts = []
    for process in both:
        out, err = process.communicate(timeout=600)
        counts.append(
            json.loads(out)["archived"] if process.returncode == 0 else f"exit {process.returncode}: {err[-160:]}"
        )
    return _archived(url, keys, "two runs at once", f"exit 0 both; encoded {counts[0]} and {counts[1]}", 2)


def _lost_worker(folder: Path, keys: set[str], scratch: Path) -> tuple[Any, ...]:
    import psutil
    from distributed import LocalCluster

    url = str(scratch / "dask")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL") as cluster:
        workers = [nanny.process.pid for nanny in cluster.workers.values()]
        process = _latentpack("run", folder, url, "--batch-size", "4", "--scheduler", cluster.scheduler_address)
        _wait(lambda: len(Archive.open(url)) > 0, process)
        os.kill(workers[0], signal.SIGKILL)
        killed = not psutil.pid_exists(workers[0]) or psutil.Process(workers[0]).status() == psutil.STATUS_ZOMBIE
        code, last = _end(process)
    happened = f"worker {'killed' if killed else 'signalled'} after the first commit: exit {code} {last[:120]}".strip()
    return _archived(url, keys, "lost Dask worker", happened, 1)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if ready():
                return
        except LatentpackError:
            pass
        time.sleep(0.02)
