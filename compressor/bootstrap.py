"""How far a figure of some pictures may be from that of all such pictures: the paired bootstrap (Efron, 1979)."""

from collections.abc import Iterable

import numpy as np

FEWEST = 20  # pictures; drawn from fewer, intervals would hold under 92 % of what they should


def resamplings(pictures: int, draws: int) -> np.ndarray:
    """Weights of each picture in each draw, float64 (draws, pictures), each row's sum 1: the same at every call.

    The same weights for all codecs make draws paired: that some pictures are harder for every codec cancels.
    """
    return np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), draws) / pictures


def half_width(figures: Iterable[float | None]) -> float:
    """Half of the 95 % interval that figures of draws spread over; NaN where there are none. None is left out."""
    known = [one for one in figures if one is not None]
    return float(1.96 * np.std(known)) if known else float("nan")
