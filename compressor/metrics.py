"""How far a decoded picture is from its source, and how far one rate-distortion curve is from another.

Every function takes uint8 pixels in memory: (H, W, 3) in RGB or (H, W) in grey. Not for choosing a quality: see
``quality.py``.
"""

import io
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

PEAK = 255.0
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik, 2003
MS_SSIM_SIDE = 161  # pixels; the fifth scale is then just as wide as the window
SSIMULACRA2_SIDE = 8  # pixels; below it not even the first scale is measured
_FLAT_CELL, _FLAT_RANGE, _FLAT_SHARE = 8, 3, 0.9  # pixels, levels, of the cells
_WINDOW = 11  # taps; with sigma 1.5 what scikit-image uses (truncated at 3.5 sigma)
_SIGMA = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all samples of two uint8 pictures; infinite when they are equal.

    Raises
    ------
    ValueError
        If they are no pictures, or not of one shape.
    """
    _check(a, b)
    squared = cv2.norm(np.ascontiguousarray(a), np.ascontiguousarray(b), cv2.NORM_L2SQR)
    return float(10 * np.log10(PEAK**2 * a.size / squared)) if squared else float("inf")


def luma(pixels: np.ndarray) -> np.ndarray:
    """Y of BT.601 over the full range, rounded: uint8 (H, W) of uint8 RGB (H, W, 3), and grey as it is."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two uint8 pictures: mean over positions and channels.

    The Gaussian window has 11 taps and sigma 1.5, so the figure is scikit-image's with ``gaussian_weights=True`` and
    ``use_sample_covariance=False``. A side shorter than the window is mirrored instead of left out at the border.
    """
    _check(a, b)
    similarity, _ = _ssim_and_contrast(a.astype(np.float32), b.astype(np.float32))
    return float(similarity.mean())


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Multi-scale SSIM over five scales (Wang, Simoncelli and Bovik, 2003), mean over channels.

    None where the shorter side is under 161 pixels, since the fifth scale would be smaller than the window.
    """
    _check(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    a, b = a.astype(np.float32), b.astype(np.float32)
    product = np.ones(a.shape[2:] or 1)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        similarity, contrast = _ssim_and_contrast(a, b)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        product *= np.maximum(similarity if last else contrast, 0) ** weight
        if not last:
            a, b = _halve(a), _halve(b)
    return float(product.mean())


def is_flat(pixels: np.ndarray) -> bool:
    """Whether nine of ten cells of 8x8 pixels hold nearly one colour each; uint8 (H, W, C)."""
    if any(length % _FLAT_CELL for length in pixels.shape[:2]):
        pixels = np.pad(pixels, (*((0, -length % _FLAT_CELL) for length in pixels.shape[:2]), (0, 0)), "edge")
    corners = pixels[::_FLAT_CELL, ::_FLAT_CELL], pixels[_FLAT_CELL - 1 :: _FLAT_CELL, _FLAT_CELL - 1 :: _FLAT_CELL]
    if (np.maximum(*corners) - np.minimum(*corners) <= _FLAT_RANGE).all(2).mean() < _FLAT_SHARE:
        return False  # as of nearly every photograph, in a hundredth of the time
    cells = pixels.reshape(len(corners[0]), _FLAT_CELL, -1, _FLAT_CELL, pixels.shape[2])
    return bool((np.ptp(cells, axis=(1, 3)) <= _FLAT_RANGE).all(2).mean() >= _FLAT_SHARE)


def ssimulacra2(a: np.ndarray, b: np.ndarray) -> float | None:
    """SSIMULACRA 2: 100 is identical, 90 visually lossless, 70 high quality, 50 medium, 30 low; negative is possible.

    Measured by the ``ssimulacra2`` package, from memory. None where a side is under 8 pixels.
    """
    _check(a, b)
    if min(a.shape[:2]) < SSIMULACRA2_SIDE:
        return None
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(_as_bmp(a), _as_bmp(b)))


def bd_rate(
    rate_a: Sequence[float] | np.ndarray,
    quality_a: Sequence[float] | np.ndarray,
    rate_b: Sequence[float] | np.ndarray,
    quality_b: Sequence[float] | np.ndarray,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> float:
    """Bjontegaard's mean difference of rate: percent by which b's exceeds a's at equal quality.

    Log-rates are interpolated over quality by PCHIP and compared where both curves have points.

    Parameters
    ----------
    rate_a, rate_b : positive rates in any one unit.
    quality_a, quality_b : quality at these rates, more is better (PSNR, SSIM, ...), in any order.
    within : range of quality that is compared, as far as both curves have points there.

    Raises
    ------
    ValueError
        If a curve has fewer than two usable points, or the curves share no range of quality.
    """
    return RateCurve(rate_a, quality_a).bd_rate(RateCurve(rate_b, quality_b), within)


class RateCurve:
    """Rate and quality as functions of each other, through measured points: PCHIP on the logarithm of the rate.

    Points that cost more and give no more quality than another are left out: nobody would choose them. ``rates`` are
    those of the others, fewest first, ``low`` and ``high`` the range of their quality. Between fewer than two of them
    nothing is known.
    """

    def __init__(self, rate: Sequence[float] | np.ndarray, quality: Sequence[float] | np.ndarray) -> None:
        rates, qualities = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
        usable = np.isfinite(qualities) & np.isfinite(rates) & (rates > 0)
        order = np.lexsort((-qualities[usable], rates[usable]))
        rates, qualities = rates[usable][order], qualities[usable][order]
        best_before = np.maximum.accumulate(np.append(-np.inf, qualities))[:-1]
        better = qualities > best_before
        self.rates, self._qualities = rates[better], qualities[better]
        self.low, self.high = float(self._qualities.min(initial=np.inf)), float(self._qualities.max(initial=-np.inf))

    @cached_property
    def _log_rate(self) -> Any:
        from scipy.interpolate import PchipInterpolator

        return PchipInterpolator(self._qualities, np.log(self.rates), extrapolate=False)

    def rate_at(self, quality: float) -> float | None:
        """Rate at this quality; None outside the measured range, where nothing is known."""
        if len(self.rates) < 2 or not self.low <= quality <= self.high:
            return None
        return float(np.exp(self._log_rate(quality)))

    def quality_at(self, rate: float) -> float | None:
        """Quality at this rate; None outside the measured range."""
        from scipy.interpolate import PchipInterpolator

        if len(self.rates) < 2 or not self.rates[0] <= rate <= self.rates[-1]:
            return None
        return float(PchipInterpolator(np.log(self.rates), self._qualities)(np.log(rate)))

    def bd_rate(self, other: "RateCurve", within: tuple[float, float] = (-np.inf, np.inf)) -> float:
        """Percent by which the other's rate exceeds this one's: see :func:`bd_rate`."""
        low, high = max(self.low, other.low, within[0]), min(self.high, other.high, within[1])
        if not high > low:
            raise ValueError(
                f"the curves share no range of quality: {self.low:.4g} to {self.high:.4g} "
                f"and {other.low:.4g} to {other.high:.4g}"
            )
        difference = (other.integral(low, high) - self.integral(low, high)) / (high - low)
        return float(np.expm1(difference) * 100)

    @cached_property
    def _integral(self) -> Any:
        return self._log_rate.antiderivative()

    def integral(self, low: float, high: float) -> float:
        """Integral of the log-rate over a range of quality."""
        start, end = self._integral((low, high))
        return float(end - start)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if not (_is_picture(a) and _is_picture(b) and a.shape == b.shape):
        wanted = "two uint8 pictures of one shape, (H, W, 3) or (H, W), are wanted"
        raise ValueError(f"{wanted}, not {_told(a)} and {_told(b)}")


def _is_picture(pixels: object) -> bool:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not pixels.size:
        return False
    return pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)


def _told(pixels: object) -> str:
    return f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__


def _blur(plane: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(plane, cv2.CV_32F, _kernel(), _kernel(), borderType=cv2.BORDER_REFLECT)


@lru_cache(maxsize=1)
def _kernel() -> np.ndarray:
    return cv2.getGaussianKernel(_WINDOW, _SIGMA, cv2.CV_32F)


def _ssim_and_contrast(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel means of SSIM and of its contrast-structure part, (3,) from float32 (H, W, 3), (1,) from (H, W)."""
    planes = [_plane_ssim_and_contrast(*pair) for pair in zip(cv2.split(a), cv2.split(b), strict=True)]
    similarity, contrast = np.array(planes, np.float64).T
    return similarity, contrast


def _plane_ssim_and_contrast(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The same of one float32 plane (H, W). In place, and plane by plane: fresh memory is what costs here."""
    # Four blurs instead of five: var(a) + var(b) is all that SSIM asks of the two variances.
    mean_a, mean_b = _blur(a), _blur(b)
    product = mean_a * mean_b
    mean_a *= mean_a
    mean_b *= mean_b
    squares = np.add(mean_a, mean_b, out=mean_a)

    scratch = np.multiply(a, b, out=mean_b)
    contrast = _blur(scratch)
    contrast -= product
    contrast *= 2
    contrast += _C2
    np.multiply(a, a, out=scratch)
    scratch += b * b
    variances = _blur(scratch)
    variances -= squares
    variances += _C2
    contrast /= variances

    similarity = product
    similarity *= 2
    similarity += _C1
    squares += _C1
    similarity /= squares
    similarity *= contrast
    rows, columns = (slice(_WINDOW // 2, -(_WINDOW // 2)) if side >= _WINDOW else slice(None) for side in a.shape)
    return cv2.mean(similarity[rows, columns])[0], cv2.mean(contrast[rows, columns])[0]


def _halve(plane: np.ndarray) -> np.ndarray:
    """Mean of each 2 x 2 block; an odd side's last line counts twice."""
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, height % 2), (0, width % 2), (0, 0))[: plane.ndim], mode="edge")
    return cv2.resize(padded, (padded.shape[1] // 2, padded.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _as_bmp(pixels: np.ndarray) -> io.BytesIO:
    """The package opens files; an uncompressed one in memory is the cheapest it takes."""
    to_bgr = cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR
    return io.BytesIO(cv2.imencode(".bmp", cv2.cvtColor(pixels, to_bgr))[1].tobytes())
