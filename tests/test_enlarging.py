"""A network that grows goes on from where it was."""

import numpy as np
import pytest
import torch

from benchmarks.enlarging import RateAlone, deepen, grow
from compressor.networks.hyperprior import Hyperprior
from compressor.training import TrainingConfig, fit
from tests.codecs import TINY_HYPERPRIOR, smooth_pictures

LARGER = {
    **TINY_HYPERPRIOR,
    "deep_blocks": 2,
    "blocks": 3,
    "analysis_deep_blocks": 2,
    "analysis_blocks": 4,
    "latents": 20,
    "hyper_features": 8,
    "scale_features": 12,
    "step_blocks": 2,
    "prior_features": 8,
    "shortcut": True,
}


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.from_numpy(np.stack(smooth_pictures(48)).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def trained(pictures) -> Hyperprior:
    torch.manual_seed(0)
    config = TrainingConfig(steps=60, batch=8, warmup=5, ema=0.9, validate_every=60)
    network, _ = fit(Hyperprior(**TINY_HYPERPRIOR), pictures, pictures[:8], config)
    return network


def mean_error(network: Hyperprior, pictures: torch.Tensor, quality: float, without_new: bool = False) -> float:
    """Mean squared error of what a reader sees, with whatever the network stores, or without what is new."""
    x_BCHW = pictures.float() / 255
    quality_B = torch.full((len(pictures),), quality)
    with torch.no_grad():
        _, r, _, y = network.quantize(network.first_features(x_BCHW, False), quality_B, False)
        if without_new:
            new_M = (network.analysis.shortcut.weight != 0).any(dim=1)[:, 0, 0]
            y = torch.where(new_M[:, None, None], y - r / network.gain(quality_B).exp(), y)
        seen = network.reconstruct(y, quality_B, False)
    return (seen.float() - pictures.float()).square().mean().item()


@pytest.mark.parametrize("quality", [8.0, 44.0, 63.0])
def test_a_larger_network_sees_what_the_smaller_one_saw_and_new_latents_tell_more(trained, pictures, quality):
    torch.manual_seed(1)
    larger = grow(trained, LARGER, pictures)
    before = mean_error(trained, pictures, quality)
    # All but what latents that were never coded had carried by their means alone.
    assert mean_error(larger, pictures, quality, without_new=True) == pytest.approx(before, rel=0.02)
    if quality > 40:
        assert mean_error(larger, pictures, quality) < 0.8 * before


@pytest.mark.parametrize("quality", [8.0, 44.0])
def test_what_has_grown_can_grow_again(trained, pictures, quality):
    larger = grow(trained, LARGER, pictures)
    largest = grow(
        larger, {**LARGER, "latents": 48, "step_blocks": 3, "blocks": 4, "hyper": 6, "prior_features": 12}, pictures
    )
    before, after = (mean_error(network, pictures, quality) for network in (larger, largest))
    assert after <= 1.02 * before


def test_training_the_rate_leaves_pictures_as_they_are_and_makes_them_cheaper(trained, pictures):
    larger = grow(trained, LARGER, pictures)
    x_BCHW = pictures[:16].float() / 255
    quality_B = torch.full((16,), 40.0)
    weights = [weight.clone() for part in (larger.analysis, larger.synthesis) for weight in part.parameters()]
    with torch.no_grad():
        _, bits_before = larger.coded(x_BCHW, quality_B)
    config = TrainingConfig(steps=80, batch=8, warmup=5, ema=0.9, validate_every=80, learning_rate=4e-3)
    network, _ = fit(RateAlone(larger), pictures, pictures[:8], config)
    with torch.no_grad():
        _, bits_after = network.network.coded(x_BCHW, quality_B)
    after = [weight for part in (network.network.analysis, network.network.synthesis) for weight in part.parameters()]
    assert all(map(torch.equal, after, weights))
    assert bits_after.mean() < 0.95 * bits_before.mean()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"shortcut": False}, "shortcut"), ({"trunk": 4}, "would shrink"), ({"latents": 4}, "too few")],
)
def test_what_cannot_grow_is_refused(trained, pictures, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        grow(trained, {**LARGER, **change}, pictures)


def test_a_deeper_network_begins_as_the_one_it_goes_on_from(trained, pictures):
    deeper = Hyperprior(**{**TINY_HYPERPRIOR, "deep_blocks": 3, "blocks": 3, "analysis_blocks": 5})
    deeper = deeper.eval().to(memory_format=torch.channels_last)
    deepen(deeper, trained.state_dict())
    x_BCHW, quality_B = pictures[:8].float() / 255, torch.full((8,), 40.0)
    with torch.no_grad():
        for here, there in zip(deeper.coded(x_BCHW, quality_B), trained.coded(x_BCHW, quality_B), strict=True):
            assert torch.equal(here, there)
        y_hat, _ = trained.coded(x_BCHW, quality_B)
        assert torch.equal(deeper.synthesis(y_hat, quality_B), trained.synthesis(y_hat, quality_B))
    fit(deeper, pictures, pictures[:8], TrainingConfig(steps=1, batch=8, validate_every=1))
    assert deeper.synthesis.blocks[-1].leave.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"latents": 20}, {"shortcut": True}, {"blocks": 0}])
def test_weights_of_a_network_that_differs_otherwise_are_refused(trained, options):
    with pytest.raises(ValueError, match="mismatch|do not fit"):
        deepen(Hyperprior(**{**TINY_HYPERPRIOR, **options}), trained.state_dict())
