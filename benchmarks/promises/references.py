"""Reference sets of odd and corrupt pictures, by folder: what becomes of each file. None of them is kept here.

pip download --no-deps --no-binary :all: pillow imageio     (unpack the archives)
apt-get download / apt-get source of what holds test pictures
"""

import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

from compressor.archive import Archive
from compressor.choosing import put_codec
from compressor.codec import ORIGINAL
from compressor.defaults import CODEC as DEFAULT
from compressor.encoding import EncodeOptions, encode_batch
from compressor.limits import Limits
from promises.common import Worker, listed, print_table
from tasks.threads import pin_threads

SECONDS = 300.0  # after which a file is said to hang


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+")


def run(options: Namespace, scratch: Path) -> bool:
    """Archive every picture below the folders, one at a time. True where none crashed or hung."""
    sets: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for number, folder in enumerate(options.folders):
        counts = sets[folder.name] = Counter()
        why = reasons[folder.name] = Counter()
        worker = Worker(_prepare, (str(folder), str(scratch / f"archive-{number}")), _archive)
        started = time.monotonic()
        for file in range(len(listed(folder)[1])):
            worker.start()
            outcome = worker.ask(file, SECONDS)
            kind, _, reason = outcome.partition(": ")
            counts[kind] += 1
            if reason:
                why[reason] += 1
            if kind in ("crash", "hang"):
                print(f"{outcome}: {listed(folder)[1][file].path}", flush=True)
        worker.stop()
        problems = len(Archive.open(str(scratch / f"archive-{number}")).verify())
        counts["crash"] += problems
        print(
            f"{folder.name}: {counts.total()} files, {time.monotonic() - started:.0f} s, verify found {problems}",
            flush=True,
        )
    rows = []
    for name, found in sets.items():
        told = ", ".join(f"{count} {reason}" for reason, count in reasons[name].most_common())
        row = (
            name,
            found.total(),
            found["encoded"],
            found["kept"],
            found["refused"],
            found["crash"],
            found["hang"],
            told,
        )
        rows.append(row)
    head = ("set", "files", "encoded", "kept as their bytes", "refused", "crashes", "hangs", "refused as")
    print_table(head, rows)
    return not any(found["crash"] or found["hang"] for found in sets.values())


def _prepare(folder: str, url: str) -> tuple:
    pin_threads(1)
    archive = Archive.open_or_create(url)
    codec, _ = put_codec(archive, DEFAULT)
    source, files = listed(folder)
    return source, files, archive, EncodeOptions(codec, limits=Limits(max_pixels=30_000_000))


def _archive(state: tuple, number: int) -> str:
    source, files, archive, options = state
    try:
        report = encode_batch(source, [files[number]], archive, options, "references")
        archive.commit(report.parts)
    except Exception as error:
        return f"crash: {type(error).__name__}"
    if report.quarantined:
        return f"refused: {report.quarantined[0].reason}"
    return "kept" if ORIGINAL in report.codecs else "encoded"
