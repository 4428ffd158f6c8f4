"""A codec trained on your own pictures, without Prefect: python examples/train_your_own.py [FOLDER OUT MINUTES]

`latentpack train FOLDER --out codec.safetensors` does so with caching and progress in Prefect.
"""

import sys
import tempfile
from pathlib import Path

from compressor.families import FAMILIES, freeze
from compressor.samples import write_samples
from compressor.shards import ShardConfig, load_shards, prepare_shard
from compressor.sources import Source
from compressor.training import TrainingConfig, fit


def main(folder: str = "example-pictures", out: str = "example-codec.safetensors", minutes: str = "10") -> None:
    if not Path(folder).exists() and "://" not in folder:
        write_samples(Path(folder))
    source = Source.open(folder)
    with tempfile.TemporaryDirectory() as shards:
        pictures_NHWC = load_shards([prepare_shard(source, list(source.files()), ShardConfig(), Path(shards))])
    pictures_NCHW = pictures_NHWC.transpose(0, 3, 1, 2)
    held_out = max(1, len(pictures_NCHW) // 50)
    network, state = fit(
        FAMILIES["v5"].build(),
        pictures_NCHW[held_out:],
        pictures_NCHW[:held_out],
        TrainingConfig(steps=0, minutes=float(minutes), optimizer="muon", learning_rate=3e-3),
        on_progress=lambda state, done: print(f"{done:.0%}: {state.history[-1]}"),
    )
    calibration_NHWC = pictures_NHWC[held_out:][:512]
    Path(out).write_bytes(freeze("v5", network, calibration_NHWC, title=Path(out).stem, weights="int8"))
    print(f"{out}: best validation loss {state.best:.4f} after {state.pictures} pictures")


if __name__ == "__main__":
    main(*sys.argv[1:4])
