"""The promise: never below the target, hardly above it, few tries; a fallback where the codec cannot reach it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from skimage.data import astronaut

from compressor.artifact import QUALITY_PARTS, dump, parse
from compressor.baselines import STANDARD, StandardCodec
from compressor.codec import Encoded, artifact_bytes, load_codec, per_picture
from compressor.defaults import CODEC as DEFAULT
from compressor.errors import CodecError
from compressor.fallback import fall_back
from compressor.images import Picture
from compressor.metrics import psnr
from compressor.quality import TOLERANCE, Drafted, Searchable, encode_measured, encode_to_target
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

    def __init__(self, error: float, slack: float = 0.0, damaged: int = 0) -> None:
        self.error, self.slack, self.damaged = error, slack, damaged

    def trials(self, pixels: Sequence[np.ndarray], packer: str) -> "NoiseTrials":
        return NoiseTrials(self, pixels)


class NoiseTrials:
    def __init__(self, codec: Predicting, pixels: Sequence[np.ndarray]) -> None:
        self.codec, self.pixels = codec, pixels
        self.qualities = codec.qualities
        self.first_at_most = codec.qualities[-1]
        curve = [20 * np.log10(255 / 0.5) - 6.02 * (63 - q) / 10 for q in codec.qualities]
        self.curves = np.tile(np.array(curve) + codec.error, (len(pixels), 1))
        self.gains = np.zeros_like(self.curves)

    def slack(self, target: float) -> np.ndarray:
        return np.full(len(self.pixels), self.codec.slack)

    def attempt(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[Encoded, np.ndarray]]:
        encoded = self.codec.encode([self.pixels[index] for index in indices], qualities)
        return list(zip(encoded, self.codec.decode(encoded), strict=True))

    def finish(self, indices: Sequence[int], attempts: Sequence[Encoded]) -> list[Encoded | None]:
        return [None if index < self.codec.damaged else one for index, one in zip(indices, attempts, strict=True)]


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


def test_what_reading_may_round_off_is_aimed_above() -> None:
    for stored in encode_to_target(Predicting(0.2, slack=0.5), smooth_pictures(20, 40, 40), 34.0):
        assert stored is not None and 34.5 <= stored.psnr <= 34.5 + TOLERANCE + 0.602


def test_what_does_not_read_back_as_it_was_tried_is_not_kept() -> None:
    stored = encode_to_target(Predicting(0.2, damaged=2), smooth_pictures(5, 40, 40), 34.0)
    assert [one is None for one in stored] == [True, True, False, False, False]


def test_the_shipped_codec_finds_bytes_that_read_back_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load_codec(DEFAULT)
    pack = codec._packed

    def damaged(symbols: Any) -> Any:
        r = symbols.r.copy()
        r.flat[np.flatnonzero(r)[0]] += 1
        return replace(symbols, r=r)

    def damaging(batch: Sequence[Any], *arguments: Any) -> list[Encoded]:
        return pack([damaged(symbols) for symbols in batch], *arguments)

    monkeypatch.setattr(codec, "_packed", damaging)
    assert encode_to_target(codec, smooth_pictures(2, 64, 64), 26.0) == [None, None]


@pytest.mark.parametrize("target", [30.0, 36.0])
def test_a_draft_saves_tries_and_changes_nothing_else(target: float) -> None:
    pictures = smooth_pictures(4, 64, 64)
    with_draft, without = StandardCodec("avif", 6), StandardCodec("avif", 6)
    assert isinstance(with_draft, Drafted) and with_draft.draft is not None
    without.draft = None
    counts: dict[bool, list[int]] = {True: [], False: []}
    for drafted, codec in ((True, with_draft), (False, without)):
        for stored in encode_to_target(codec, pictures, target, on_tries=counts[drafted].append):
            assert stored is not None and target <= stored.psnr <= target + 1
            assert stored.encoded.codec == "avif"
    assert sum(counts[True]) < sum(counts[False])


def test_an_unknown_packer_is_refused_before_the_search() -> None:
    with pytest.raises(CodecError, match="has no packer 'none'"):
        encode_to_target(tiny_codec("v5"), smooth_pictures(1), 99.0, "none")


def tiles() -> list[np.ndarray]:
    """A photograph in 16 pieces of 128x128."""
    places = [(y, x) for y in range(0, 512, 128) for x in range(0, 512, 128)]
    return [np.ascontiguousarray(astronaut()[y : y + 128, x : x + 128]) for y, x in places]


def test_a_search_by_parts_of_steps_reaches_what_one_by_steps_reaches_in_fewer_bytes() -> None:
    artifact = parse(artifact_bytes(DEFAULT))
    metadata = {key: value for key, value in artifact.metadata.items() if key != "format"}
    tensors = {name: array for name, array in artifact.tensors.items() if name != QUALITY_PARTS}
    # Above some step the codec does worse on some of these, so that not every miss is to be answered by going up.
    pictures, rounds = smooth_pictures(60, 64, 64), []
    by_parts = encode_to_target(load_codec(DEFAULT), pictures, 34.0, on_tries=rounds.append)
    whole_steps = load_codec(dump(metadata, tensors))
    by_steps = encode_to_target(whole_steps, pictures, 34.0)
    both = [one is not None for one, other in zip(by_parts, by_steps, strict=True) if other is not None]
    assert len(both) > 50 and all(both)
    assert len(rounds) <= 8
    sizes = [
        [len(one.encoded.payload) if one else 0 for one in encode_to_target(codec, tiles(), 34.0)]
        for codec in (load_codec(DEFAULT), whole_steps)
    ]
    assert sum(sizes[0]) < sum(sizes[1])


@pytest.mark.parametrize("packer", ["auto", "lzma"])
def test_a_try_of_the_shipped_codec_is_what_its_reader_reads(packer: str) -> None:
    codec = load_codec(DEFAULT)
    pictures = [*smooth_pictures(3, 64, 64), *smooth_pictures(2, 40, 70)]
    for picture, stored in zip(pictures, encode_to_target(codec, pictures, 26.0, packer), strict=True):
        assert stored is not None
        assert stored.encoded.packer == ("entropy" if packer == "auto" else packer)
        # In a batch of another size a network's last rounding may fall the other way.
        assert np.abs(stored.pixels.astype(int) - codec.decode([stored.encoded])[0]).max() <= 1
        assert stored.psnr == psnr(picture, stored.pixels) >= 26.0


def test_a_try_has_the_very_pixels_that_reading_the_same_batch_gives() -> None:
    codec = load_codec(DEFAULT)
    assert isinstance(codec, Searchable)
    pictures, qualities = smooth_pictures(5, 64, 64), [5, 20, 35, 50, 63]
    trials = codec.trials(pictures, "auto")
    attempts = trials.attempt(range(5), qualities)
    encoded = [one for one in trials.finish(range(5), [attempt for attempt, _ in attempts]) if one is not None]
    for (_, tried), read in zip(attempts, codec.decode(encoded), strict=True):
        assert np.array_equal(tried, read)


def test_a_target_out_of_reach_gives_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert encode_to_target(tiny_codec("v5"), [noise], 60.0) == [None]
    assert encode_to_target(tiny_codec("v1"), [noise], 60.0) == [None]


@pytest.mark.parametrize("floor", [33.0, 70.0])
def test_the_fallback_holds_the_floor_whatever_the_picture(floor: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    stored = fall_back(Picture(noise, 3, "PNG", None), floor)
    assert stored is not None
    assert stored.psnr >= floor
    assert psnr(noise, STANDARD[stored.encoded.codec].decode([stored.encoded])[0]) == stored.psnr


def test_what_a_reader_of_other_arithmetic_loses_is_aimed_above() -> None:
    places = [(y, x) for y in range(0, 512, 64) for x in range(0, 512, 64)]
    pieces = [np.ascontiguousarray(astronaut()[y : y + 32, x : x + 32]) for y, x in places]
    writer, reader = copy.copy(load_codec(DEFAULT)), copy.copy(load_codec(DEFAULT))
    writer._low_precision, reader._low_precision = False, True
    for piece, stored in zip(pieces, encode_to_target(writer, pieces, 34.0), strict=True):
        if stored is not None:
            read = psnr(piece, reader.decode([stored.encoded])[0])
            assert read >= 34 and stored.psnr - read <= writer.trials([piece], "auto").slack(stored.psnr)[0]


def test_the_shipped_codec_lands_just_above_the_target_in_few_bytes() -> None:
    """Bounds a little above what was measured with and without bfloat16; a new release has bounds of its own."""
    codec = load_codec(DEFAULT)
    goal = 34 + codec.trials(tiles()[:1], "auto").slack(34.0)[0]
    stored = [one for one in encode_to_target(codec, tiles(), 34.0) if one is not None]
    assert len(stored) >= 12 and np.mean([one.psnr for one in stored]) < goal + 0.17
    assert np.mean(sorted(len(one.encoded.payload) for one in stored)[:12]) < 555


@pytest.mark.parametrize("side", [8, 16, 40])
def test_a_small_picture_read_alone_is_at_the_target_too(side: int) -> None:
    """In fewer pixels what another batch rounds otherwise counts for more."""
    codec = load_codec(DEFAULT)
    pictures = [tile[:side, :side] for tile in smooth_pictures(60, 48, 48)]
    for picture, stored in zip(pictures, encode_to_target(codec, pictures, 34.0), strict=True):
        if stored is not None:
            [alone] = codec.decode([stored.encoded])
            assert psnr(picture, alone) >= 34
            assert abs(psnr(picture, alone) - stored.psnr) <= 0.015 * 128 / side, "with AMX 0.0111 were seen"
