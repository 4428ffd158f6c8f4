"""Refinement: fewer bytes for the same promise, read by the same reader; and never more than without it."""

import math

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from compressor import hyperprior_codec
from compressor.baselines import STANDARD
from compressor.codec import load_codec, with_effort
from compressor.defaults import CODEC as DEFAULT
from compressor.errors import CodecError
from compressor.metrics import psnr
from compressor.networks.qualities import quality_to_lambda
from compressor.quality import encode_measured, encode_to_target
from compressor.refining import softly_rounded
from tests.codecs import smooth_pictures, tiny_codec

PORTRAIT = np.ascontiguousarray(astronaut()[:256, 100:356])


def tiles(height: int, width: int) -> list[np.ndarray]:
    return [PORTRAIT[y : y + height, x : x + width] for y in (0, 60, 100) for x in (0, 100)]


# Refinement lowers the rate of the codec's own coder; what LZMA makes of the same latents falls less.
@pytest.mark.parametrize(
    ("height", "width", "packer", "share"),
    [(128, 128, "auto", 0.98), (128, 128, "lzma", 0.985), (70, 101, "auto", 0.98)],
)
def test_a_target_takes_fewer_bytes_and_is_met(height: int, width: int, packer: str, share: float) -> None:
    codec, pictures, target = load_codec(DEFAULT), tiles(height, width), 31.0
    plain = encode_to_target(codec, pictures, target, packer)
    refined = encode_to_target(with_effort(codec, 2), pictures, target, packer)
    sizes = []
    for picture, before, after in zip(pictures, plain, refined, strict=True):
        assert before is not None and after is not None
        assert after.psnr == psnr(picture, after.pixels) >= target
        assert psnr(picture, codec.decode([after.encoded])[0]) >= target, "read alone, by a codec that was not told"
        sizes.append((len(before.encoded.payload), len(after.encoded.payload)))
    assert all(after <= before for before, after in sizes)
    before, after = np.sum(sizes, axis=0)
    assert after < share * before


@pytest.mark.parametrize(("quality", "share"), [(8, 0.995), (28, 0.985), (52, 0.97)])
def test_a_fixed_quality_costs_less_in_rate_and_distortion(quality: int, share: float) -> None:
    codec, pictures = load_codec(DEFAULT), tiles(96, 128)
    pictures += [np.full((96, 128, 3), 128, np.uint8)]  # of which nothing better is to be found
    trade_off = float(quality_to_lambda(torch.tensor(float(quality))))

    def costs(effort: int) -> np.ndarray:
        stored = encode_measured(with_effort(codec, effort), pictures, quality)
        assert {one.encoded.quality for one in stored} == {quality}
        errors = np.array([255**2 / 10 ** (one.psnr / 10) for one in stored])
        return trade_off * errors + np.array([8 * len(one.encoded.payload) for one in stored]) / (96 * 128)

    plain = costs(0)
    for effort in (1, 12):
        refined = costs(effort)
        assert refined.sum() < share * plain.sum()
        assert (refined <= plain + 32 / (96 * 128)).all(), "a word of the coder more than estimated, at most"


def test_what_is_exact_already_is_no_trouble_to_refine() -> None:
    pictures = [np.full((1, 1, 3), 90, np.uint8), np.full((3, 70, 3), 128, np.uint8), tiles(64, 64)[0]]
    with np.errstate(all="raise"):
        stored = encode_to_target(with_effort(load_codec(DEFAULT), 1), pictures, 60.0)
    plain = encode_to_target(load_codec(DEFAULT), pictures, 60.0)
    assert [one and len(one.encoded.payload) for one in stored] == [one and len(one.encoded.payload) for one in plain]


def test_what_is_out_of_reach_stays_so_and_costs_no_picture_its_place() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = np.repeat(PORTRAIT[:64, :64, :1], 3, axis=2)
    stored = encode_to_target(with_effort(load_codec(DEFAULT), 2), [noise, grey, noise[:1, :1], grey[:9]], 28.0)
    assert stored[0] is None
    assert all(one is not None and one.psnr >= 28 for one in (stored[1], stored[3]))


def test_what_is_just_out_of_reach_is_reached_by_refining() -> None:
    codec, picture = load_codec(DEFAULT), tiles(64, 64)[1]
    target = max(one.psnr for one in encode_measured(codec, [picture] * 8, range(56, 64))) + 0.05
    assert encode_to_target(codec, [picture], target) == [None]
    (refined,) = encode_to_target(with_effort(codec, 3), [picture], target)
    assert refined is not None and psnr(picture, codec.decode([refined.encoded])[0]) >= target


@pytest.mark.parametrize("expected", [0.01, 1.0])
def test_a_gain_that_is_not_as_expected_costs_tries_and_no_bytes(
    expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, pictures = with_effort(load_codec(DEFAULT), 1), tiles(64, 64)
    as_is = encode_to_target(codec, pictures, 31.0)
    monkeypatch.setattr(hyperprior_codec, "expected_gain", lambda _, quality: np.full(quality.shape, expected))
    stored = encode_to_target(codec, pictures, 31.0)
    sizes = [sum(len(one.encoded.payload) for one in each if one) for each in (as_is, stored)]
    assert all(one is not None and one.psnr >= 31 for one in stored)
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]


def test_a_picture_too_large_to_refine_is_stored_as_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, pictures = load_codec(DEFAULT), tiles(64, 64)
    monkeypatch.setattr(hyperprior_codec, "REFINED_PIXELS", 64 * 64 - 1)
    for way in (lambda codec: codec.encode(pictures, 30), lambda codec: encode_to_target(codec, pictures, 30.0)):
        plain, refined = way(codec), way(with_effort(codec, 3))
        assert [getattr(one, "encoded", one) for one in plain] == [getattr(one, "encoded", one) for one in refined]


@pytest.mark.parametrize("family", ["v5", "v6", "shortcuts", "context"])
def test_an_untrained_codec_is_refined_too(family: str) -> None:
    pictures = smooth_pictures(3, 40, 40)
    plain, refined = (with_effort(tiny_codec(family), effort) for effort in (0, 2))
    stored = refined.encode(pictures, [0, 30, 63])
    assert stored != plain.encode(pictures, [0, 30, 63])
    assert all(read.shape == picture.shape for read, picture in zip(plain.decode(stored), pictures, strict=True))


@pytest.mark.parametrize("codec", [STANDARD["avif"], tiny_codec("v3")])
def test_who_knows_no_effort_says_so(codec: object) -> None:
    assert with_effort(codec, 0) is codec  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="knows no effort but 0: ask for no other, or take"):
        with_effort(codec, 1)  # type: ignore[arg-type]


def test_soft_rounding_hardens_and_always_has_a_gradient() -> None:
    value = torch.tensor([-1.7, -0.4, 0.1, 0.3, 2.6], requires_grad=True)
    assert torch.allclose(softly_rounded(value, 0.02).detach(), value.detach().round(), atol=1e-3)
    softly_rounded(value, 1.0).sum().backward()
    assert value.grad is not None and bool((value.grad > 0).all()) and math.isfinite(float(value.grad.sum()))


@pytest.mark.parametrize("effort", [-1, 101, 1.5, None])
def test_what_is_no_effort_is_refused_by_the_codec_too(effort: object) -> None:
    with pytest.raises(CodecError, match=f"effort is a whole number from 0 to 100, not {effort}"):
        tiny_codec("v5").with_effort(effort)  # type: ignore[attr-defined]
