"""Pictures of one folder that another folder holds too, perhaps mirrored, cut a little otherwise or compressed again.

    python benchmarks/near_copies.py MEASURED LEARNED [--above 0.97]

What a codec is measured on must not be what it has learned from, by another name either. Pairs are told by the
correlation of their colours over 24 x 24 cells: look at each of them.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np

from compressor.limits import Limits
from compressor.reading import plain_pictures
from compressor.sources import Source
from compressor.wording import by_reason

SIDE = 24


def thumbnails(folder: str) -> tuple[list[str], np.ndarray]:
    """Keys, and of each picture its cells' colours without their mean, float32 (pictures, values) of length 1."""
    source = Source.open(folder)
    keys, rows = [], []
    refused: Counter[str] = Counter()
    for file, pixels in plain_pictures(source, list(source.files()), Limits(), refused):
        cells = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        cells -= cells.mean((0, 1))
        keys.append(file.key)
        rows.append(cells.ravel() / max(float(np.linalg.norm(cells)), 1.0))
    if refused:
        print(f"{folder}: not compared: {by_reason(refused)}")
    if not rows:
        raise SystemExit(f"{folder} holds no picture that can be compared")
    return keys, np.array(rows)


def pairs(measured: np.ndarray, learned: np.ndarray, above: float) -> Iterator[tuple[float, int, int, bool]]:
    """Correlation, both indices and whether one is mirrored, of every pair above a correlation."""
    mirrored = measured.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(measured), -1)
    for flipped, side in ((False, measured), (True, mirrored)):
        alike = side @ learned.T
        for one, other in np.argwhere(alike > above).tolist():
            yield float(alike[one, other]), one, other, flipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured")
    parser.add_argument("learned")
    parser.add_argument("--above", type=float, default=0.97)
    options = parser.parse_args()

    (keys, measured), (others, learned) = thumbnails(options.measured), thumbnails(options.learned)
    found = sorted(pairs(measured, learned, options.above), reverse=True)
    for alike, one, other, flipped in found:
        print(f"{alike:.4f}  {keys[one]}  {others[other]}{'  mirrored' if flipped else ''}")
    print(f"{len({one for _, one, _, _ in found})} of {len(keys)} pictures, beside {len(others)}")


if __name__ == "__main__":
    main()
