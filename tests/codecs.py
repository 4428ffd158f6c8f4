"""Small codecs of every family, made in a second: networks without training, frozen on smooth random pictures."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from compressor.codec import Codec, Encoded, load_codec
from compressor.families import FAMILIES, freeze
from compressor.quality import Searchable

TINY_HYPERPRIOR = {
    "trunk": 8,
    "deep": 16,
    "latents": 8,
    "hyper": 4,
    "features": 8,
    "scale_features": 8,
    "deep_blocks": 1,
    "blocks": 1,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "autoencoder": {"widths": [8, 8, 4], "strides": [2, 2, 2]},
    "skips": {"widths": [8, 8, 4], "strides": [2, 2, 2], "skips": {"1": 2}},
    "v5": TINY_HYPERPRIOR,
    "v6": {**TINY_HYPERPRIOR, "heads": 2},
    "shortcuts": {
        **TINY_HYPERPRIOR,
        "shortcut": True,
        "hyper_features": 6,
        "step_blocks": 2,
        "analysis_deep_blocks": 2,
    },
    "context": {**TINY_HYPERPRIOR, "prior_features": 8},
}


def smooth_pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> list[np.ndarray]:
    """uint8 (H, W, 3) pictures: colour gradients with a little noise."""
    random = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        corners = torch.from_numpy(random.uniform(0, 255, (1, 3, 4, 4)))
        smooth = torch.nn.functional.interpolate(corners, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
        pictures.append(np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))
    return pictures


@cache
def tiny_artifact(family: str, weights: str | None = None) -> bytes:
    """Artifact bytes of an untrained codec of a family, or of one of its options.

    These are an autoencoder with ``skips``, and V5 with ``shortcuts`` or with a ``context`` of its hyperlatents that
    has something to tell. ``weights`` is the type they are stored in.
    """
    torch.manual_seed(0)
    calibration = np.stack(smooth_pictures(16, seed=1))
    options = _OPTIONS.get(family, {})
    family = {"skips": "autoencoder", "shortcuts": "v5", "context": "v5"}.get(family, family)
    network = FAMILIES[family].build(**options)
    if "prior_features" in options:
        with torch.no_grad():
            network.hyper_analysis.leave.weight.mul_(50)
            for step in network.hyper_prior.contexts:
                step.leave.weight.normal_(0, 0.3)
    return freeze(family, network.eval(), calibration, options, weights=weights)


def tiny_codec(family: str) -> Codec:
    """The codec of :func:`tiny_artifact`."""
    return load_codec(tiny_artifact(family))


def tried(
    codec: Codec, pictures: Sequence[np.ndarray], qualities: Sequence[int], packer: str = "entropy"
) -> tuple[list[Encoded], list[np.ndarray]]:
    """What a search stores where it ends at these of the qualities that it can try, and the pixels it measured."""
    assert isinstance(codec, Searchable)
    trials = codec.trials(pictures, packer)
    attempts = trials.attempt(range(len(pictures)), qualities)
    encoded = trials.finish(range(len(pictures)), [attempt for attempt, _ in attempts])
    return [one for one in encoded if one is not None], [pixels for _, pixels in attempts]
