"""What a run did, added up batch by batch: counts that must reconcile, bytes, quality, errors, seconds.

Not how it is said: see ``wording.py``.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compressor.encoding import PSNR_BINS, BatchReport
from compressor.mirroring import most
from compressor.planning import Plan

BUDGET_FROM = 100  # pictures: a share of fewer says too little to stop a run


def too_many(failed: int, tried: int, budget: str | None, finished: bool) -> bool:
    """Whether to stop, with ``failed`` of ``tried`` pictures, by a budget as of :func:`compressor.mirroring.most`.

    None is no limit, and a share is of :data:`BUDGET_FROM` pictures at least until the run has ``finished``.
    """
    if budget is None or (budget.endswith("%") and tried < BUDGET_FROM and not finished):
        return False
    return failed > most(budget, tried)


@dataclass
class RunSummary:
    """One run in figures.

    ``listed`` is ``archived`` + ``already_there`` + ``quarantined`` + ``still_quarantined`` + ``accepted`` +
    ``left`` + ``not_reached``: pictures of this run, of earlier ones, failed now, failed before and unchanged
    since, such that a person accepted, listed beyond the limit, and given up when the run was ``stopped``.
    ``limited``: the listing was ended by the limit, and what follows is not counted at all. ``replaced`` are those
    of ``archived`` that took the place of an older row, ``overtaken`` those that another run archived meanwhile,
    whose rows stay, ``kept`` those that keep their bytes, by why, ``kept_metadata`` those of them with EXIF or XMP,
    ``not_resized`` those that keep their size too although others are resized; ``dropped`` counts what the files of
    the others held beside their pictures.
    ``deleted`` were gone from the source; ``not_mirrored`` says why none was deleted, where that was asked for.
    ``unlisted`` counts files without a picture's extension, by theirs. ``one_quality``: the codec has no other, and
    no floor was given. ``learned``: it is no standard format.
    ``chosen``: options, given explicitly, of how pictures are stored, in which those already there have no part. Bytes:
    ``source_bytes`` of the archived files, ``payload_bytes`` and ``stored_bytes`` (Parquet, all columns) of this run;
    ``table_bytes`` and ``codec_bytes`` of all that the archive holds at its end.
    """

    run: str
    source: str
    archive: str
    codec: str
    listed: int = 0
    already_there: int = 0
    still_quarantined: int = 0
    accepted: int = 0
    left: int = 0
    limited: bool = False
    not_reached: int = 0
    archived: int = 0
    replaced: int = 0
    overtaken: int = 0
    quarantined: int = 0
    batches: int = 0
    lost_batches: int = 0
    workers: int = 1
    source_bytes: int = 0
    payload_bytes: int = 0
    stored_bytes: int = 0
    table_bytes: int = 0
    codec_bytes: int = 0
    pixels: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    kept_metadata: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    ignored_names: list[tuple[str, str]] = field(default_factory=list)
    unlisted: Counter[str] = field(default_factory=Counter)
    psnr_sum: float = 0.0
    psnr_min: float = float("inf")
    psnr_counts: np.ndarray = field(default_factory=lambda: np.zeros(len(PSNR_BINS) - 1, np.int64))
    worker_seconds: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    waves: int = 0
    deleted: int = 0
    not_mirrored: str | None = None
    not_resized: int = 0
    one_quality: bool = False
    learned: bool = False
    chosen: list[str] = field(default_factory=list)

    def start(self, plan: Plan) -> None:
        """Take over what planning a wave counted."""
        self.listed += plan.listed
        self.already_there += plan.already_there
        self.left += plan.left
        self.limited = plan.limited
        self.still_quarantined += plan.quarantined
        self.accepted += plan.accepted
        self.waves += plan.pending > 0
        self.skipped = plan.skipped
        self.ignored, self.ignored_names = plan.ignored, plan.ignored_names

    def add(self, report: BatchReport, replaced: int, overtaken: int = 0) -> None:
        """Count a committed batch: so many of its archived pictures replaced a row, and so many came too late."""
        self.batches += 1
        self.archived += report.archived
        self.replaced += replaced
        self.overtaken += overtaken
        self.quarantined += len(report.quarantined)
        self.source_bytes += report.source_bytes
        self.payload_bytes += report.payload_bytes
        self.stored_bytes += sum(part.size for part in report.parts)
        self.pixels += report.pixels
        self.not_resized += report.not_resized
        self.errors.update(report.errors)
        self.codecs.update(report.codecs)
        self.kept.update(report.kept)
        self.kept_metadata += report.kept_metadata
        self.dropped.update(report.dropped)
        self.psnr_sum += report.psnr_sum
        self.psnr_min = min(self.psnr_min, report.psnr_min)
        self.psnr_counts += np.array(report.psnr_counts)
        self.worker_seconds.update(report.seconds)

    @property
    def tried(self) -> int:
        """Pictures that this run archived or quarantined."""
        return self.archived + self.quarantined

    @property
    def measured(self) -> int:
        """Pictures with a PSNR, that is not exact."""
        return int(self.psnr_counts.sum())

    @property
    def ratio(self) -> float | None:
        return self.source_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def pictures_per_second(self) -> float | None:
        """While encoding, past planning and start-up."""
        seconds = self.seconds.get("encode", 0.0)
        return self.tried / seconds if seconds else None

    def reconcile(self) -> None:
        """Raise AssertionError unless every listed picture is accounted for, once."""
        parts = {
            name: getattr(self, name)
            for name in (
                "archived",
                "already_there",
                "quarantined",
                "still_quarantined",
                "accepted",
                "left",
                "not_reached",
            )
        }
        if sum(parts.values()) != self.listed:
            told = " + ".join(f"{count} {name}" for name, count in parts.items())
            raise AssertionError(f"counts do not reconcile: {self.listed} listed, but {told} = {sum(parts.values())}")

    def histogram(self) -> list[tuple[str, int]]:
        """PSNR ranges in dB, and pictures in each."""
        labels = []
        for low, high in zip(PSNR_BINS[:-1], PSNR_BINS[1:], strict=True):
            labels.append(
                f"under {high:g}" if low == 0 else f"{low:g} and over" if np.isinf(high) else f"{low:g} to {high:g}"
            )
        return [(label, int(count)) for label, count in zip(labels, self.psnr_counts, strict=True) if count]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with what is derived."""
        values = {
            name: value for name, value in asdict(self).items() if name not in ("psnr_sum", "psnr_counts", "psnr_min")
        }
        return {
            **values,
            "errors": dict(self.errors.most_common()),
            "codecs": dict(self.codecs.most_common()),
            "kept": dict(self.kept.most_common()),
            "dropped": dict(self.dropped.most_common()),
            "unlisted": dict(self.unlisted.most_common()),
            "worker_seconds": {name: round(value, 3) for name, value in self.worker_seconds.items()},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "ratio": _rounded(self.ratio),
            "pictures_per_second": _rounded(self.pictures_per_second),
            "psnr_mean": _rounded(self.psnr_sum / self.measured) if self.measured else None,
            "psnr_min": _rounded(self.psnr_min) if self.measured else None,
            "psnr_histogram": dict(self.histogram()),
            "exact": self.archived - self.measured,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 2)
