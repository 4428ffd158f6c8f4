"""What the ways to break an archive share: sources, tables on paper, work in a process that may die."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from compressor.archive import Archive
from compressor.choosing import put_codec
from compressor.defaults import CODEC as DEFAULT
from compressor.encoding import EncodeOptions, encode_batch
from compressor.sources import Source, SourceFile
from tasks.threads import pin_threads

spawn = multiprocessing.get_context("spawn")


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A Markdown table; the first column is text, the others are figures."""
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |")
    print(flush=True)


def listed(folder: Path | str, count: int | None = None) -> tuple[Source, list[SourceFile]]:
    """A source and its first files."""
    source = Source.open(str(folder))
    return source, list(source.files())[:count]


def archive_files(url: str, source: Source, files: Sequence[SourceFile], **options: Any) -> Archive:
    """Encode and commit ``files`` without Prefect."""
    pin_threads(1)
    archive = Archive.open_or_create(url)
    codec, _ = put_codec(archive, options.pop("codec", DEFAULT))
    report = encode_batch(source, files, archive, EncodeOptions(codec, **options), "benchmark")
    archive.commit(report.parts, batch_id=None)
    archive.quarantine(report.quarantined)
    return archive


class Worker:
    """A process that answers one question after another, and is replaced where it dies or takes too long.

    Parameters
    ----------
    answer
        A function of a module, called in the process with what ``setup`` gave there, and a question.
    """

    def __init__(
        self, setup: Callable[..., Any], arguments: tuple[Any, ...], answer: Callable[[Any, Any], Any]
    ) -> None:
        self._make = (setup, arguments, answer)
        self._process: Any = None

    def start(self) -> None:
        """Have a process ready."""
        if self._process is None:
            self._pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(theirs, *self._make), daemon=True)
            self._process.start()
            theirs.close()
            if not self._pipe.poll(120) or self._pipe.recv() != "ready":
                raise RuntimeError("a worker did not start")

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer, or ``"crash"`` or ``"hang"``."""
        self.start()
        try:
            self._pipe.send(question)
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            outcome = "hang"
        except (EOFError, OSError):
            self._process.join(10)
            print(f"a worker ended with {self._process.exitcode}", flush=True)
            outcome = "crash"
        self.stop()
        return outcome

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Any, setup: Callable[..., Any], arguments: tuple[Any, ...], answer: Callable[[Any, Any], Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a panic in Rust prints its stack
    state = setup(*arguments)
    pipe.send("ready")
    while True:
        pipe.send(answer(state, pipe.recv()))


def limit_memory(megabytes: int) -> None:
    """Have allocations fail that take this process over its present address space by more than this."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, resource.RLIM_INFINITY))


def elapsed(started: float) -> str:
    return f"{time.monotonic() - started:,.0f} s"
