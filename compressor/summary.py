"""What a run did, added up batch by batch: counts that must reconcile, bytes, quality, errors, seconds.

Not how it is shown: see tasks/report.py and flows/terminal.py.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compressor.bulk import PSNR_BINS, BatchReport
from compressor.listing import is_like_picture
from compressor.maintenance import ArchiveInfo
from compressor.planning import Plan

BUDGET_FROM = 100  # pictures: a share of fewer says too little to stop a run
EXTENSIONS_SHOWN = 10


@dataclass(frozen=True)
class FailureBudget:
    """How many pictures may fail: a count, or a share of those tried.

    >>> FailureBudget.parse("1%")
    FailureBudget(count=None, share=0.01)
    """

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str | None) -> "FailureBudget":
        """From ``"20"``, ``"1%"`` or None, which is no limit."""
        if text is None:
            return cls()
        return cls(share=float(text[:-1]) / 100) if text.endswith("%") else cls(count=int(text))

    def exceeded(self, failed: int, tried: int, finished: bool) -> bool:
        """Whether to stop, with ``failed`` of ``tried`` pictures."""
        if self.count is not None:
            return failed > self.count
        if self.share is None or (tried < BUDGET_FROM and not finished):
            return False
        return failed > self.share * tried


@dataclass
class RunSummary:
    """One run in figures.

    ``listed`` is ``archived`` + ``already_there`` + ``quarantined`` + ``still_quarantined`` + ``left`` +
    ``not_reached``: pictures of this run, of earlier ones, failed now, failed before and unchanged since, beyond the
    limit, and given up when the run was ``stopped``. ``replaced`` are those of ``archived`` that took the place of an
    older row. ``deleted`` were gone from the source; ``not_mirrored`` says why none was deleted, where that was asked
    for. ``unlisted`` counts files without a picture's extension, by theirs. Bytes: ``source_bytes`` of the archived
    files, ``payload_bytes`` and ``stored_bytes`` (Parquet, all columns) of this run.
    """

    run: str
    source: str
    archive: str
    codec: str
    listed: int = 0
    already_there: int = 0
    still_quarantined: int = 0
    left: int = 0
    not_reached: int = 0
    archived: int = 0
    replaced: int = 0
    quarantined: int = 0
    batches: int = 0
    lost_batches: int = 0
    workers: int = 1
    source_bytes: int = 0
    payload_bytes: int = 0
    stored_bytes: int = 0
    pixels: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
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

    def start(self, plan: Plan) -> None:
        """Take over what planning a wave counted."""
        self.listed += plan.listed
        self.already_there += plan.already_there
        self.left += plan.left
        self.still_quarantined += plan.quarantined
        self.waves += plan.pending > 0
        self.skipped = plan.skipped
        self.ignored, self.ignored_names = plan.ignored, plan.ignored_names

    def add(self, report: BatchReport, changed: int) -> None:
        """Count a committed batch, ``changed`` of whose archived pictures replaced a row."""
        self.batches += 1
        self.archived += report.archived
        self.replaced += changed
        self.quarantined += len(report.quarantined)
        self.source_bytes += report.source_bytes
        self.payload_bytes += report.payload_bytes
        self.stored_bytes += sum(part.size for part in report.parts)
        self.pixels += report.pixels
        self.errors.update(report.errors)
        self.codecs.update(report.codecs)
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
            for name in ("archived", "already_there", "quarantined", "still_quarantined", "left", "not_reached")
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
            "skipped": [list(pair) for pair in self.skipped],
            "ignored": self.ignored,
            "ignored_names": [list(pair) for pair in self.ignored_names],
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


def size(count: float) -> str:
    """Bytes for people.

    >>> size(812), size(1234), size(34_500_000)
    ('812 B', '1.2 kB', '34.5 MB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if abs(count) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """A time for people, as exact as an estimate deserves.

    >>> duration(42.3), duration(750), duration(9000), duration(500_000)
    ('42 s', '13 min', '2 h 30 min', '5 d 19 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def describe(run: dict[str, Any]) -> list[tuple[str, str]]:
    """A run (:meth:`RunSummary.to_dict`) as names and values for people."""
    reasons = "".join(f", {count:,} {reason}" for reason, count in run["errors"].items())
    replaced = f", {run['replaced']:,} of them in place of older pictures of their names" if run["replaced"] else ""
    rows = [
        ("source", run["source"]),
        ("archive", run["archive"]),
        ("codec", run["codec"]),
        ("listed", f"{run['listed']:,} pictures"),
        ("archived", f"{run['archived']:,}{replaced}"),
        ("already there", f"{run['already_there']:,}"),
        ("quarantined", f"{run['quarantined']:,}{reasons}"),
    ]
    others = {"still_quarantined": "failed before, unchanged", "left": "left by --limit", "not_reached": "not reached"}
    others["deleted"] = "deleted, gone from the source"
    rows += [(label, f"{run[name]:,}") for name, label in others.items() if run[name]]
    if run["unlisted"]:
        rows.append(("not listed", _unlisted(run["unlisted"])))
    if run["archived"]:
        each = run["stored_bytes"] / run["archived"]
        rows += [
            ("bytes in", size(run["source_bytes"])),
            ("bytes stored", f"{size(run['stored_bytes'])}, {each:,.0f} bytes a picture with all columns"),
            ("ratio", f"{run['ratio']:.1f} to 1"),
        ]
    if run["psnr_mean"] is not None:
        rows.append(("PSNR", f"mean {run['psnr_mean']:.2f} dB, lowest {run['psnr_min']:.2f} dB"))
    if run["pictures_per_second"]:
        total = sum(run["seconds"].values())
        rows.append(
            ("speed", f"{run['pictures_per_second']:,.1f} pictures/s, {run['workers']} workers, {total:.1f} s in all")
        )
    return rows


def _unlisted(counts: dict[str, int]) -> str:
    """Extensions that are like a picture's first, then those of most files."""
    ordered = sorted(counts, key=lambda name: (not is_like_picture(name), -counts[name], name))
    plain = {name: name if re.fullmatch(r"[!-~]+", name) else repr(name) for name in ordered[:EXTENSIONS_SHOWN]}
    shown = [f"{told} {counts[name]:,}" for name, told in plain.items()]
    more = ["..."] * (len(ordered) > EXTENSIONS_SHOWN)
    return f"{sum(counts.values()):,} files have other extensions: {', '.join([*shown, *more])}"


def describe_archive(info: ArchiveInfo) -> list[tuple[str, str]]:
    """An archive's figures as names and values for people."""
    rows = [
        ("archive", f"{info.url}, format {info.format}, version {info.version}"),
        ("pictures", f"{info.pictures:,}"),
        ("quarantined", f"{info.quarantined:,}" + _counts(info.quarantine_reasons)),
        ("bytes in", size(info.source_bytes)),
        ("bytes stored", f"{size(info.table_bytes)} in {info.files:,} files, and {size(info.codec_bytes)} of codecs"),
    ]
    if info.pictures:
        each = info.table_bytes / info.pictures
        rows += [
            ("bytes a picture", f"{each:,.0f}, {info.metadata_bytes_per_picture:.1f} of them metadata"),
            (
                "ratio",
                f"{info.source_bytes / info.table_bytes:.1f} to 1, {info.ratio:.1f} to 1 with the codecs it carries",
            ),
            ("codecs", _counts(info.codecs)[2:]),
            ("packers", _counts({name or "(none)": count for name, count in info.packers.items()})[2:]),
            ("exact", f"{info.exact:,} pictures"),
        ]
    if info.psnr_mean is not None:
        percentiles = ", ".join(f"{name} %: {value:.2f}" for name, value in info.psnr_percentiles.items())
        rows += [
            ("PSNR", f"mean {info.psnr_mean:.2f} dB, lowest {info.psnr_min:.2f} dB"),
            ("PSNR percentiles", percentiles),
        ]
    if info.ssim_mean is not None:
        rows.append(("SSIM", f"mean {info.ssim_mean:.4f}"))
    return rows


def _counts(counts: dict[Any, int]) -> str:
    return "".join(f", {name} {count:,}" for name, count in counts.items())
