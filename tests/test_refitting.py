"""A layer in floating point makes up for the rounding of the others, which stay as they are."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compressor import families
from compressor.artifact import parse
from compressor.codec import load_codec
from compressor.families import refreeze
from compressor.networks.hyperprior import Hyperprior
from compressor.quality import encode_measured
from compressor.refitting import refit_shortcut
from tests.codecs import TINY_HYPERPRIOR, smooth_pictures, tiny_artifact

PICTURES = np.stack(smooth_pictures(16, seed=3))
NCHW = torch.from_numpy(np.moveaxis(PICTURES, -1, 1).copy())


def test_only_the_shortcut_becomes_another_and_shows_pictures_better(monkeypatch: pytest.MonkeyPatch) -> None:
    after = refreeze(tiny_artifact("shortcuts"), PICTURES, "int8")
    monkeypatch.setattr(families, "refit_shortcut", lambda network, pictures: None)
    before = refreeze(tiny_artifact("shortcuts"), PICTURES, "int8")
    old, new = parse(before).tensors, parse(after).tensors
    assert old.keys() == new.keys() and "scale.synthesis.shortcut.weight" not in new
    changed = {name for name, value in new.items() if value.tobytes() != old[name].tobytes()}
    assert {name for name in changed if not name.startswith("predictor.")} == {"network.synthesis.shortcut.weight"}
    assert new["network.synthesis.shortcut.weight"].dtype == np.float16
    pictures, errors, payloads = smooth_pictures(8, seed=9), [], []
    for codec in map(load_codec, (before, after)):
        stored = encode_measured(codec, pictures, 40)
        payloads.append([one.encoded.payload for one in stored])
        errors.append(
            np.mean([np.square(one.pixels - a.astype(float)).mean() for one, a in zip(stored, pictures, strict=True)])
        )
    assert payloads[0] == payloads[1] and errors[1] < errors[0]


@pytest.mark.parametrize(("kind", "method"), [("int8", "rounded"), ("fp16", "calibrated")])
def test_a_shortcut_is_not_refitted_without_calibration_or_rounding(kind: str, method: str) -> None:
    state = parse(refreeze(tiny_artifact("shortcuts"), PICTURES, kind, method)).state()
    before = parse(tiny_artifact("shortcuts")).state()["synthesis.shortcut.weight"].astype(np.float32)
    assert np.abs(state["synthesis.shortcut.weight"] - before).max() <= np.abs(before).max() / 100


def test_a_network_without_a_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match="no shortcut"):
        refit_shortcut(Hyperprior(**TINY_HYPERPRIOR), NCHW)


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


def test_a_fit_that_others_do_not_gain_by_is_dropped() -> None:
    torch.manual_seed(0)
    network = Hyperprior(**TINY_HYPERPRIOR, shortcut=True).eval()
    for count in (1, 3):  # none is left to test it
        assert not refit_shortcut(network, NCHW[:count])
    while refit_shortcut(network, NCHW.repeat(4, 1, 1, 1)):
        before = network.synthesis.shortcut.weight.clone()
    noise = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert not refit_shortcut(network, torch.cat((noise, NCHW[:1])))
    assert torch.equal(network.synthesis.shortcut.weight, before)
    burst = noise.repeat_interleave(4, dim=0)
    assert not refit_shortcut(network, torch.cat((burst, NCHW[:4])))  # of which every fourth is like the one before it
    assert refit_shortcut(network, torch.cat((noise, noise[:1])))
