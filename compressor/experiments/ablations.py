"""Cells that differ from V3 in one thing each: its layers, or its loss."""

from dataclasses import dataclass

from compressor.experiments.cells import Cell
from compressor.experiments.losses import RATE, STRUCTURE

BASE = "V3: 5 layers, MSE"


@dataclass(frozen=True)
class Ablation:
    """One change. ``about`` says which."""

    name: str
    about: str
    cell: Cell


def _layers(*widths: int, strides: tuple[int, ...]) -> Cell:
    return Cell("autoencoder", network={"widths": list(widths), "strides": list(strides)})


ABLATIONS = (
    Ablation(BASE, "what the others differ from", Cell("v3")),
    Ablation(
        "4 layers", "the fifth, which keeps the resolution, left out", _layers(64, 128, 192, 48, strides=(2,) * 4)
    ),
    Ablation(
        "6 layers", "one more at the lowest resolution", _layers(64, 128, 192, 192, 96, 48, strides=(2, 2, 2, 2, 1, 1))
    ),
    Ablation(
        "half the width", "half the channels, the latent's kept", _layers(32, 64, 96, 48, 48, strides=(2, 2, 2, 2, 1))
    ),
    Ablation("twice the latents", "96 channels instead of 48", _layers(64, 128, 192, 96, 96, strides=(2, 2, 2, 2, 1))),
    Ablation("skips", "V4: two skips, stored", Cell("v4")),
    Ablation("rate + MSE", "bits of the latents in the loss", Cell("v3", loss=RATE)),
    Ablation("MS-SSIM + MSE", "structure in the loss", Cell("v3", loss=STRUCTURE)),
)
