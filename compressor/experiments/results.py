"""Everything that an experiment measured: what findings, tables and figures are made from. JSON both ways."""

from dataclasses import dataclass, field
from typing import Any

from compressor.experiments.information import Information
from compressor.experiments.measuring import Rates, Row, rows_at_middle, rows_of

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
        levels = [(Rates(before).psnr_at(row.mean_bytes), row.mean_psnr) for row in after]
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

    def rates(self, name: str) -> Rates:
        """A standard format's rows, interpolated."""
        return Rates(self.standards[name])

    def top(self, family: str) -> Trial | None:
        """A family trained on the most pictures."""
        trained = [trial for trial in self.ladder if trial.family == family and trial.training]
        return max(trained, key=lambda trial: trial.training.pictures if trial.training else 0, default=None)

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
