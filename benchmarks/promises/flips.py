"""Single flipped bits in every kind of file of an archive: does anybody notice, does anything crash or hang?"""

import os
import random
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compressor.archive import Archive
from compressor.delta_log import CONFIGURATION
from compressor.errors import LatentpackError
from promises.common import Worker, archive_files, elapsed, listed, print_table

SIDE = 64  # pixels: thousands of archives are read whole
SECONDS = 300.0  # after which reading is said to hang
PLACES = ("payloads", "the rest of Parquet files", "Delta log", "codecs", "latentpack.json")
SHARES = (0.35, 0.35, 0.2, 0.09, 0.01)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--flips", type=int, default=10_000)


def run(options: Namespace, scratch: Path) -> bool:
    """Flip bits one by one, read and verify, and count. True where none was missed."""
    started = time.monotonic()
    url = str(scratch / "archive")
    pictures = _archive(options.pictures, scratch, url)
    spans = _spans(url)
    choose = random.Random(options.seed)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    worker = Worker(_open, (url,), _look)
    for number in range(options.flips):
        if number and not number % 1000:
            print(f"{number} flips, {elapsed(started)}", file=sys.stderr, flush=True)
        place = choose.choices(PLACES, SHARES)[0]
        name, start, end = choose.choices(spans[place], [end - start for _, start, end in spans[place]])[0]
        offset, bit = choose.randrange(start, end), choose.randrange(8)
        worker.start()  # while the archive is whole
        outcome = _flipped(f"{url}/{name}", offset, bit, lambda: worker.ask(0, SECONDS))
        counts[place][outcome.partition(":")[0]] += 1
        if outcome not in ("detected", "no effect"):
            print(f"{outcome}: bit {bit} of byte {offset} of {name}", flush=True)
    worker.stop()
    kinds = ("detected", "no effect", "undetected", "wrong picture", "crash", "hang")
    total = sum(counts.values(), Counter())
    rows = [(place, counts[place].total(), *(counts[place][kind] for kind in kinds)) for place in PLACES]
    rows.append(("**all**", total.total(), *(total[kind] for kind in kinds)))
    print(f"{options.flips:,} flips over an archive of {pictures} pictures, {elapsed(started)}\n")
    print_table(("where", "flips", *kinds), rows)
    return not (total["undetected"] or total["wrong picture"] or total["crash"] or total["hang"])


def _archive(pictures: Path, scratch: Path, url: str) -> int:
    """All codecs, several files, replaced rows, a checkpoint of the log, a quarantine list."""
    folder = scratch / "pictures"
    folder.mkdir()
    files = sorted(path for path in pictures.rglob("*") if path.is_file())[:12]
    for number, path in enumerate(files):
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(folder / f"{number:02d}.png")
    Image.fromarray(np.full((9, 9, 4), 90, np.uint8)).save(folder / "12.png")  # kept as its file
    (folder / "13.png").write_bytes(b"no picture")
    source, found = listed(folder)
    interval = CONFIGURATION["delta.checkpointInterval"]
    CONFIGURATION["delta.checkpointInterval"] = "5"
    try:
        archive_files(url, source, found[:4])
        archive_files(url, source, found[4:6], codec="avif")
        archive_files(url, source, found[6:7], codec="lossless")
        for packer, file in zip(("lzma", "gzip"), found[7:9], strict=True):
            archive_files(url, source, [file], packer=packer)
        archive = archive_files(url, source, found[9:])
    finally:
        CONFIGURATION["delta.checkpointInterval"] = interval
    # A reader that is only told of the newest file would bring this row back
    archive.commit([archive.write_part([replace(archive.read_row("00.png"), fingerprint=b"changed!")])], ["00.png"])
    archive.vacuum(0)
    assert not archive.verify()
    return len(archive)


def _spans(url: str) -> dict[str, list[tuple[str, int, int]]]:
    """Ranges of bytes, as (name, start, end), by place."""
    payloads = {row.payload for rows in Archive.open(url).scan() for row in rows if row.payload}
    spans: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for folder, _, names in os.walk(url):
        for name in names:
            path = os.path.join(folder, name)
            short = os.path.relpath(path, url)
            data = Path(path).read_bytes()
            if not data:
                continue
            if "_delta_log" in short:
                spans["Delta log"].append((short, 0, len(data)))
            elif short.startswith("codecs"):
                spans["codecs"].append((short, 0, len(data)))
            elif not name.endswith(".parquet"):
                spans["latentpack.json"].append((short, 0, len(data)))
            else:
                held = sorted((at, at + len(p)) for p in payloads if (at := data.find(p)) >= 0)
                spans["payloads"] += [(short, start, end) for start, end in held]
                edges = [0, *(edge for span in held for edge in span), len(data)]
                rest = zip(edges[::2], edges[1::2], strict=True)
                spans["the rest of Parquet files"] += [(short, start, end) for start, end in rest if end > start]
    return spans


def _flipped(path: str, offset: int, bit: int, look: Callable[[], Any]) -> Any:
    """What ``look`` finds while one bit of a file is another."""
    kept = path + ".kept"
    shutil.copy2(path, kept)
    try:
        with open(path, "rb+") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
        return look()
    finally:
        os.replace(kept, path)


def _open(url: str) -> tuple[str, dict[str, bytes]]:
    archive = Archive.open(url)
    rows = [row for batch in archive.scan() for row in batch]
    truth = {row.key: pixels.tobytes() for row, pixels in zip(rows, archive.decode(rows), strict=True)}
    return url, truth


def _look(state: tuple[str, dict[str, bytes]], _: int) -> str:
    """Read every picture, then verify, as a user would."""
    url, truth = state
    same = True
    try:
        archive = Archive.open(url)
        for key, pixels in truth.items():
            try:
                read = archive.read(key)
            except LatentpackError:
                same = False
            else:
                if read.tobytes() != pixels:
                    return "wrong picture"
        same = same and sorted(archive.keys()) == sorted(truth)
        problems = archive.verify()
    except LatentpackError:
        return "detected"
    except BaseException as error:  # a panic in Rust is no Exception
        return f"crash: {type(error).__name__}: {str(error)[:200]}"
    return "detected" if problems else "no effect" if same else "undetected"
