"""What a codec of one's own gives: faces as it is, trained on for some minutes, and a new one trained as long.

    python benchmarks/own_codec.py [--minutes 15]

Pictures are scikit-image's photographs. Tiles of the last 128 columns of each are measured, tiles of the 128 before
them are validated on, and overlapping tiles of all others are learned from, as `latentpack train` does. Both trainings
run at the same time, each on one core.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from compressor.codec import Codec, load_codec
from compressor.defaults import CODEC
from compressor.images import decode_picture
from compressor.learning import learn
from compressor.metrics import RateCurve
from compressor.quality import encode_measured
from compressor.samples import PHOTOGRAPHS, TEXTURES, TILE, photograph, tiles
from flows.parameters import CodecTrainingParameters
from flows.train import configure

STRIDE = 32  # pixels from one tile that is learned from to the next
TARGETS = (34.0, 36.0, 38.0)
TRAININGS = {"--start faces": CODEC, "--family v5": None}


def photographs() -> list[np.ndarray]:
    return [decode_picture(photograph(name)).pixels for name in (*PHOTOGRAPHS, *TEXTURES)]


def columns(first: int, behind: int | None) -> list[np.ndarray]:
    """Tiles of these columns of every photograph."""
    return [tile for pixels in photographs() for tile in tiles(np.ascontiguousarray(pixels[:, first:behind]))]


def learned_from() -> np.ndarray:
    """Overlapping tiles of what is left of these, uint8 (N, 128, 128, 3)."""
    return np.stack(
        [
            pixels[top : top + TILE, left : left + TILE]
            for pixels in photographs()
            for top in range(0, pixels.shape[0] - TILE + 1, STRIDE)
            for left in range(0, pixels.shape[1] - 3 * TILE + 1, STRIDE)
        ]
    )


def trained(title: str, minutes: float) -> bytes:
    """The artifact of one training."""
    torch.set_num_threads(1)
    start = TRAININGS[title]
    config = configure(CodecTrainingParameters(minutes=minutes), start is not None)
    made = learn("v5", learned_from(), np.stack(columns(-2 * TILE, -TILE)), config, start=start, weights="int8")
    print(f"{title}: step {made.state.kept['step']:.0f} of {made.state.step} was best", flush=True)
    return made.data


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
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = dict(zip(TRAININGS, pool.map(trained, TRAININGS, [options.minutes] * 2), strict=True))
    measured = columns(-TILE, None)
    print(
        f"\n{len(measured)} tiles measured, {len(learned_from())} learned from, bytes of payload at equal mean PSNR\n"
    )
    print("| | " + " | ".join(f"{target:.0f} dB" for target in TARGETS) + " |\n| --- |" + " ---: |" * len(TARGETS))
    for title, codec in [
        ("faces", load_codec(CODEC)),
        *((f"train {name}", load_codec(data)) for name, data in made.items()),
    ]:
        points = curve(codec, measured)
        cells = (points.rate_at(target) for target in TARGETS)
        print(f"| {title} | " + " | ".join("–" if cell is None else f"{cell:.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
