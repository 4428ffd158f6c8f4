"""A layer in floating point makes up for the rounding of the others, which stay as they are."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compressor.artifact import parse
from compressor.codec import load_codec
from compressor.networks.hyperprior import Hyperprior
from compressor.quality import encode_measured
from compressor.refitting import refit_shortcut, refitted
from tests.codecs import TINY_HYPERPRIOR, smooth_pictures, tiny_artifact, tiny_codec

PICTURES = np.stack(smooth_pictures(16, seed=3))
NCHW = torch.from_numpy(np.moveaxis(PICTURES, -1, 1).copy())


def test_only_the_shortcut_becomes_another() -> None:
    data = tiny_artifact("shortcuts", weights="int8")
    old, new = parse(data), parse(refitted(parse(data), PICTURES))
    assert set(old.tensors) - set(new.tensors) == {"scale.synthesis.shortcut.weight"}
    changed = {name for name, value in new.tensors.items() if value.tobytes() != old.tensors[name].tobytes()}
    assert changed == {"network.synthesis.shortcut.weight", "predictor"}
    assert new.state()["synthesis.shortcut.weight"].dtype == np.float16
    assert new.metadata["card"]["refitted"] == {"of": old.id, "pictures": len(PICTURES)}


def test_a_codec_stores_the_same_of_a_picture_and_shows_it_better() -> None:
    before = tiny_codec("shortcuts")
    after = load_codec(refitted(parse(tiny_artifact("shortcuts")), PICTURES))
    pictures = smooth_pictures(8, seed=9)
    errors = []
    for codec in (before, after):
        stored = encode_measured(codec, pictures, 40)
        errors.append(
            np.mean([np.square(one.pixels - a.astype(float)).mean() for one, a in zip(stored, pictures, strict=True)])
        )
        assert [one.encoded.payload for one in stored] == [one.payload for one in before.encode(pictures, 40)]
    assert errors[1] < errors[0]


def test_a_network_without_a_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match="no shortcut"):
        refitted(parse(tiny_artifact("v5", weights="int8")), PICTURES)


def test_the_shortcut_is_the_best_that_there_is() -> None:
    torch.manual_seed(0)
    network = Hyperprior(**TINY_HYPERPRIOR, shortcut=True).eval()
    quality_B = torch.full((len(NCHW),), 40.0)
    x_BCHW = NCHW.float() / 255

    @torch.no_grad()
    def error() -> float:
        y_hat, _ = network.coded(x_BCHW, quality_B)
        return F.mse_loss(network.synthesis(y_hat, quality_B), x_BCHW).item()

    untrained = error()
    for _ in range(30):  # each time as near as its damping lets it come
        refit_shortcut(network, NCHW.repeat(4, 1, 1, 1))
    best, state = error(), {name: value.clone() for name, value in network.state_dict().items()}
    assert best < 0.9 * untrained
    with torch.no_grad():
        network.synthesis.shortcut.weight.add_(0.5 * torch.randn(state["synthesis.shortcut.weight"].shape))
    assert error() > 1.05 * best
    for _ in range(30):
        refit_shortcut(network, NCHW.repeat(4, 1, 1, 1))
    assert error() == pytest.approx(best, rel=0.02)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {"synthesis.shortcut.weight"}
