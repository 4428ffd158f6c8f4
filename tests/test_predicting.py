"""What PSNR a picture will have is told before it is encoded, well enough to start a search."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from compressor import predicting
from compressor.artifact import dump, parse
from compressor.codec import Codec, artifact_bytes, load_codec
from compressor.defaults import CODEC
from compressor.errors import CodecError
from compressor.quality import Searchable, encode_measured, encode_to_target
from compressor.samples import tiles
from tests.codecs import smooth_pictures, tiny_artifact


def with_tensors(data: bytes, changed: dict[str, np.ndarray]) -> bytes:
    """An artifact with other arrays for its predictor."""
    artifact = parse(data)
    others = {name: value for name, value in artifact.tensors.items() if not name.startswith("predictor.")}
    return dump({key: value for key, value in artifact.metadata.items() if key != "format"}, others | changed)


def errors(codec: Codec, pictures: Sequence[np.ndarray], quality: int) -> np.ndarray:
    """dB by which each picture's PSNR at a quality step is other than what was told."""
    assert isinstance(codec, Searchable)
    trials = codec.trials(pictures, "auto")
    at = quality * (trials.qualities.stop - 1) // (codec.qualities.stop - 1)
    measured = [one.psnr for one in encode_measured(codec, pictures, quality)]
    return trials.curves[:, at] - measured


@pytest.mark.parametrize("quality", [12, 28, 44])
def test_the_shipped_codec_tells_pictures_of_other_kinds_apart(quality: int) -> None:
    pictures = tiles(astronaut())
    told = errors(load_codec(CODEC), pictures, quality)
    unaware = errors(load_codec(with_tensors(artifact_bytes(CODEC), {})), pictures, quality)
    assert told.var() < 0.1 * unaware.var()


def test_a_predictor_learns_what_decides_on_the_error() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(96, 4 + predicting.DETAILS, 4, 4)).astype(np.float16)
    features[:, 2] *= 300  # whatever their scale
    log_mse = (features[:, 1:2] + features[:, 2:3] / 300 + np.arange(8)[:, None, None] / 4).astype(np.float32)
    predictor = predicting.fitted(np.tile(features, (8, 1, 1, 1)), np.tile(log_mse, (8, 1, 1, 1)))
    wanted = predicting.psnr_of(torch.from_numpy(log_mse)).numpy()
    with torch.inference_mode():
        told = predicting.psnr_of(predictor(torch.from_numpy(features).float())).numpy()
    assert np.square(told - wanted).mean() < 0.1 * np.square(wanted - wanted.mean(axis=0)).mean()


def test_equal_pictures_make_equal_predictors() -> None:
    features = np.random.default_rng(0).normal(size=(2, 1 + predicting.DETAILS, 4, 4)).astype(np.float16)
    made = [predicting.arrays(predicting.fitted(features, np.ones((2, 8, 4, 4), np.float32))) for _ in range(2)]
    assert all(np.array_equal(value, made[1][name]) for name, value in made[0].items())


def test_the_error_of_cells_is_that_of_the_picture() -> None:
    pictures = np.stack(smooth_pictures(3))
    decoded = np.clip(pictures.astype(int) + np.random.default_rng(0).integers(-9, 10, pictures.shape), 0, 255)
    told = predicting.psnr_of(torch.from_numpy(predicting.log_mse(pictures, decoded.astype(np.uint8))[:, None]))
    measured = 10 * np.log10(255**2 / np.square(decoded - pictures).mean(axis=(1, 2, 3)))
    assert np.allclose(told.numpy()[:, 0], measured, atol=0.02)


@pytest.mark.parametrize("family", ["v5", "v6"])
def test_a_codec_without_a_predictor_reaches_its_target_all_the_same(family: str) -> None:
    codec, pictures = load_codec(with_tensors(tiny_artifact(family), {})), smooth_pictures(3)
    goals = [one.psnr for one in encode_measured(codec, pictures, 30)]
    for picture, goal in zip(pictures, goals, strict=True):
        (stored,) = encode_to_target(codec, [picture], goal - 0.5)
        assert stored is not None and stored.psnr >= goal - 0.5


def test_a_damaged_predictor_is_refused() -> None:
    data = tiny_artifact("v5")
    arrays = {name: value for name, value in parse(data).tensors.items() if name.startswith("predictor.")}
    cut = {name: value[:-1] if name.endswith("leave.bias") else value for name, value in arrays.items()}
    with pytest.raises(CodecError, match="does not fit"):
        load_codec(with_tensors(data, cut))
    with pytest.raises(CodecError, match="not finite"):
        load_codec(with_tensors(data, {name: np.full_like(value, np.nan) for name, value in arrays.items()}))


def test_what_is_learned_from_takes_the_same_room_of_larger_pictures() -> None:
    values = np.arange(40 * 12).reshape(1, 40, 12)
    assert predicting.some_cells(values).shape == (1, 16, 12)
    assert predicting.some_cells(values)[0, 0, 0] == 12 * 12
    assert np.array_equal(predicting.some_cells(values[:, :16]), values[:, :16])
