"""The quality promise: the cheapest encoding whose decoded picture measures at least the target, or a fallback.

What is kept has been reconstructed by the code that a reader uses and measured against the pixels that came in. Nothing
is done twice for it: a codec whose tries stop short of bytes (``Trials``) shows in the end that the bytes read back as
what was tried.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from compressor.codec import Codec, Encoded
from compressor.decoding import grey_planes
from compressor.metrics import psnr

TOLERANCE = 0.25  # dB above the target at which a try is good enough
FIRST_AIM, AIM = 0.05, 0.04  # dB above the target that the first try aims at, and later ones, which know more
_GUESSES = 4  # tries that follow the prediction or the line between two tries; then the interval is halved
_STEP = 0.2  # dB a quality step is taken for where a codec cannot predict better
_DRAFTS = (45, 75)  # qualities of a standard format that its fastest setting is measured at, to start from


@dataclass(frozen=True)
class Stored:
    """One picture's encoding and what measuring it gave. ``psnr`` in dB, infinite where nothing is lost."""

    encoded: Encoded
    pixels: np.ndarray
    psnr: float


class Trials(Protocol):
    """Tries of some pictures with one codec, which share what is the same for every quality.

    ``qualities`` is what can be tried, worst first: the codec's quality steps, or parts of them. ``curves`` is the PSNR
    expected of every picture at each, float64 (pictures, qualities). A search begins at ``first_at_most`` or below:
    above it a picture's PSNR may fall again, and where a try fails nothing below it is looked for. ``gains`` is the
    PSNR in dB that refining is expected to add, in the shape of ``curves``: where it is 0, nothing is refined.
    """

    qualities: range
    curves: np.ndarray
    gains: np.ndarray
    first_at_most: int

    def slack(self, target: float) -> np.ndarray:
        """What a reader may measure less of each picture than a try at ``target`` did, in dB.

        In another batch, and in another type, sums of floating point round otherwise.
        """

    def attempt(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[Any, np.ndarray]]:
        """For each picture at its quality, what :meth:`finish` needs of the try, and the pixels a reader gets."""

    def refine(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[Any, np.ndarray]]:
        """Like :meth:`attempt`, with less rate plus distortion as a rule; called where ``gains`` are above 0 alone."""

    def finish(self, indices: Sequence[int], attempts: Sequence[Any]) -> list[Encoded | None]:
        """Such tries as they are stored; None for one that a reader would not read back as it was tried."""


@runtime_checkable
class Searchable(Protocol):
    """A codec that knows a shorter way to what a try would measure."""

    def trials(self, pixels: Sequence[np.ndarray], packer: str) -> Trials:
        """Prepare tries of uint8 (H, W, 3) pictures."""


@runtime_checkable
class Drafted(Protocol):
    """A codec that is slow and has a fast sibling, ``draft_loss`` dB worse at the same quality. None: it has not."""

    draft: Codec | None
    draft_loss: float


class _WholeTrials:
    """Tries with any codec: each is encoded and decoded. A draft, where there is one, tells what to expect of them."""

    def __init__(self, codec: Codec, pixels: Sequence[np.ndarray], packer: str, target: float) -> None:
        self.qualities = codec.qualities
        self.first_at_most = codec.qualities[-1]
        steps = np.array(codec.qualities)
        self._codec, self._pixels, self._packer = codec, pixels, packer
        if isinstance(codec, Drafted) and codec.draft is not None:
            at = np.array(_DRAFTS)
            drafts = [encode_measured(codec.draft, pixels, int(quality), packer) for quality in at]
            # An infinite PSNR, of a plain picture, has no line through it.
            low, high = (np.array([[min(one.psnr, 99.0)] for one in each]) + codec.draft_loss for each in drafts)
            self.curves = low + (high - low) * (steps - at[0]) / (at[1] - at[0])
        else:
            self.curves = np.tile((steps - (steps[0] + steps[-1] + 1) / 2) * _STEP + target, (len(pixels), 1))
        self.gains = np.zeros_like(self.curves)

    def slack(self, target: float) -> np.ndarray:
        return np.zeros(len(self._pixels))

    def attempt(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[Encoded, np.ndarray]]:
        stored = encode_measured(self._codec, [self._pixels[index] for index in indices], qualities, self._packer)
        return [(one.encoded, one.pixels) for one in stored]

    refine = attempt

    def finish(self, indices: Sequence[int], attempts: Sequence[Encoded]) -> list[Encoded | None]:
        return list(attempts)


@dataclass
class _Search:
    """Where the search for one picture stands: qualities known to fail and to do, and how far off the curve is."""

    curve: np.ndarray
    first: int
    first_at_most: int
    below: int
    above: int
    tries: int = 0
    offset: float = 0.0
    psnr_below: float | None = None
    psnr_above: float | None = None
    best: tuple[Any, np.ndarray, float] | None = None

    def next_quality(self, target: float) -> int:
        """The lowest one expected to reach ``target``, strictly between what is known."""
        # Above what is known to fail may lie nothing better: a codec's PSNR need not rise to its last quality.
        if self.tries >= (2 * _GUESSES if self.psnr_above is None else _GUESSES):
            return (self.below + self.above) // 2
        aim = target + (AIM if self.tries else FIRST_AIM)
        if self.psnr_above is not None and self.psnr_below is not None:
            slope = (self.psnr_above - self.psnr_below) / (self.above - self.below)
            wanted = self.below + math.ceil((aim - self.psnr_below) / max(slope, 1e-3))
        else:
            wanted = self._expected(aim)
        if not self.tries:
            wanted = min(wanted, self.first_at_most)
        return min(max(wanted, self.below + 1), self.above - 1)

    def once_more(self, gains: np.ndarray) -> "_Search":
        """A search anew among tries that measure ``gains`` dB more than those of this one, which is over."""
        curve = self.curve + self.offset + gains
        below = self.first - 1
        return _Search(curve, self.first, self.first_at_most, below, below + 1 + len(curve))

    def may_reach(self, target: float) -> bool:
        """Whether any quality is expected to."""
        return bool((self.curve + self.offset).max() >= target)

    def _expected(self, level: float) -> int:
        """The lowest quality expected to reach ``level`` dB, else the highest."""
        reaching = np.flatnonzero(self.curve + self.offset >= level)
        return self.first + (int(reaching[0]) if len(reaching) else len(self.curve) - 1)

    def learn(self, quality: int, attempt: tuple[Any, np.ndarray], psnr: float, target: float) -> bool:
        """Take a try into account; True when the search is over."""
        self.tries += 1
        self.offset = min(psnr, 99.0) - float(self.curve[quality - self.first])  # nothing follows an infinite one
        if psnr >= target:
            self.above, self.best, self.psnr_above = quality, (*attempt, psnr), psnr
        else:
            self.below, self.psnr_below = quality, psnr
        done = self.psnr_above is not None and self.psnr_above - target <= TOLERANCE
        return done or self.below + 1 >= self.above


def encode_measured(
    codec: Codec, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto"
) -> list[Stored]:
    """Encode at a fixed quality (any number for a codec that has one) or at one each, decode and measure."""
    encoded = codec.encode(pixels, quality, packer)
    decoded = codec.decode(encoded)
    return [Stored(e, d, psnr(p, d)) for e, d, p in zip(encoded, decoded, pixels, strict=True)]


def encode_to_target(
    codec: Codec,
    pixels: Sequence[np.ndarray],
    target: float,
    packer: str = "auto",
    on_tries: Callable[[int], None] | None = None,
) -> list[Stored | None]:
    """For each picture the lowest quality found that reaches ``target`` dB, or None where none does.

    A codec may predict (:class:`Searchable`), so that most pictures need one try or two. Otherwise the search starts
    where a draft tells (:class:`Drafted`) or in the middle, follows the line between two tries, and after a few of them
    halves. One that refines is then searched once more, among refined tries, and the smaller
    result is kept. ``on_tries`` is told how many tries each round took.
    """
    if not len(codec.qualities):
        stored = encode_measured(codec, pixels, -1, packer)
        return [one if one.psnr >= target else None for one in stored]
    trials: Trials
    if isinstance(codec, Searchable):
        trials = codec.trials(pixels, packer)
    else:
        trials = _WholeTrials(codec, pixels, packer, target)
    goals = target + trials.slack(target)
    first, stop = trials.qualities.start, trials.qualities.stop
    searches = [_Search(curve, first, trials.first_at_most, below=first - 1, above=stop) for curve in trials.curves]
    found = _found(dict(enumerate(searches)), trials.attempt, pixels, goals, on_tries)
    result = _finished(trials, found, len(pixels))
    if trials.gains.any():
        chosen = np.flatnonzero(trials.gains.any(axis=1)).tolist()
        again = {index: searches[index].once_more(trials.gains[index]) for index in chosen}
        again = {index: search for index, search in again.items() if search.may_reach(goals[index])}
        refined = _finished(trials, _found(again, trials.refine, pixels, goals, on_tries), len(pixels))
        result = [smallest(*rivals) for rivals in zip(result, refined, strict=True)]
    return result


def _found(
    searches: dict[int, _Search],
    attempt: Callable[[list[int], list[int]], list[tuple[Any, np.ndarray]]],
    pixels: Sequence[np.ndarray],
    goals: np.ndarray,
    on_tries: Callable[[int], None] | None,
) -> list[tuple[int, Any, np.ndarray, float]]:
    """Search to the end: (picture, attempt, pixels, PSNR) of each that reached its goal."""
    active = list(searches)
    while active:
        qualities = [searches[index].next_quality(goals[index]) for index in active]
        attempts = attempt(active, qualities)
        if on_tries:
            on_tries(len(active))
        tried = zip(active, qualities, attempts, strict=True)
        active = [
            index
            for index, quality, one in tried
            if not searches[index].learn(quality, one, psnr(pixels[index], one[1]), goals[index])
        ]
    return [(index, *search.best) for index, search in searches.items() if search.best]


def smallest(*rivals: Stored | None) -> Stored | None:
    """The rival of fewest bytes, the first of equals; None where there is none."""
    return min(filter(None, rivals), key=lambda one: len(one.encoded.payload), default=None)


def _finished(trials: Trials, found: Sequence[tuple[int, Any, np.ndarray, float]], count: int) -> list[Stored | None]:
    """What was found, (picture, attempt, pixels, PSNR), as it is stored of each of ``count`` pictures."""
    finished = trials.finish([index for index, *_ in found], [attempt for _, attempt, *_ in found])
    result: list[Stored | None] = [None] * count
    for (index, _, decoded, reached), one in zip(found, finished, strict=True):
        if one is not None:
            result[index] = Stored(one, decoded, reached)
    return result


def as_grey(stored: Stored, pixels: np.ndarray) -> Stored:
    """The same encoding read as a grey picture: three planes become their mean, which is measured again."""
    grey = grey_planes(stored.pixels)
    return replace(stored, encoded=replace(stored.encoded, channels=1), pixels=grey, psnr=psnr(pixels, grey))
