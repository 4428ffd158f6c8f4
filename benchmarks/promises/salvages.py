"""Logs damaged until an archive cannot be opened: does salvaging it give every picture back, as it was last?"""

import random
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from compressor.archive import Archive
from compressor.errors import ArchiveError
from compressor.salvaging import salvage
from promises.common import elapsed, print_table
from tests.rows import add, contents, picture_row

COMMITS = 30
APART_S = 1.1  # commits: an entry that is lost is told from others by times in seconds

Damage = Callable[[random.Random, bytes], bytes | None]  # None: the file goes


def _flipped(choose: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(choose.choice((1, 8))):
        changed[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    return bytes(changed)


WAYS: dict[str, Damage] = {
    "bits flipped": _flipped,
    "cut short": lambda choose, data: data[: choose.randrange(len(data))],
    "zeros": lambda _, data: bytes(len(data)),
    "deleted": lambda *_: None,
}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5)


def run(options: Namespace, scratch: Path) -> bool:
    """Damage one to five files of a log, or all, and salvage. True where no picture was lost or old."""
    started = time.monotonic()
    choose = random.Random(options.seed)
    archive = _archive(scratch / "archive", choose)
    truth = contents(archive)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    while time.monotonic() - started < 60 * options.minutes:
        way = choose.choice(list(WAYS))
        damaged, new = scratch / "damaged", scratch / "new"
        shutil.copytree(archive.url, damaged)
        log = sorted((damaged / choose.choice(("images", "images", "quarantine")) / "_delta_log").iterdir())
        for path in choose.sample(log, min(len(log), choose.choice((1, 2, 5, len(log))))):
            data = WAYS[way](choose, path.read_bytes())
            path.unlink() if data is None else path.write_bytes(data)
        counts[way][_outcome(damaged, new, truth)] += 1
        for folder in (damaged, new):
            shutil.rmtree(folder, ignore_errors=True)
    kinds = ("can be opened", "as before", "pictures taken out are back", "lost or old")
    total = sum(counts.values(), Counter())
    rows = [(way, count.total(), *(count[kind] for kind in kinds)) for way, count in counts.items()]
    print(f"An archive of {len(truth)} pictures and {archive.version} commits, {elapsed(started)}\n")
    print_table(("log", "archives", *kinds), [*rows, ("**all**", total.total(), *(total[kind] for kind in kinds))])
    return not total["lost or old"]


def _archive(folder: Path, choose: random.Random) -> Archive:
    """Many small commits that replace each other's rows; some pictures taken out, files merged, nothing vacuumed."""
    archive = Archive.create(str(folder))
    for number in range(COMMITS):
        rows = [picture_row(f"{key:03d}", choose.randrange(10**6)) for key in choose.sample(range(60), 5)]
        add(archive, rows, replaced=[row.key for row in rows])
        time.sleep(APART_S)
        if number % 9 == 8:
            archive.remove([choose.choice(list(archive.keys()))])
            time.sleep(APART_S)
        if number == 2 * COMMITS // 3:
            archive.compact()
            time.sleep(APART_S)
    return archive


def _outcome(damaged: Path, new: Path, truth: dict[str, object]) -> str:
    try:
        Archive.open(str(damaged))
    except ArchiveError:
        pass
    else:
        return "can be opened"
    found, done = salvage(str(damaged), str(new))
    rows = contents(found)
    if done.problems or any(rows.get(key) != row for key, row in truth.items()):
        return "lost or old"
    return "as before" if len(rows) == len(truth) else "pictures taken out are back"
