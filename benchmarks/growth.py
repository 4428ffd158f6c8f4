"""What an archive costs as it grows: append, plan, read one, scan, compact, and the memory of each.

    python benchmarks/growth.py [--rows 1000 10000 100000 1000000] [--pictures FOLDER]

Payloads are those of real pictures, repeated under keys of their own, committed 10,000 at a time. Every figure comes
from a process of its own, so that its memory is its own; ``read one`` opens the archive first, as a stranger would.
``S3 requests`` are those that reading one picture of a copy on an S3 server (``moto_server``) on loopback takes.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.codec import artifact_bytes
from compressor.defaults import CODEC as DEFAULT
from compressor.encoding import EncodeOptions, encode_batch
from compressor.known import FINGERPRINT_BYTES
from compressor.planning import Listing, plan
from compressor.samples import write_samples
from compressor.sources import Source, SourceFile

COMMIT = 10_000
READS = 20


def key_of(number: int) -> str:
    """Keys in the manner of FFHQ: thousands by folder."""
    return f"{number // 1000:05d}/{number:07d}.png"


class Known:
    """Stands for a source that lists ``count`` files, all of them archived as they are."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def files(self) -> Iterator[SourceFile]:
        for number in range(self._count):
            yield SourceFile(key_of(number), key_of(number), 20_000, number.to_bytes(8, "big"))


def peak_memory() -> float:
    """MB that this process had resident at most; not getrusage's, which begins with the parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def build(url: str, rows: int, pictures: str) -> dict[str, float]:
    """Fill an archive; seconds of its last commit and what it lies on."""
    with tempfile.TemporaryDirectory() as scratch:
        if not pictures:
            write_samples(Path(scratch))
        source = Source.open(pictures or scratch)
        files = list(islice(source.files(), 64))
        model = Archive.create(f"{scratch}-model")
        data = artifact_bytes(DEFAULT)
        model.put_codec(data)
        model.commit(encode_batch(source, files, model, EncodeOptions(identify(data)), "benchmark").parts)
        kinds = [model.read_row(file.key) for file in files if file.size]
    archive = Archive.create(url)
    archive.put_codec(data)
    took = []
    for start in range(0, rows, COMMIT):
        numbers = range(start, min(rows, start + COMMIT))
        part = archive.write_part(
            [
                replace(kinds[n % len(kinds)], key=key_of(n), fingerprint=n.to_bytes(FINGERPRINT_BYTES, "big"))
                for n in numbers
            ]
        )
        started = time.perf_counter()
        archive.commit([part], batch_id=f"benchmark/{start}")
        took.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in Path(url).rglob("*") if file.is_file())
    return {"commit": took[-1], "megabytes": size / 1e6}


def plan_nothing(url: str, rows: int) -> dict[str, float]:
    archive = Archive.open(url)
    with tempfile.TemporaryDirectory() as scratch:
        listing = Listing(Known(Source.open(scratch), rows))  # type: ignore[arg-type]
        started = time.perf_counter()
        made = plan(listing, archive.known(), Path(scratch) / "plan")
    assert made.already_there == rows, made
    return {"plan": time.perf_counter() - started}


def read_one(url: str, rows: int) -> dict[str, float]:
    started = time.perf_counter()
    archive = Archive.open(url)
    archive.read(key_of(rows // 2))
    first = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(READS):
        archive.read_row(key_of(number * rows // READS))
    return {"open and read": first, "read a row": (time.perf_counter() - started) / READS}


def scan(url: str, rows: int) -> dict[str, float]:
    started = time.perf_counter()
    found = sum(len(part) for part in Archive.open(url).scan())
    assert found == rows
    return {"scan": time.perf_counter() - started}


def compact(url: str, rows: int) -> dict[str, float]:
    archive = Archive.open(url)
    started = time.perf_counter()
    archive.compact()
    assert len(archive) == rows
    return {"compact": time.perf_counter() - started}


STEPS = {step.__name__: step for step in (plan_nothing, read_one, scan, compact)}


def in_process(step: str, *arguments: str) -> dict[str, float]:
    """The figures of one step, with its peak memory in MB."""
    command = [sys.executable, __file__, "--step", step, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def requests_to_read(folder: Path, rows: int) -> int:
    """Requests that a fresh reader sends to an S3 server for one picture's row."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
        client.create_bucket(Bucket="benchmark")
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "benchmark", f"archive/{file.relative_to(folder).as_posix()}")
        archive = Archive.open("s3://benchmark/archive")
        seen = _count_requests(server)
        archive.read_row(key_of(rows // 2))
        return len(seen)
    finally:
        server.stop()


def _count_requests(server: Any) -> list[str]:
    """A list that grows with every request the server answers from now on."""
    seen: list[str] = []
    application = server._server.app

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return application(environ, start_response)

    server._server.app = counting
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--pictures", default="", help="folder (default: the bundled samples)")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "ARCHIVE", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, url, rows = options.step
        result = build(url, int(rows), options.pictures) if name == "build" else STEPS[name](url, int(rows))
        print(json.dumps({**result, "memory": peak_memory()}))
        return
    print(
        "| rows | MB | commit of 10,000 | plan, nothing new | open and read one | read a row | S3 requests | scan | "
        "compact | memory: plan, read, scan, compact |\n| ---: |" + " ---: |" * 9
    )
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            url = f"{scratch}/archive"
            made = in_process("build", url, str(rows), *(["--pictures", options.pictures] if options.pictures else []))
            found = {name: in_process(name, url, str(rows)) for name in ("plan_nothing", "read_one", "scan")}
            requests = requests_to_read(Path(url), rows)
            found["compact"] = in_process("compact", url, str(rows))
        memory = ", ".join(f"{found[name]['memory']:.0f}" for name in STEPS)
        cells = (
            f"{rows:,}",
            f"{made['megabytes']:.0f}",
            f"{1e3 * made['commit']:.0f} ms",
            f"{found['plan_nothing']['plan']:.2f} s",
            f"{1e3 * found['read_one']['open and read']:.0f} ms",
            f"{1e3 * found['read_one']['read a row']:.1f} ms",
            str(requests),
            f"{found['scan']['scan']:.1f} s",
            f"{found['compact']['compact']:.1f} s",
            f"{memory} MB",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
