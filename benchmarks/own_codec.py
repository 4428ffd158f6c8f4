"""What a codec of one's own gives: faces as it is, trained on for some minutes, and a new one trained as long.

    python benchmarks/own_codec.py [--minutes 15] [--folder DIR]

Pictures are scikit-image's photographs: the codecs learn from overlapping tiles of all but the last 128 columns of
each, and are measured on tiles of these columns. Both trainings run at the same time, each on one core. DIR keeps the
pictures and the codecs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor.codec import Codec, load_codec
from compressor.defaults import CODEC
from compressor.images import decode_picture
from compressor.metrics import RateCurve
from compressor.picture_writing import encode_picture
from compressor.quality import encode_measured
from compressor.samples import PHOTOGRAPHS, TEXTURES, TILE, photograph, tiles

STRIDE = 32  # pixels from one tile that is learned from to the next
TARGETS = (34.0, 36.0, 38.0)
TRAININGS = {"--start faces": ("--start", CODEC), "--family v5": ("--family", "v5")}


def learned_from(folder: Path) -> int:
    """Write the tiles to learn from; how many."""
    folder.mkdir()
    count = 0
    for name in (*PHOTOGRAPHS, *TEXTURES):
        pixels = decode_picture(photograph(name)).pixels[:, :-TILE]
        height, width = pixels.shape[:2]
        for top in range(0, height - TILE + 1, STRIDE):
            for left in range(0, width - TILE + 1, STRIDE):
                tile = pixels[top : top + TILE, left : left + TILE]
                (folder / f"{count:05d}.png").write_bytes(encode_picture(tile, 3))
                count += 1
    return count


def curve(codec: Codec, pictures: Sequence[np.ndarray]) -> RateCurve:
    """Bytes of payload and PSNR, means over ``pictures``, at every fourth quality step."""
    rates, levels = [], []
    for quality in range(8, 64, 4):
        stored = encode_measured(codec, pictures, quality)
        rates.append(np.mean([len(one.encoded.payload) for one in stored]))
        levels.append(np.mean([one.psnr for one in stored]))
    return RateCurve(np.array(rates), np.array(levels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="15")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    count = learned_from(folder / "learned")
    measured = [
        tile
        for name in (*PHOTOGRAPHS, *TEXTURES)
        for tile in tiles(np.ascontiguousarray(decode_picture(photograph(name)).pixels[:, -TILE:]))
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LATENTPACK_HOME": str(folder / "home")}
    paths = {title: folder / f"codec-{number}.safetensors" for number, title in enumerate(TRAININGS)}
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "flows.cli", "train", folder / "learned", "--out", paths[title]),
                *(*how, "--minutes", options.minutes, "--workers", "1"),
            ],
            env=environment,
        )
        for title, how in TRAININGS.items()
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a training failed")
    codecs = {"faces": CODEC} | {f"train {title}": str(path) for title, path in paths.items()}
    print(f"\n{len(measured)} tiles measured, {count} learned from, bytes of payload at equal mean PSNR\n")
    print("| | " + " | ".join(f"{target:.0f} dB" for target in TARGETS) + " |\n| --- |" + " ---: |" * len(TARGETS))
    for title, address in codecs.items():
        points = curve(load_codec(address), measured)
        cells = (points.rate_at(target) for target in TARGETS)
        print(f"| {title} | " + " | ".join("" if cell is None else f"{cell:.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
