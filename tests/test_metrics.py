"""Metrics agree with scikit-image and with what their definitions say; BD-rate with a known shift."""

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from compressor.metrics import RateCurve, bd_rate, luma, ms_ssim, psnr, ssim, ssimulacra2

RATES = np.array([300.0, 500, 900, 1500, 2500])
DECIBELS = np.array([28.0, 31, 34, 37, 40])


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[40:232, 130:306])


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize("quality", [5, 40, 90])
def test_psnr_and_ssim_agree_with_scikit_image(photograph: np.ndarray, quality: int) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # a second, with all of SciPy

    decoded = as_jpeg(photograph, quality)
    expected = structural_similarity(
        photograph,
        decoded,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert psnr(photograph, decoded) == pytest.approx(peak_signal_noise_ratio(photograph, decoded), abs=1e-9)
    assert ssim(photograph, decoded) == pytest.approx(expected, abs=1e-3)


def test_luma_is_what_jpeg_calls_so(photograph: np.ndarray) -> None:
    wanted = np.asarray(Image.fromarray(photograph).convert("YCbCr"))[..., 0]
    assert luma(photograph).dtype == np.uint8 and np.abs(luma(photograph) - wanted.astype(int)).max() <= 1
    assert luma(wanted) is wanted


def test_an_equal_picture_is_perfect(photograph: np.ndarray) -> None:
    assert psnr(photograph, photograph) == float("inf")
    assert ssim(photograph, photograph) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(photograph, photograph) == pytest.approx(1, abs=1e-6)
    assert ssimulacra2(photograph, photograph) == pytest.approx(100)


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim, ssimulacra2])
def test_more_quality_measures_higher(photograph: np.ndarray, metric) -> None:
    values = [metric(photograph, as_jpeg(photograph, quality)) for quality in (5, 20, 50, 90)]
    assert values == sorted(values) and values[0] < values[-1]


def test_the_worst_picture_has_the_least_psnr() -> None:
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    assert psnr(black, white) == 0


def test_ms_ssim_needs_161_pixels(photograph: np.ndarray) -> None:
    assert ms_ssim(photograph[:161, :161], photograph[:161, :161]) is not None
    assert ms_ssim(photograph[:160], photograph[:160]) is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 3), (10, 10, 3), (11, 11, 3)])
def test_tiny_pictures_are_measured(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, (2, *shape), np.uint8)
    assert -1 <= ssim(a, b) <= 1 and ssim(a, a) == pytest.approx(1)
    assert (ssimulacra2(a, b) is None) == (min(shape[:2]) < 8)


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim, ssimulacra2])
def test_a_grey_picture_measures_as_three_equal_planes(photograph: np.ndarray, metric) -> None:
    grey = photograph[:175, :175, 1]
    worse = grey // 2 * 2
    planes = [np.repeat(picture[:, :, None], 3, axis=2) for picture in (grey, worse)]
    assert metric(grey, worse) == pytest.approx(metric(*planes), rel=1e-6) and metric(grey, worse) > 0.9


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim, ssimulacra2])
def test_what_are_no_two_pictures_of_one_shape_is_refused(photograph: np.ndarray, metric) -> None:
    for a, b, told in (
        (photograph, photograph[:-1], r"one shape, .* not uint8 \(192, 176, 3\) and uint8 \(191, 176, 3\)"),
        (photograph, photograph.astype(np.float32), "and float32"),
        (photograph[:0], photograph[:0], r"not uint8 \(0, 176, 3\)"),
        (photograph[None], photograph[None], r"not uint8 \(1, 192, 176, 3\)"),
        (photograph[:, :, :2], photograph[:, :, :2], r"not uint8 \(192, 176, 2\)"),
        (photograph[0, 0], photograph[0, 0], r"not uint8 \(3,\)"),
        (photograph.tolist(), photograph, "not list and uint8"),
    ):
        with pytest.raises(ValueError, match=told):
            metric(a, b)


def test_bd_rate_of_a_shifted_curve_is_the_shift() -> None:
    assert bd_rate(RATES, DECIBELS, RATES * 0.8, DECIBELS) == pytest.approx(-20)
    assert bd_rate(RATES, DECIBELS, RATES[::-1] * 1.5, DECIBELS[::-1]) == pytest.approx(50)
    assert bd_rate(RATES, DECIBELS, RATES[2:] * 2, DECIBELS[2:]) == pytest.approx(100, rel=0.05)


def test_bd_rate_compares_within_a_range_where_one_is_given() -> None:
    low, high = DECIBELS[0], DECIBELS[-1]
    twice_above = np.where((low + high) / 2 < DECIBELS, 2.0, 1.0) * RATES
    assert bd_rate(RATES, DECIBELS, twice_above, DECIBELS, (low, DECIBELS[1])) == pytest.approx(0, abs=1e-9)
    assert bd_rate(RATES, DECIBELS, twice_above, DECIBELS, (DECIBELS[-2], high + 9)) == pytest.approx(100, rel=0.2)
    with pytest.raises(ValueError, match="share no range"):
        bd_rate(RATES, DECIBELS, RATES, DECIBELS, (high + 1, high + 2))


def test_bd_rate_leaves_out_points_nobody_would_choose() -> None:
    worse = (np.append(RATES, 3000), np.append(DECIBELS, 35))
    assert bd_rate(RATES, DECIBELS, *worse) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("rates", "decibels"),
    [
        (RATES, DECIBELS + 20),  # above the other curve
        ([500.0], [30.0]),  # one point is no curve
        ([500.0, 800.0], [np.inf, np.nan]),  # nothing finite
    ],
)
def test_bd_rate_without_a_shared_range_is_an_error(rates, decibels) -> None:
    with pytest.raises(ValueError, match="curve"):
        bd_rate(RATES, DECIBELS, rates, decibels)


def test_a_rate_curve_passes_its_points_and_does_not_extrapolate() -> None:
    curve = RateCurve(RATES, DECIBELS)
    assert curve.rate_at(34) == pytest.approx(900)
    assert curve.rate_at(27.9) is None and curve.rate_at(40.1) is None
    assert curve.quality_at(900) == pytest.approx(34)
    assert [curve.quality_at(rate) for rate in (0, RATES[0] - 1, RATES[-1] + 1)] == [None] * 3


@pytest.mark.parametrize("points", [0, 1])
def test_of_fewer_than_two_points_nothing_is_known_between(points: int) -> None:
    curve = RateCurve(RATES[:points], DECIBELS[:points])
    assert curve.rate_at(DECIBELS[0]) is None and curve.quality_at(RATES[0]) is None
