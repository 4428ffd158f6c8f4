"""Smaller weights: files hold what was calibrated, integers stay exact, fewer bits cost more, damage is told."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from compressor.artifact import dump, parse
from compressor.codec import load_codec
from compressor.errors import CodecError
from compressor.families import FAMILIES, freeze, refreeze
from compressor.metrics import psnr
from compressor.networks.autoencoders import Autoencoder
from compressor.networks.hyperprior import Hyperprior
from compressor.tensors import load_state
from compressor.training import TrainingConfig, fit
from compressor.weight_quantization import quantize_weights
from tests.codecs import TINY_HYPERPRIOR, smooth_pictures, tiny_artifact

PICTURES = np.stack(smooth_pictures(16, seed=3))


@pytest.fixture(scope="module")
def learned() -> Autoencoder:
    """An autoencoder that has learned something: of random weights every rounding is as good."""
    torch.manual_seed(0)
    network = Autoencoder((16, 24, 8), (2, 2, 1), {0: 1})
    config = TrainingConfig(steps=150, batch=8, warmup=5, learning_rate=1e-2, optimizer="muon", validate_every=50)
    pictures = np.moveaxis(np.stack(smooth_pictures(48)), -1, 1)
    return fit(network, pictures[:40], pictures[40:], config)[0]


def error(network: nn.Module, quantized: nn.Module) -> float:
    """Mean squared difference of what two networks make of pictures that neither was calibrated on."""
    x = torch.from_numpy(np.stack(smooth_pictures(8, seed=9))).movedim(-1, 1) / 255
    with torch.no_grad():
        return float((network.decode(network.encode(x)) - quantized.decode(quantized.encode(x))).square().mean())


def rounded(network: Autoencoder, kind: str, method: str) -> Autoencoder:
    other = Autoencoder((16, 24, 8), (2, 2, 1), {0: 1})
    other.load_state_dict(network.state_dict())
    quantize_weights(other, PICTURES, kind, method)
    return other


def test_fewer_bits_cost_more_and_calibration_gets_some_back(learned: Autoencoder) -> None:
    eight, four, plain = (
        error(learned, rounded(learned, kind, method))
        for kind, method in (("int8", "calibrated"), ("int4", "calibrated"), ("int4", "rounded"))
    )
    assert error(learned, rounded(learned, "fp16", "rounded")) < eight < four
    assert four < 0.7 * plain, "calibration should be worth more than that"


@pytest.mark.parametrize("kind", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", ["v2", "v5", "v6"])
def test_a_frozen_codec_computes_with_the_weights_it_was_calibrated_with(family: str, kind: str) -> None:
    data = refreeze(tiny_artifact(family), PICTURES, kind)
    artifact = parse(data)
    network = load_state(FAMILIES[family].build(**artifact.metadata["network"]), parse(tiny_artifact(family)))
    quantize_weights(network, PICTURES, kind)
    state = artifact.state()
    assert set(state) == set(network.state_dict())
    for name, value in network.state_dict().items():
        assert np.array_equal(state[name].astype(np.float32), value.numpy()), name
    codec = load_codec(data)
    encoded = codec.encode(smooth_pictures(2), codec.qualities[30] if len(codec.qualities) else -1)
    assert all(one.codec == codec.id for one in encoded)
    assert len(codec.decode(encoded)) == 2


def test_files_shrink_with_the_bits() -> None:
    sizes = [len(refreeze(tiny_artifact("v2"), PICTURES, kind, "rounded")) for kind in ("fp16", "int8", "int4")]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]


def test_the_network_that_picks_tables_keeps_every_integer() -> None:
    torch.manual_seed(0)
    network = Hyperprior(**TINY_HYPERPRIOR).eval()
    before = [module.integer_weight().clone() for module in network.scales.modules() if hasattr(module, "kernel")]
    for kind in ("int8", "int4"):
        quantize_weights(network, PICTURES, kind)
        after = [module.integer_weight() for module in network.scales.modules() if hasattr(module, "kernel")]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_quantised_and_compressed_artifacts_have_a_format_that_older_readers_refuse() -> None:
    def numbers(data: bytes) -> tuple[int, int]:
        """Of the file, and of what is compressed in it."""
        length = int.from_bytes(data[:8], "little")
        outer = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["latentpack"])["format"]
        return outer, parse(data).metadata["format"]

    assert numbers(tiny_artifact("v2")) == (4, 1)
    assert numbers(refreeze(tiny_artifact("v2"), PICTURES, "fp16", "rounded")) == (4, 1)
    assert numbers(refreeze(tiny_artifact("v2"), PICTURES, "int8", "rounded")) == (4, 2)


def test_scales_that_do_not_fit_are_a_damaged_codec() -> None:
    artifact = parse(refreeze(tiny_artifact("v2"), PICTURES, "int4", "rounded"))
    for name in ("scale.down.1.weight", "packed.down.1.weight"):
        damaged = {**artifact.tensors, name: artifact.tensors[name][:-1]}
        with pytest.raises(CodecError, match="damaged"):
            load_codec(dump(artifact.metadata, damaged))


def test_unknown_kinds_are_refused_by_name() -> None:
    with pytest.raises(CodecError, match="int4"):
        freeze("v2", FAMILIES["v2"].build(), PICTURES, weights="int3")


def test_int8_weights_keep_the_quality(learned: Autoencoder) -> None:
    pictures = smooth_pictures(8, seed=9)
    options = {"widths": [16, 24, 8], "strides": [2, 2, 1], "skips": {"0": 1}}
    levels = []
    for weights in (None, "int8"):
        codec = load_codec(freeze("autoencoder", learned, PICTURES, options, weights=weights))
        decoded = codec.decode(codec.encode(pictures, -1))
        levels.append(np.mean([psnr(a, b) for a, b in zip(pictures, decoded, strict=True)]))
    assert levels[0] - levels[1] < 0.1


def test_pictures_that_are_all_alike_are_enough_to_store_weights() -> None:
    """White pages: of what a layer sees most directions are rounding errors."""
    torch.manual_seed(0)
    freeze("v3", FAMILIES["v3"].build(), np.full((20, 128, 128, 3), 255, np.uint8), weights="int8")
