"""The promise: never below the target, hardly above it, few tries; a fallback where the codec cannot reach it."""

from collections.abc import Sequence

import numpy as np
import pytest

from compressor.baselines import STANDARD
from compressor.codec import Encoded, per_picture
from compressor.metrics import psnr
from compressor.quality import TOLERANCE, encode_fallback, encode_measured, encode_to_target, grey_planes
from tests.codecs import smooth_pictures, tiny_codec


class Noise:
    """Adds noise of deviation 2**((63 - quality) / 10) / 2: a codec whose PSNR at every quality is known."""

    id = description = "noise"
    qualities = range(64)
    packers = ()

    def encode(self, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto") -> list[Encoded]:
        encoded = []
        for picture, q in zip(pixels, per_picture(quality, len(pixels)), strict=True):
            noise = np.random.default_rng(0).normal(0, 0.5 * 2 ** ((63 - q) / 10), picture.shape)
            noisy = np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)
            encoded.append(Encoded(noisy.tobytes(), picture.shape[1], picture.shape[0], 3, self.id, q, ""))
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        return [np.frombuffer(one.payload, np.uint8).reshape(one.height, one.width, 3) for one in encoded]


class Predicting(Noise):
    """The same, predicting its PSNR with an error in dB."""

    def __init__(self, error: float) -> None:
        self.error = error

    def psnr_curves(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        curve = [20 * np.log10(255 / 0.5) - 6.02 * (63 - q) / 10 for q in self.qualities]
        return np.tile(np.array(curve) + self.error, (len(pixels), 1))


@pytest.mark.parametrize("target", [36.0, 40.0, 44.0])
@pytest.mark.parametrize("codec", [Noise(), Predicting(0.0), Predicting(3.0), Predicting(-8.0)])
def test_the_target_is_met_by_the_lowest_step_but_one(codec: Noise, target: float) -> None:
    pictures = smooth_pictures(5, 40, 40)
    for picture, stored in zip(pictures, encode_to_target(codec, pictures, target), strict=True):
        assert stored is not None
        assert stored.psnr == psnr(picture, stored.pixels) >= target
        (below,) = encode_measured(codec, [picture], stored.encoded.quality - 1)
        assert below.psnr < target or stored.psnr <= target + TOLERANCE


def test_a_good_prediction_takes_two_tries_at_most() -> None:
    tries: list[int] = []
    encode_to_target(Predicting(0.2), smooth_pictures(20, 40, 40), 34.0, on_tries=tries.append)
    assert sum(tries) <= 2 * 20


def test_a_target_out_of_reach_gives_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert encode_to_target(tiny_codec("v5"), [noise], 60.0) == [None]
    assert encode_to_target(tiny_codec("v1"), [noise], 60.0) == [None]


@pytest.mark.parametrize("floor", [33.0, 70.0])
def test_the_fallback_holds_the_floor_whatever_the_picture(floor: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    stored = encode_fallback(noise, floor, [STANDARD["avif"], STANDARD["jpegxl"]], STANDARD["lossless"])
    assert stored is not None
    assert stored.psnr >= floor
    assert psnr(noise, STANDARD[stored.encoded.codec].decode([stored.encoded])[0]) == stored.psnr


def test_grey_is_the_rounded_mean_of_three_planes() -> None:
    pixels = np.array([[[0, 0, 1], [0, 1, 1], [255, 255, 255]]], np.uint8)
    assert grey_planes(pixels)[0].tolist() == [[0, 0, 0], [1, 1, 1], [255, 255, 255]]
