"""SIGKILL at random moments of runs, of compacting and of erasing; then the same command again."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from contextlib import suppress
from pathlib import Path

from compressor import keyed_table
from compressor.archive import Archive
from compressor.errors import ArchiveError
from promises.common import elapsed, listed, print_table

BATCH = 20  # pictures: many commits a run
STAGES = ("start", "open", "plan", "prepare", "encode", "write", "commit", "report", "compact", "delete", "vacuum")
AIMED = ("open", "plan", "prepare", "write", "commit", "commit", "report")
MAINTENANCE = frozenset({"compact", "delete", "vacuum"})


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--kills", type=int, default=100, help="of runs, at random; others come on top of them")
    parser.add_argument("--aimed", type=int, default=60, help="of runs, within a short stage that chance rarely hits")


def run(options: Namespace, scratch: Path) -> bool:
    """Archive the pictures again and again, each time through several kills. True where nothing was lost."""
    started = time.monotonic()
    kills = _Kills(options, scratch)
    try:
        while kills.at_random < options.kills or kills.aimed < options.aimed:
            kills.archive_once()
            print(f"{kills.at_random} + {kills.aimed} kills", file=sys.stderr, flush=True)
    finally:
        kills.close()
    print(
        f"{kills.at_random} kills of runs at random moments, {kills.aimed} aimed at short stages, "
        f"{kills.of_maintenance} of maintenance, {elapsed(started)}\n"
    )
    stages = kills.stages
    rows = [(stage, stages[stage, False], stages[stage, True]) for stage in STAGES]
    print_table(("stage that the kill hit", "at random", "aimed"), rows)
    print_table(
        ("archives completed", "pictures in each", "lost", "duplicated", "problems that verify found", "orphans left"),
        [(str(kills.archives), len(kills.keys), kills.lost, kills.doubled, kills.problems, kills.orphans)],
    )
    return not (kills.lost or kills.doubled or kills.problems or kills.orphans)


class _Kills:
    """What was killed, and what was found wrong after it."""

    def __init__(self, options: Namespace, scratch: Path) -> None:
        from flows.environment import PrivateServer, set_defaults

        set_defaults()
        self.keys = {file.key for file in listed(options.pictures)[1]}
        self.stages: Counter[tuple[str, bool]] = Counter()
        self.at_random = self.aimed = self.of_maintenance = 0
        self.archives = self.lost = self.doubled = self.problems = self.orphans = 0
        self._random = random.Random(options.seed)
        self._scratch, self._pictures = scratch, options.pictures
        self._wanted = options
        self._mark = scratch / "stage"
        self._mark.write_bytes(b"\0")
        self._server = PrivateServer(scratch / "prefect")  # one for all: its start takes longer than a run
        self._server.start()
        self._server.wait()
        command = [sys.executable, "-c", "from promises.kills import zygote; zygote()"]
        here = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": here}
        self._zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._zygote.stdout and self._zygote.stdout.readline() == b"ready\n"
        whole = str(scratch / "whole")
        self._run_s = self._child("run", whole, None)[1]
        self._maintenance_s = self._child("maintain", whole, None)[1]

    def close(self) -> None:
        self._zygote.kill()
        self._zygote.wait()
        self._server.stop()

    def archive_once(self) -> None:
        """One archive from nothing to whole, then maintained, killed on the way."""
        url = str(self._scratch / f"archive-{self.archives}")
        before: set[str] = set()
        for _ in range(1000):
            aimed, at_random = self._wanted.aimed - self.aimed, self._wanted.kills - self.at_random
            aim = self._random.random() * (aimed + at_random) < aimed
            if aim:
                stage, _ = self._child("run", url, self._random.uniform(0, 0.02), self._random.choice(AIMED))
            elif at_random:
                share = 1 - len(before) / len(self.keys)
                stage, _ = self._child("run", url, self._random.uniform(0, self._run_s * (0.1 + 0.6 * share)))
            else:
                stage, _ = self._child("run", url, None)
            if stage is None:
                break
            self.aimed += aim
            self.at_random += not aim
            self.stages[stage, aim] += 1
            before = self._check(url, before)
        self._check(url, self.keys)
        self.problems += len(Archive.open(url).verify())
        erased = min(self.keys)
        for _ in range(2):
            stage, _ = self._child("maintain", url, self._random.uniform(0, self._maintenance_s))
            if stage is not None:
                self.of_maintenance += 1
                self.stages[stage, False] += 1
            self._check(url, self.keys - {erased})
        self._child("maintain", url, None)
        self._check(url, self.keys - {erased})
        archive = Archive.open(url)
        self.lost += erased in set(archive.keys())  # erased, and back
        self.problems += len(archive.verify())
        parts = {part.path for part in archive._images.parts}
        self.orphans += len({path.name for path in Path(url, "images").iterdir() if path.is_file()} - parts)
        self.archives += 1

    def _check(self, url: str, before: set[str]) -> set[str]:
        """Keys that the archive holds; counts those that it has lost or twice."""
        try:
            keys = list(Archive.open(url).keys())
        except ArchiveError as error:
            if "no archive here" not in str(error):
                raise
            keys = []
        self.doubled += len(keys) - len(set(keys))
        self.lost += len(before - set(keys))
        return set(keys)

    def _child(self, what: str, url: str, kill_after: float | None, aim: str = "") -> tuple[str | None, float]:
        """Run in a process group of its own, and kill that, ``kill_after`` seconds after the stage ``aim`` has begun.

        Returns the stage it was in, or None where it was done before.
        """
        pipe, out = self._zygote.stdin, self._zygote.stdout
        assert pipe and out
        self._mark.write_bytes(b"\0")
        question = {"what": what, "url": url, "pictures": str(self._pictures), "mark": str(self._mark)}
        pipe.write(json.dumps(question).encode() + b"\n")
        pipe.flush()
        child = int(out.readline())
        started = time.monotonic()
        if kill_after is not None:
            passes = self._random.randint(1, 4)  # a run commits many times
            while aim and passes and time.monotonic() - started < 2 * self._run_s:
                if STAGES[self._mark.read_bytes()[0]] == aim:
                    passes -= 1
                    while passes and STAGES[self._mark.read_bytes()[0]] == aim:
                        time.sleep(0.0005)
                time.sleep(0.0002)
            time.sleep(kill_after)
            stage = STAGES[self._mark.read_bytes()[0]]
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        code = int(out.readline())
        if code == -signal.SIGKILL:
            return stage, 0.0
        if code:
            raise RuntimeError(f"a {what} ended with {code}")
        return None, time.monotonic() - started


def zygote() -> None:
    """Import everything once, then fork a process for each question."""
    import flows.pipeline  # noqa: F401
    import tasks.encode  # noqa: F401
    from compressor.codec import load_codec
    from compressor.defaults import CODEC as DEFAULT

    load_codec(DEFAULT)
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                _work(**question)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _work(what: str, url: str, pictures: str, mark: str) -> None:
    """A run, or what a person does to an archive now and then; ``mark`` tells how far it is."""
    import flows.pipeline as pipeline
    import tasks.encode
    from flows.parameters import PipelineParameters

    with open(mark, "rb+") as file:
        now = mmap.mmap(file.fileno(), 1)
    now[0] = STAGES.index("start")
    _marked(now, Archive, "open_or_create", "open")
    _marked(now, Archive, "write_part", "write")
    _marked(now, Archive, "commit", "commit")
    _marked(now, pipeline, "plan_run", "plan")
    _marked(now, pipeline, "put_codec", "prepare")
    _marked(now, tasks.encode, "encode_batch", "encode")
    _marked(now, pipeline, "publish", "report")
    for name in MAINTENANCE:
        _marked(now, Archive, name, name)
    if what == "run":
        pipeline.was_killed = lambda mark: False  # which would have it encode where no stage is marked
        pipeline.pipeline(PipelineParameters(source=pictures, archive=url, batch_size=BATCH, workers=1))
        return
    archive = Archive.open(url)
    archive.compact()
    archive.delete([min(archive.keys())] if len(archive) == len(listed(pictures)[1]) else [])
    keyed_table.ORPHAN_HOURS = 0  # no other run is in flight whose parts might be taken for what a kill left
    archive.vacuum(0)


def _marked(now: mmap.mmap, owner: object, name: str, stage: str) -> None:
    """Have a function say that it is at work."""
    real = getattr(owner, name)

    def marked(*args, **named):
        before, now[0] = now[0], STAGES.index(stage)
        try:
            return real(*args, **named)
        finally:
            now[0] = before

    setattr(owner, name, marked)
