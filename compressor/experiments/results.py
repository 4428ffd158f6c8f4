"""Everything that an experiment measured: what findings, tables and figures are made from."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from compressor.errors import LatentpackError
from compressor.experiments.information import Information
from compressor.experiments.measuring import EXACT, Row, rate_curve, rows_at_middle, rows_of
from compressor.metrics import RateCurve
from compressor.wording import number

BEST = ("int8-entropy", "entropy")  # the packer that tells a codec's size in one figure, by kind of codec


@dataclass(frozen=True)
class Training:
    """How a codec came to be. ``history`` has a row for each validation."""

    pictures: int
    pictures_seen: int
    steps: int
    seconds: float
    device: str
    machine: str
    history: list[dict[str, float]]

    @property
    def rate(self) -> float:
        """Pictures a second, validation included, in the fastest stretch: other programs may hold up the rest."""
        start = {"pictures": 0.0, "seconds": 0.0}
        stretches = zip([start, *self.history], self.history, strict=False)
        rates = [
            (end["pictures"] - begin["pictures"]) / max(end["seconds"] - begin["seconds"], 1e-9)
            for begin, end in stretches
        ]
        return max(rates, default=self.pictures_seen / max(self.seconds, 1e-9))

    def seconds_to(self, mse: float) -> float | None:
        """Seconds to the first validation at or under ``mse``; None where there was none."""
        return next((row["seconds"] for row in self.history if row["loss"] <= mse), None)


@dataclass(frozen=True)
class Trial:
    """A codec on some pictures: its name in the report, its bytes, what was measured.

    ``artifact_bytes``: the file's. ``weight_bytes``: its weights', as stored; ``full_bytes``: the same as FP32.
    """

    name: str
    family: str
    artifact_bytes: int
    weight_bytes: int
    full_bytes: int
    rows: list[Row]
    training: Training | None = None
    everything: bool = False
    information: Information | None = None
    about: str = ""

    def row(self, packer: str | None = None) -> Row | None:
        """The row of a packer at the codec's middle quality; of the usual packer if none is named."""
        wanted = (packer,) if packer else BEST
        return next((row for row in rows_at_middle(self.rows) if row.packer in wanted), None)

    @property
    def usual(self) -> list[Row]:
        """The rows of the usual packer, in order of quality."""
        return sorted((row for row in self.rows if row.packer in BEST), key=lambda row: row.quality)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trial":
        training, information = values["training"], values["information"]
        return cls(
            **{
                **values,
                "rows": rows_of(values["rows"]),
                "training": Training(**training) if training else None,
                "information": Information.from_dict(information) if information else None,
            }
        )


@dataclass(frozen=True)
class Quantized:
    """What became of a codec, ``of``, with its weights stored as ``kind`` by ``method``."""

    of: Trial
    kind: str
    method: str
    trial: Trial

    @property
    def lost(self) -> float | None:
        """dB lost at equal bytes, mean over qualities; at one quality the difference of PSNR. None: no common range."""
        before, after = self.of.usual, self.trial.usual
        if len(before) < 2:
            return before[0].mean_psnr - after[0].mean_psnr
        rates = rate_curve(before)
        levels = [(rates.quality_at(row.mean_bytes), row.mean_psnr) for row in after]
        lost = [was - now for was, now in levels if was is not None]
        return sum(lost) / len(lost) if lost else None


@dataclass(frozen=True)
class Elsewhere:
    """Codecs on pictures of another kind: ``trials`` before and after fine-tuning, ``standards`` beside them."""

    name: str
    pictures: int
    trials: list[Trial]
    standards: dict[str, list[Row]]


@dataclass(frozen=True)
class Results:
    """All that was measured, and where."""

    context: dict[str, str]
    ladder: list[Trial]
    standards: dict[str, list[Row]]
    ablations: list[Trial] = field(default_factory=list)
    quantized: list[Quantized] = field(default_factory=list)
    elsewhere: list[Elsewhere] = field(default_factory=list)
    given: list[Trial] = field(default_factory=list)

    def rates(self, name: str) -> RateCurve:
        """A standard format's bytes by its PSNR."""
        return rate_curve(self.standards[name])

    def top(self, family: str) -> Trial | None:
        """A family trained on the most pictures."""
        trained = [trial for trial in self.ladder if trial.family == family and trial.training]
        return max(trained, key=lambda trial: trial.training.pictures if trial.training else 0, default=None)

    @property
    def each(self) -> str:
        """How long each cell of the ladder was trained, for a sentence."""
        return f"{self.context['each cell']} each"

    @property
    def tops(self) -> list[Trial]:
        """Every family trained on the most pictures."""
        return [top for family in self.families if (top := self.top(family))]

    def best(self, family: str) -> Trial | None:
        """A family's codec of least squared error: the one trained on the most pictures here, or one brought along."""
        trials = [self.top(family), *(trial for trial in self.given if trial.family == family)]
        return min((trial for trial in trials if trial and trial.row()), key=_error, default=None)

    @property
    def families(self) -> list[str]:
        """Families of the ladder, in order."""
        return list(dict.fromkeys(trial.family for trial in self.ladder))


def _error(trial: Trial) -> float:
    row = trial.row()
    return row.mse if row else float("inf")


def without_exact(results: Results) -> Results:
    """The results with bytes and PSNR of those pictures alone that no codec stores exactly at any quality.

    Of a picture stored exactly there is no PSNR to take a mean of, and left out of one codec alone it would bend the
    comparison. The context tells how many were left out.

    Raises
    ------
    LatentpackError
        No picture is left of those held out, or of another kind.
    """
    held_out = [*results.ladder, *results.ablations, *(one.trial for one in results.quantized), *results.given]
    lossy = lossy_pictures("the pictures to measure on", _rows(held_out, results.standards))
    elsewhere = []
    for place in results.elsewhere:
        left = lossy_pictures(place.name, _rows(place.trials, place.standards))
        trials = [_of_trial(trial, left) for trial in place.trials]
        elsewhere.append(
            replace(place, pictures=sum(left), trials=trials, standards=_of_formats(place.standards, left))
        )
    context, exact = results.context, lossy.count(False)
    if exact:
        said = f"{number(exact, 'picture')} of those measured on: what some codec stores exactly has no PSNR"
        context = {**context, "left out of bytes and PSNR": said}
    return replace(
        results,
        context=context,
        ladder=[_of_trial(trial, lossy) for trial in results.ladder],
        standards=_of_formats(results.standards, lossy),
        ablations=[_of_trial(trial, lossy) for trial in results.ablations],
        quantized=[
            replace(one, of=_of_trial(one.of, lossy), trial=_of_trial(one.trial, lossy)) for one in results.quantized
        ],
        elsewhere=elsewhere,
        given=[_of_trial(trial, lossy) for trial in results.given],
    )


def lossy_pictures(name: str, rows: Iterable[Row]) -> list[bool]:
    """Which pictures none of ``rows`` stores exactly. LatentpackError, with their ``name``, where there is none."""
    lossy = [max(each) < EXACT for each in zip(*(row.psnr for row in rows), strict=True)]
    if not any(lossy):
        raise LatentpackError(f"{name}: nothing can be compared, some codec stores every picture there exactly")
    return lossy


def _rows(trials: Iterable[Trial], standards: dict[str, list[Row]]) -> Iterable[Row]:
    return chain(*(trial.rows for trial in trials), *standards.values())


def _of_rows(rows: list[Row], kept: list[bool]) -> list[Row]:
    def chosen(values: list[Any]) -> list[Any]:
        return [value for value, keep in zip(values, kept, strict=True) if keep]

    return [replace(row, bytes=chosen(row.bytes), psnr=chosen(row.psnr)) for row in rows]


def _of_trial(trial: Trial, kept: list[bool]) -> Trial:
    return replace(trial, rows=_of_rows(trial.rows, kept))


def _of_formats(standards: dict[str, list[Row]], kept: list[bool]) -> dict[str, list[Row]]:
    return {name: _of_rows(rows, kept) for name, rows in standards.items()}
