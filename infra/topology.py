"""The whole topology on loopback, as plain processes: everything that a cluster runs, put to work and to the test.

    python infra/topology.py [--pictures FOLDER] [--only STEP...] [--s3 ceph|moto] [--database postgresql|sqlite]
                             [--keep]

A Prefect server with its services and its database, a process worker, a Dask scheduler with two workers and an S3
server start on free ports of 127.0.0.1. S3 is Ceph's RADOS gateway where it is installed, else moto; the database is
PostgreSQL where it is installed, else SQLite. Then all of prefect.yaml is deployed and its jobs are run on a bucket of
pictures: by hand, by schedule, over Dask, with a Dask worker killed, and with the server killed. Prints a table of what
was checked; exit status 1 if anything is not as it must be. ``--keep`` leaves it running until Ctrl-C and says where
the UI is.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ceph_gateway
import postgresql
import yaml
from ceph_gateway import CephError
from loopback import ENDED, RUN_S, Failed, Site, check
from postgresql import PostgresqlError

from compressor.archive import Archive
from compressor.errors import ArchiveError, LatentpackError
from compressor.samples import PHOTOGRAPHS, write_tiles

ROOT = Path(__file__).parent.parent
ADDED = 20  # pictures that appear after the first night
TILES = 60  # of the bundled photographs, where no folder is given
SMALL_BATCH = 8  # pictures: several commits in a short run, so that a kill lands between two
FIRES_IN_S = 15


class Jobs:
    """The steps, in order. Each returns what it checked, in words, or raises Failed."""

    def __init__(self, site: Site, pictures: list[tuple[str, bytes]]) -> None:
        self.site = site
        self.first, self.added = pictures[:-ADDED], pictures[-ADDED:]
        self.all = pictures
        self.source = "s3://pictures/faces"
        self.archive = "s3://archives/nightly"

    def _upload(self, pictures: list[tuple[str, bytes]]) -> None:
        store = _s3()
        for name, data in pictures:
            store.pipe_file(f"{self.source}/{name}", data)

    def _nightly(self, archive: str, **parameters: Any) -> str:
        return self.site.trigger("archive-nightly", source=self.source, archive=archive, **parameters)

    def deploy(self) -> str:
        for bucket in ("pictures", "archives"):
            _s3().mkdir(bucket)
        environment = {**self.site.environment, "LATENTPACK_POOL_TYPE": "process"}
        made = subprocess.run(
            ["sh", str(ROOT / "infra" / "set_up.sh")], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        check(made.returncode == 0, made.stdout + made.stderr)
        named = {one["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
        found = {one["name"] for one in self.site.ask("/deployments/filter", {})}
        check(found == named, f"deployed {sorted(found)}, prefect.yaml names {sorted(named)}")
        self.site.start_worker()
        return f"{len(found)} deployments, a pool and its queue of writers"

    def nightly(self) -> str:
        self._upload(self.first)
        self.site.completed(self._nightly(self.archive))
        return f"{_rows(self.archive, len(self.first))}; {_objects(self.archive)}"

    def more_pictures(self) -> str:
        before = set(_parts(self.archive))
        self._upload(self.added)
        self.site.completed(self._nightly(self.archive))
        kept, new = before & set(_parts(self.archive)), set(_parts(self.archive)) - before
        check(kept == before, "a file of the first night was rewritten")
        return f"{_rows(self.archive, len(self.all))}; {len(new)} new file, the {len(kept)} before untouched"

    def nothing_new(self) -> str:
        before = Archive.open(self.archive).version
        self.site.completed(self._nightly(self.archive))
        check(Archive.open(self.archive).version == before, "a run with nothing new committed something")
        return f"{_rows(self.archive, len(self.all))}; no commit"

    def scheduled(self) -> str:
        archive = "s3://archives/scheduled"
        anchor = (datetime.now(UTC) + timedelta(seconds=FIRES_IN_S)).isoformat()
        parameters = {"parameters": {"source": self.source, "archive": archive, "limit": 5}}
        schedule = {"interval": 3600, "anchor_date": anchor, "timezone": "UTC"}
        deployment = self.site.deployment("archive-nightly")["id"]
        body = [{"schedule": schedule, "active": True, "slug": "topology", "parameters": parameters}]
        self.site.ask(f"/deployments/{deployment}/schedules", body)
        wanted = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        end = time.monotonic() + RUN_S
        while time.monotonic() < end:
            runs = self.site.ask("/flow_runs/filter", wanted)
            started = [run for run in runs if run["auto_scheduled"] and run["parameters"] == parameters]
            done = [run for run in started if run["state_type"] in ENDED]
            if done:
                check(done[0]["state_type"] == "COMPLETED", f"it ended as {done[0]['state_type']}")
                return f"{_rows(archive, 5)}; started by itself {done[0]['estimated_start_time_delta']:.0f} s late"
            time.sleep(1)
        raise Failed("no scheduled run started and ended in time")

    def bulk_over_dask(self) -> str:
        # The same batches: what a network computes differs by a rounding with how many pictures pass at once.
        archive, by_one = "s3://archives/bulk", "s3://archives/by-one-machine"
        self.site.completed(self._bulk(archive, batch_size=SMALL_BATCH * 2))
        self.site.completed(self._nightly(by_one, batch_size=SMALL_BATCH * 2, workers=1))
        alone, spread = _content(by_one), _content(archive)
        different = [key for key in alone if alone[key] != spread.get(key)]
        check(alone == spread, f"{len(different)} of a cluster's rows are not those of one machine: {different[:3]}")
        return f"{_rows(archive, len(self.all))}; payloads, PSNR and checksums equal one machine's"

    def _bulk(self, archive: str, **parameters: Any) -> str:
        return self.site.trigger(
            "archive-bulk", source=self.source, archive=archive, scheduler=self.site.dask, **parameters
        )

    def maintenance(self) -> str:
        before = len(_parts(self.archive))
        self.site.completed(self.site.trigger("maintain-weekly", archive=self.archive))
        after = len(_parts(self.archive))
        check(after < before, f"{before} files before compaction, {after} after")
        return f"{_rows(self.archive, len(self.all))}; {before} files became {after}"

    def damage_repaired(self) -> str:
        opened = Archive.open(self.archive)
        damaged = min(opened.keys())
        [part] = [one for one in opened.tables[0].parts if one.key_range[0] == damaged]
        path = f"{self.archive}/images/{part.path}"
        data = bytearray(_s3().cat_file(path))
        data[data.index(opened.read_row(damaged).payload) + 9] ^= 1
        _s3().pipe_file(path, bytes(data))
        state = self.site.ended(self.site.trigger("verify", archive=self.archive)).state
        check(state == "FAILED", f"a verification of a damaged archive ended as {state}")
        self.site.completed(self.site.trigger("repair", archive=self.archive, source=self.source))
        self.site.completed(self.site.trigger("verify", archive=self.archive))
        return (
            f"{_rows(self.archive, len(self.all))}; the verification before the repair failed, the one after it did not"
        )

    def dask_worker_killed(self) -> str:
        archive = "s3://archives/killed-worker"
        run = self._bulk(archive, batch_size=SMALL_BATCH)
        _until(lambda: _count(archive) > 0)
        there = _count(archive)
        self.site.kill("dask-1")
        self.site.completed(run)
        self.site.start_dask_worker(1)
        return f"killed when {there} were archived; {_rows(archive, len(self.all))}"

    def server_killed(self) -> str:
        archive = "s3://archives/killed-server"
        run = self._nightly(archive, batch_size=SMALL_BATCH, workers=1)
        _until(lambda: _count(archive) > 0)
        there = _count(archive)
        self.site.kill("server")
        time.sleep(3)
        self.site.start_server()
        state = self.site.ended(run).state
        check(state in ENDED, f"the run is still {state}")
        if self.site.processes["worker"].poll() is not None:
            self.site.start_worker()
        self.site.completed(self._nightly(archive, batch_size=SMALL_BATCH))
        return f"killed when {there} were archived; the run ended as {state}; again: {_rows(archive, len(self.all))}"


def _s3() -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


def _count(archive: str) -> int:
    try:
        return len(Archive.open(archive))
    except ArchiveError:
        return 0


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + RUN_S
    while not condition():
        check(time.monotonic() < end, "the run committed nothing in time")
        time.sleep(0.2)


def _rows(archive: str, expected: int) -> str:
    """Every picture once, and none quarantined; in words."""
    opened = Archive.open(archive)
    keys = list(opened.keys())
    check(len(keys) == len(set(keys)) == expected, f"{len(keys)} rows, {len(set(keys))} keys, {expected} expected")
    check(not list(opened.quarantined()), "pictures are quarantined")
    return f"{expected} rows"


def _content(archive: str) -> dict[str, tuple[bytes, float | None, int]]:
    return {row.key: (row.payload, row.psnr, row.crc32c) for rows in Archive.open(archive).scan() for row in rows}


def _parts(archive: str) -> list[str]:
    """Paths of the files that hold its rows."""
    return [part.path for part in Archive.open(archive).tables[0].parts]


def _objects(archive: str) -> str:
    """The bucket holds marker, codec, logs and the parts that the log names, and nothing else; in words."""
    root = archive.removeprefix("s3://")
    found = {path.removeprefix(f"{root}/") for path in _s3().find(root)}
    parts = {f"images/{part}" for part in _parts(archive)}
    rest = found - parts - {"latentpack.json"}
    check(parts <= found and "latentpack.json" in found, f"objects are missing: {sorted(found)}")
    strange = [
        name for name in rest if not name.startswith(("codecs/", "images/_delta_log/", "quarantine/_delta_log/"))
    ]
    check(not strange, f"objects that nothing names: {strange}")
    return f"{len(found)} objects, all of them named by marker or log"


STEPS: dict[str, Callable[[Jobs], str]] = {
    "deploy everything": Jobs.deploy,
    "nightly job": Jobs.nightly,
    "nightly job, 20 pictures more": Jobs.more_pictures,
    "nightly job, nothing new": Jobs.nothing_new,
    "a schedule fires": Jobs.scheduled,
    "bulk job over Dask": Jobs.bulk_over_dask,
    "verify and compact": Jobs.maintenance,
    "damage is repaired": Jobs.damage_repaired,
    "a Dask worker is killed": Jobs.dask_worker_killed,
    "the server is killed": Jobs.server_killed,
}


REST_ON = 3  # steps at the start that all others need


def chosen(words: list[str] | None) -> dict[str, Callable[[Jobs], str]]:
    """The steps whose names hold one of the words, after those that they need; all where no word is given."""
    names = list(STEPS)
    wanted = [*names[:REST_ON], *(name for name in names[REST_ON:] if any(word in name for word in words or [""]))]
    return {name: STEPS[name] for name in wanted}


def pictures_of(folder: Path | None) -> list[tuple[str, bytes]]:
    """Names and bytes of a folder's files, or of tiles of the bundled photographs."""
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            write_tiles(folder, PHOTOGRAPHS)
            files = sorted(path for path in folder.rglob("*") if path.is_file())[:TILES]
        else:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder (default: tiles of bundled photographs)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="words of the steps to take, such as schedule killed")
    parser.add_argument("--s3", choices=("ceph", "moto"), default="ceph" if ceph_gateway.is_installed() else "moto")
    parser.add_argument(
        "--database", choices=("postgresql", "sqlite"), default="postgresql" if postgresql.is_installed() else "sqlite"
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends its processes
    pictures = pictures_of(options.pictures)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="latentpack-topology-", ignore_cleanup_errors=True) as scratch:
        Path(scratch).chmod(0o711)  # where this runs as root, PostgreSQL is another user and has its folder in here
        site = Site(Path(scratch), with_ceph=options.s3 == "ceph", with_postgresql=options.database == "postgresql")
        try:
            site.start_all()
            jobs = Jobs(site, pictures)
            print(f"{len(pictures)} pictures, S3 by {options.s3}, database {options.database}\n")
            print("| step | state | seconds | seen |")
            print("| --- | --- | ---: | --- |", flush=True)
            for name, step in chosen(options.only).items():
                started = time.monotonic()
                state = "passed"
                try:
                    seen = step(jobs)
                except (Failed, LatentpackError, OSError) as failure:
                    failed += 1
                    state, seen = "**failed**", str(failure)
                print(f"| {name} | {state} | {time.monotonic() - started:.0f} | {seen} |", flush=True)
            if options.keep:
                print(f"\nUI: {site.api.removesuffix('/api')}  (Ctrl-C ends it)", flush=True)
                signal.pause()
        except KeyboardInterrupt:
            pass
        except (Failed, CephError, PostgresqlError) as failure:
            failed += 1
            print(f"cannot start: {failure}", flush=True)
        finally:
            site.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
