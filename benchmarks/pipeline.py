"""What a run spends outside its real work, what a second worker gives, and what the driver's memory does.

    python benchmarks/pipeline.py overhead PICTURES [--count 10000] [--workers 2]
    python benchmarks/pipeline.py workers PICTURES [--count 2000]
    python benchmarks/pipeline.py memory [--counts 10000 100000]
    python benchmarks/pipeline.py modes

PICTURES is a folder; its files are linked as often as it takes to reach ``--count``. Each figure comes from
``latentpack run --json`` in a process of its own; ``memory`` lists files against an archive that holds none of them.
``modes`` runs tasks that do nothing, to show what a task costs by itself and how long it is to the first one's result.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

TARGET = ("--target-psnr", "34")
STAGES = ("read", "decode", "encode", "fallback", "verify", "write")


def linked(folder: Path, pictures: Path, count: int) -> Path:
    """A tree of ``count`` hard links to the files of ``pictures``."""
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    for number, file in enumerate(islice(cycle(files), count)):
        target = folder / f"{number // 1000:05d}" / f"{number:06d}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
    return folder


def run(source: Path, archive: Path, *options: str) -> dict:
    """The summary of one run."""
    command = [sys.executable, "-m", "flows.cli", "run", str(source), str(archive), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def overhead(options: argparse.Namespace, scratch: Path) -> None:
    source = linked(scratch / "pictures", options.pictures, options.count)
    summary = run(source, scratch / "archive", "--workers", str(options.workers), *TARGET)
    work = summary["worker_seconds"]
    seconds, archived = summary["seconds"]["encode"], summary["archived"]
    available = seconds * summary["workers"]
    print(f"{archived} pictures, {summary['workers']} workers, {seconds:.1f} s of encoding")
    for stage in STAGES:
        print(f"  {stage:9s} {work.get(stage, 0) / available:6.1%}")
    print(f"  {'other':9s} {1 - sum(work.values()) / available:6.1%}   (Prefect, Dask, commits, idle)")
    print(f"{archived / seconds:.1f} pictures/s; planning {summary['seconds']['plan']:.2f} s")


def workers(options: argparse.Namespace, scratch: Path) -> None:
    source = linked(scratch / "pictures", options.pictures, options.count)
    rates = []
    for count in (1, 2):
        summary = run(source, scratch / f"archive-{count}", "--workers", str(count), *TARGET)
        rates.append(summary["archived"] / summary["seconds"]["encode"])
        print(f"{count} worker(s): {rates[-1]:.1f} pictures/s")
    print(f"the second worker gives {rates[1] / rates[0]:.2f} times one")


def memory(options: argparse.Namespace, scratch: Path) -> None:
    for count in options.counts:
        folder = scratch / str(count)
        for number in range(count):
            target = folder / f"{number // 1000:05d}" / f"{number:06d}.png"
            if number % 1000 == 0:
                target.parent.mkdir(parents=True)
            target.touch()
        # One picture is tried, the others are listed, compared and left: the driver's part of the work alone.
        code = (
            "import resource, sys; from flows.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit: pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
        )
        command = [sys.executable, "-c", code, "run", str(folder), str(scratch / f"archive-{count}"), "--limit", "1"]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        listed = json.loads(done.stdout)["listed"]
        print(f"{listed} keys listed: driver at most {float(done.stderr.split()[-1]):.0f} MiB")


def mode(scheduler: str, workers: int, count: int, started: float) -> None:
    """In a process of its own, as the command line does it: seconds to the first result, then results a second."""
    from flows.commands import prefect_api

    with prefect_api(argparse.Namespace(verbose=False)) as ready:
        from nothing import tasks_of_nothing  # Prefect, which must find the server named

        ready()
        times = tasks_of_nothing(scheduler or None, workers, count)
        rate = (len(times) - 1) / (times[-1] - times[0])
        print(json.dumps({"first": times[0] - started, "rate": rate}), flush=True)
        os._exit(0)  # events of hundreds of tasks are still on their way to a server that ends with this process


@contextmanager
def site_of(scratch: Path, environment: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """A Prefect server, a Dask scheduler and two workers on loopback: the environment of clients, and its address."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    api, dask = f"http://127.0.0.1:{ports[0]}/api", f"tcp://127.0.0.1:{ports[1]}"
    environment = {**environment, "PREFECT_API_URL": api, "PREFECT_HOME": str(scratch / "prefect"), "DO_NOT_TRACK": "1"}
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports[0])]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", dask, "--nthreads", "1", "--no-dashboard"]
    commands = [
        server,
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", dask, "--no-dashboard"],
        worker,
        worker,
    ]
    with open(scratch / "site.log", "wb") as log:
        processes = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{api}/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield environment, dask
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)


def modes(options: argparse.Namespace, scratch: Path) -> None:
    here = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    here |= {"PYTHONPATH": str(Path(__file__).parent), "LATENTPACK_HOME": str(scratch / "home")}
    with site_of(scratch, here) as (served, dask):
        rows = (
            ("own server that makes its database first, this process", here, "", 1, options.tasks),
            ("own server, this process", here, "", 1, options.tasks),
            ("own server, two processes", here, "", 2, options.tasks // 4),
            ("a Prefect server, this process", served, "", 1, options.tasks),
            ("a Prefect server, a Dask cluster of two", served, dask, 2, options.tasks // 4),
        )
        print("| mode | to the first result, s | tasks a second |\n| --- | ---: | ---: |")
        for name, environment, scheduler, workers, count in rows:
            code = f"from pipeline import mode; mode({scheduler!r}, {workers}, {count}, {time.time()})"
            command = [sys.executable, "-c", code]
            with open(scratch / "mode.log", "wb") as log:
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log)
            if done.returncode:
                sys.exit((scratch / "mode.log").read_text(errors="replace")[-3000:])
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {name} | {found['first']:.1f} | {found['rate']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function, count in (("overhead", overhead, 10_000), ("workers", workers, 2000)):
        command = commands.add_parser(name)
        command.add_argument("pictures", type=Path)
        command.add_argument("--count", type=int, default=count)
        command.add_argument("--workers", type=int, default=2)
        command.set_defaults(run=function)
    command = commands.add_parser("memory")
    command.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    command.set_defaults(run=memory)
    command = commands.add_parser("modes")
    command.add_argument("--tasks", type=int, default=400, help="in this process; a quarter over Dask")
    command.set_defaults(run=modes)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.pictures.parent if hasattr(options, "pictures") else None) as scratch:
        options.run(options, Path(scratch))


if __name__ == "__main__":
    main()
