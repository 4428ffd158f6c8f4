"""Whether a GPU writes and reads what a processor does, and how many pictures a second.

    python benchmarks/gpu.py PICTURES [--codec faces]

PICTURES is a Parquet file with a column ``image`` of encoded 128x128 pictures; the 128 that training holds out are
taken. Needs torch, NumPy, pyarrow, OpenCV, safetensors and constriction alone.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from train_release import load, split

from compressor.artifact import parse
from compressor.codec import Encoded, artifact_bytes
from compressor.families import family
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.metrics import psnr

BATCHES = (1, 7, 64, 128)
STEP = 28  # of quality: about 34.7 dB
REPEATS = 16  # of the pictures, in what is timed


def symbols(codec: HyperpriorCodec, encoded: Sequence[Encoded], batch: int) -> list[np.ndarray]:
    """Hyperlatents and residuals of all, read so many at a time."""
    parts = [codec.symbols(encoded[start : start + batch]) for start in range(0, len(encoded), batch)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--codec", default="faces")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")

    artifact = parse(artifact_bytes(options.codec))
    here, there = (
        HyperpriorCodec(artifact, family(artifact.family).network(artifact), torch.device(kind))
        for kind in ("cpu", "cuda")
    )
    pictures = [np.ascontiguousarray(picture.transpose(1, 2, 0)) for picture in split(load(options.pictures))[1]]
    qualities = [13 * index % 62 for index in range(len(pictures))]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {len(pictures)} pictures\n")
    print("| written on | same symbols in batches of | largest difference of PSNR by reader, dB | bytes |")
    print("| --- | --- | ---: | ---: |")
    for name, codec in (("processor", here), ("GPU", there)):
        encoded = codec.encode(pictures, qualities, "entropy")
        expected = here.symbols(encoded)
        same = [batch for batch in BATCHES if all(map(np.array_equal, symbols(there, encoded, batch), expected))]
        read = zip(pictures, here.decode(encoded), there.decode(encoded), strict=True)
        difference = max(abs(psnr(picture, one) - psnr(picture, other)) for picture, one, other in read)
        size = sum(len(one.payload) for one in encoded)
        print(f"| {name} | {', '.join(map(str, same))} | {difference:.3f} | {size:,} |", flush=True)

    many = pictures * REPEATS
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        encoded = there.encode(many, STEP, "entropy")
        encoding = time.perf_counter() - started
        started = time.perf_counter()
        there.decode(encoded)
        decoding = time.perf_counter() - started
    print(f"\nstep {STEP}: {len(many) / encoding:,.0f} encoded, {len(many) / decoding:,.0f} decoded a second")


if __name__ == "__main__":
    main()
