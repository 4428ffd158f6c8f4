"""From measured pictures to what a report says: curves, bytes at equal quality, BD-rates, a headline. Pure functions.

Nothing is measured, drawn or written here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compressor.bootstrap import FEWEST, half_width, resamplings
from compressor.defaults import TARGET_PSNR
from compressor.errors import LatentpackError
from compressor.metrics import RateCurve
from compressor.wording import number

LEVELS = (30.0, 32.0, 34.0, 36.0, 38.0)  # dB
_TWO_WORDS = re.compile(r"[^\W\d_]{2,} [^\W\d_]{2,}")
DRAWS = 200  # a half-width is then known to a twentieth of itself


@dataclass(frozen=True)
class Curve:
    """Means over pictures of one codec, a value for each quality, worst first (float64).

    ``bytes`` and ``payload_bytes`` are per picture, ``psnr`` and ``psnr_luma`` in dB, ``encode_s`` and ``decode_s``
    medians in seconds a picture; a metric that was not measured is NaN. SSIMULACRA 2, which is slow, may be of some
    pictures alone, and PSNR of luma is of those whose luma no codec stores exactly; ``ssimulacra2_bytes`` and
    ``luma_bytes`` are those of the same pictures.
    """

    codec: str
    quality: np.ndarray
    bytes: np.ndarray
    payload_bytes: np.ndarray
    psnr: np.ndarray
    psnr_luma: np.ndarray
    ssim: np.ndarray
    ms_ssim: np.ndarray
    ssimulacra2: np.ndarray
    ssimulacra2_bytes: np.ndarray
    luma_bytes: np.ndarray
    encode_s: np.ndarray
    decode_s: np.ndarray
    decoded_png_bytes: np.ndarray
    _interpolated: dict[tuple[str, str], RateCurve] = field(default_factory=dict, repr=False)

    @property
    def ssim_db(self) -> np.ndarray:
        """SSIM in dB of what is missing to 1: evenly spaced steps of quality, where SSIM crowds at its upper end."""
        with np.errstate(divide="ignore", invalid="ignore"):  # of 1, and of 1 that was rounded up
            return -10 * np.log10(1 - self.ssim)

    def at(self, metric: str, value: float, rate: str = "bytes") -> float | None:
        """Bytes at this value of a metric, interpolated; None outside what was measured or with a single quality."""
        return self.over(metric, rate).rate_at(value)

    def over(self, metric: str, rate: str = "bytes") -> RateCurve:
        """Bytes over a metric."""
        if (metric, rate) not in self._interpolated:
            self._interpolated[metric, rate] = RateCurve(getattr(self, rate), getattr(self, metric))
        return self._interpolated[metric, rate]

    def nearest(self, psnr: float) -> int:
        """Index of the quality whose mean PSNR is nearest."""
        return int(np.argmin(np.abs(self.psnr - psnr)))


@dataclass(frozen=True)
class Table:
    """One table of a report, as text. ``strong`` holds the rows to emphasise."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    strong: frozenset[int] = frozenset()

    def in_words(self, column: int) -> bool:
        """Whether a column is read, not compared: no cell of it is a figure, or most are of several words."""
        cells = [row[column] for row in self.rows]
        several = sum(1 for cell in cells if _TWO_WORDS.search(cell))
        return all(cell[:1].isalpha() for cell in cells) or 2 * several > len(cells)


@dataclass(frozen=True)
class Headline:
    """What a report says first, about ``codec``.

    ``bars``: every codec that reaches ``level`` dB and its bytes per picture there, fewest first.
    """

    codec: str
    text: str
    detail: str
    level: float
    bars: list[tuple[str, float]]


def without_exact(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Rows of the pictures that means can be taken of, and the keys of the others.

    A picture that a codec stores exactly has no PSNR there that a mean could hold, and counted for that codec alone it
    would bend the comparison: it is left out of all codecs. Whoever stores every picture exactly, at the only quality
    there is, says nothing of any of them.

    Raises
    ------
    LatentpackError
        No picture is left.
    """
    found = _exact(table, "psnr")
    keys = table["key"].to_pylist()
    kept = table.filter(pa.array([key not in found for key in keys], pa.bool_()))
    if not kept.num_rows:
        raise LatentpackError(
            "there is nothing to compare: every picture measured is so plain that some codec stores it exactly; "
            "measure pictures of the kind that is to be archived"
        )
    return kept, [key for key in dict.fromkeys(keys) if key in found]


def _exact(table: pa.Table, metric: str) -> set[str]:
    """Keys of pictures that some codec stores exactly by a metric, but not of one that stores all of them so."""
    codec, keys = np.array(table["codec"].to_pylist()), np.array(table["key"].to_pylist())
    quality, exact = table["quality"].to_numpy(), np.isinf(table[metric].to_numpy().astype(np.float64))
    found: set[str] = set()
    for name in np.unique(codec):
        mine = codec == name
        if not (exact[mine].all() and len(np.unique(quality[mine])) == 1):
            found.update(keys[mine & exact].tolist())
    return found


def curves(table: pa.Table) -> dict[str, Curve]:
    """Curve of each codec of a table written by :func:`compressor.report.measure`, in the table's order.

    Of rows that :func:`without_exact` has left.
    """
    [found] = _curves(table, lambda pictures: np.full((1, pictures), 1 / pictures))
    return found


def drawn_curves(table: pa.Table) -> list[dict[str, Curve]]:
    """The same of pictures drawn anew from the table's, :data:`DRAWS` times; none of too few pictures to tell."""
    return _curves(table, lambda pictures: resamplings(pictures, DRAWS if pictures >= FEWEST else 0))


def _curves(table: pa.Table, weighting: Callable[[int], np.ndarray]) -> list[dict[str, Curve]]:
    """Curves of weighted means, for each row of the weights (draws, pictures)."""
    names = dict.fromkeys(table["codec"].to_pylist())
    by_quality = table.sort_by([("quality", "ascending"), ("key", "ascending")])
    plain_luma = _exact(table, "psnr_luma")
    found: list[dict[str, Curve]] = []
    for name in names:
        mine = by_quality.filter(pc.field("codec") == name)
        quality = np.unique(mine["quality"].to_numpy()).astype(np.float64)
        values_QN = {
            key: mine[key].to_numpy().astype(np.float64).reshape(len(quality), -1)
            for key in mine.column_names
            if key not in ("codec", "key", "quality")
        }
        is_plain = np.array([key in plain_luma for key in mine["key"].to_pylist()]).reshape(len(quality), -1)
        values_QN["psnr_luma"] = np.where(is_plain, np.nan, values_QN["psnr_luma"])
        for metric, name_of_bytes in (("ssimulacra2", "ssimulacra2_bytes"), ("psnr_luma", "luma_bytes")):
            values_QN[name_of_bytes] = np.where(np.isnan(values_QN[metric]), np.nan, values_QN["bytes"])
        weights_DN = weighting(values_QN["bytes"].shape[1])
        found = found or [{} for _ in weights_DN]
        medians = {key: np.median(values, axis=1) for key, values in values_QN.items() if key.endswith("_s")}
        means_DQ = {key: _means(values, weights_DN) for key, values in values_QN.items() if key not in medians}
        for draw, curve in enumerate(found):
            curve[name] = Curve(name, quality, **{key: means[draw] for key, means in means_DQ.items()}, **medians)
    return found


def _means(values_QN: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Weighted means (draws, qualities) of those pictures that a metric was measured on; NaN where there is none."""
    known = ~np.isnan(values_QN)
    with np.errstate(invalid="ignore"):  # nothing of nothing; and of what is infinite
        return (weights_DN @ np.where(known, values_QN, 0).T) / (weights_DN @ known.T)


def equal_psnr_tables(
    found: dict[str, Curve], drawn: Sequence[dict[str, Curve]], anchors: Sequence[str], ours: Sequence[str]
) -> list[Table]:
    """Mean bytes per picture at equal mean PSNR, by file and by payload, and their shares of each anchor's."""
    columns = ["codec", *(f"{level:.0f} dB" for level in LEVELS)]
    rows: list[list[str]] = []
    strong: set[int] = set()
    for name, curve in _curved(found):
        for kind, rate in (("file", "bytes"), ("payload", "payload_bytes")):
            if name in ours:
                strong.add(len(rows))
            rows.append([f"{name}, {kind}", *(count(curve.at("psnr", level, rate)) for level in LEVELS)])
    note = (
        "Mean bytes per picture where the mean PSNR over all pictures (RGB) is the column's, interpolated between "
        "measured qualities. Payload leaves out what every file repeats: headers, boxes, and of a JPEG its tables."
    )
    tables = [Table("Bytes per picture at equal PSNR", note, columns, rows, frozenset(strong))]
    for anchor in anchors:
        rows, strong = [], set()
        for name, _ in _curved(found):
            if name == anchor:
                continue
            if name in ours:
                strong.add(len(rows))
            rows.append([name, *(_cell(_share, found, drawn, anchor, name, level) for level in LEVELS)])
        if rows:
            note = f"{anchor}'s file is 100 %.{_interval_note(drawn)}"
            tables.append(Table(f"Share of {anchor}'s bytes at equal PSNR", note, columns, rows, frozenset(strong)))
    return tables


def bd_table(
    found: dict[str, Curve], drawn: Sequence[dict[str, Curve]], anchors: Sequence[str], tested: Sequence[str]
) -> Table:
    """BD-rate of each tested codec against each anchor, by every measure, of files and of payloads."""
    kinds = (
        ("PSNR", "psnr", "bytes"),
        ("PSNR of luma", "psnr_luma", "luma_bytes"),
        ("SSIM", "ssim_db", "bytes"),
        ("SSIMULACRA 2", "ssimulacra2", "ssimulacra2_bytes"),
        ("PSNR, payload", "psnr", "payload_bytes"),
    )
    rows: list[list[str]] = []
    for test in tested:
        for anchor in anchors:
            if anchor == test:
                continue
            cells = [_cell(_bd, found, drawn, anchor, test, metric, rate) for _, metric, rate in kinds]
            rows.append([f"{test} against {anchor}", *cells])
    note = (
        "Bjontegaard's mean difference of bytes at equal quality, over the range that both codecs reach; below zero is "
        "fewer bytes. A dash: no shared range. SSIM counts in dB of what is missing to 1. "
        "SSIMULACRA 2 is of the pictures that it was measured on, and so are its bytes. It has no lower bound: one "
        f"picture of noise, which scores far below 0, can outweigh all others in its mean.{_interval_note(drawn)}"
    )
    return Table("BD-rate", note, ["codec", *(title for title, _, _ in kinds)], rows)


def speed_table(found: dict[str, Curve], ours: Sequence[str]) -> Table:
    """One quality of each codec, the one nearest to the usual level: sizes, all metrics, pictures per second."""
    rows = []
    for name, curve in found.items():
        i = curve.nearest(TARGET_PSNR)
        rows.append(
            [
                name,
                *_point(curve, i),
                rate(curve.encode_s[i]),
                rate(curve.decode_s[i]),
                count(curve.decoded_png_bytes[i]),
            ]
        )
    strong = frozenset(i for i, name in enumerate(found) if name in ours)
    columns = [*_POINT_COLUMNS, "encoded/s", "decoded/s", "decoded as PNG, bytes"]
    note = f"Each codec at the measured quality nearest to {TARGET_PSNR:.0f} dB. Speeds are pictures per second."
    return _without_empty(Table("Speed, and the size of what is decoded", note, columns, rows, strong))


def points_table(found: dict[str, Curve]) -> Table:
    """Every measured point."""
    rows = [[name, *_point(curve, i)] for name, curve in found.items() for i in range(len(curve.quality))]
    return _without_empty(Table("All measured points", _MEANS, list(_POINT_COLUMNS), rows))


def headline(
    found: dict[str, Curve],
    anchors: Sequence[str],
    ours: Sequence[str],
    pictures: int,
    left_out: int = 0,
    notes: Sequence[str] = (),
) -> Headline:
    """The first of ``ours`` against the anchors at the usual level, or at the nearest one that it reaches.

    Without one of ours, the standard codec that takes the fewest bytes. ``pictures`` are those that means are of,
    ``left_out`` those that :func:`without_exact` has left out; ``notes`` are more sentences to say of them.
    """
    others = "".join(f" {note}" for note in notes)
    if left_out:
        others += (
            f" {number(left_out, 'picture')} left out of every figure: what some codec stores exactly has no PSNR."
        )
    levels = sorted(LEVELS, key=lambda level: abs(level - TARGET_PSNR))
    subject = ours[0] if ours else None
    level = next((v for v in levels if subject is None or found[subject].at("psnr", v) is not None), TARGET_PSNR)
    own: float | None = None
    if subject is not None:
        own = found[subject].at("psnr", level)
        if own is None:  # one quality only, or a range between two levels
            point = found[subject].nearest(TARGET_PSNR)
            level, own = float(found[subject].psnr[point]), float(found[subject].bytes[point])
    bars = {name: size for name, curve in found.items() if (size := curve.at("psnr", level)) is not None}
    if subject is not None and own is not None:
        bars[subject] = own
    ranked = sorted(bars.items(), key=lambda bar: bar[1])
    if not ranked:
        return Headline(
            "", "No codec was measured over a range of quality", f"{number(pictures, 'picture')}.{others}", level, []
        )
    subject = subject or ranked[0][0]
    against = {
        name: _beside(bars[subject], bars[name], name)
        for name in sorted((name for name in anchors if name in bars and name != subject), key=lambda name: bars[name])
    }
    exact = not np.isfinite(level)
    detail = f"Mean over {number(pictures, 'picture')}" + ("" if exact else f" at a mean PSNR of {level:.4g} dB")
    detail += f": {', '.join(against.values())}." if against else "."
    payloads = {name: size for name in against if (size := found[name].at("psnr", level, "payload_bytes"))}
    mine = found[subject].at("psnr", level, "payload_bytes")
    if payloads and mine:
        nearest = min(payloads, key=lambda name: payloads[name])
        detail += f" By payload, without what every file repeats, {_beside(mine, payloads[nearest], nearest)}."
    detail += others
    said = "stored exactly" if exact else f"at {level:.4g} dB"
    text = ", ".join([f"{subject}: {count(bars[subject])} bytes a picture {said}", *list(against.values())[:1]])
    return Headline(subject, text, detail, level, ranked)


def _beside(mine: float, theirs: float, name: str) -> str:
    return f"{percent(abs(1 - mine / theirs))} {'fewer' if mine <= theirs else 'more'} than {name}"


def count(value: float | None) -> str:
    """A whole number with thousands separated; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:,.0f}"


def percent(share: float, form: str = ".0f") -> str:
    """A share in percent.

    >>> percent(0.31), percent(-0.364, "+.1f")
    ('31 %', '−36.4 %')
    """
    return f"{100 * share:{form}} %".replace("-", "−")  # as wide as a plus, so that columns stand


def rate(seconds: float) -> str:
    """Pictures per second with three digits that count."""
    if not seconds > 0:
        return "–"
    per_second = 1 / seconds
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


_MEANS = "Means over all pictures; of MS-SSIM and SSIMULACRA 2 over those that they were measured on."
_POINT_COLUMNS = ("codec", "quality", "file, bytes", "payload, bytes", "PSNR, dB", "SSIM", "MS-SSIM", "SSIMULACRA 2")


def _without_empty(table: Table) -> Table:
    """Without columns that hold nothing but dashes: MS-SSIM of small pictures, SSIMULACRA 2 of none."""
    kept = [n for n in range(len(table.columns)) if any(row[n] != "–" for row in table.rows)]
    columns = [table.columns[n] for n in kept]
    return replace(table, columns=columns, rows=[[row[n] for n in kept] for row in table.rows])


def _point(curve: Curve, i: int) -> list[str]:
    quality = curve.quality[i]
    return [
        "–" if quality < 0 else f"{quality:.0f}",
        count(curve.bytes[i]),
        count(curve.payload_bytes[i]),
        "exact" if np.isinf(curve.psnr[i]) else f"{curve.psnr[i]:.2f}",
        f"{curve.ssim[i]:.4f}",
        "–" if np.isnan(curve.ms_ssim[i]) else f"{curve.ms_ssim[i]:.4f}",
        "–" if np.isnan(curve.ssimulacra2[i]) else f"{curve.ssimulacra2[i]:.1f}",
    ]


def _curved(found: dict[str, Curve]) -> list[tuple[str, Curve]]:
    return [(name, curve) for name, curve in found.items() if len(curve.quality) > 1]


def _share(anchor: Curve, test: Curve, level: float) -> float | None:
    size, base = test.at("psnr", level), anchor.at("psnr", level)
    return None if size is None or base is None else size / base


def _bd(anchor: Curve, test: Curve, metric: str, rate_name: str) -> float | None:
    try:
        return anchor.over(metric, rate_name).bd_rate(test.over(metric, rate_name)) / 100
    except ValueError:
        return None


def _cell(
    figure: Callable[..., float | None],
    found: dict[str, Curve],
    drawn: Sequence[dict[str, Curve]],
    anchor: str,
    test: str,
    *of: object,
) -> str:
    """A figure of two curves in percent, and half the interval that it spreads over where pictures are drawn anew."""
    value = figure(found[anchor], found[test], *of)
    if value is None:
        return "–"
    form = ".0f" if figure is _share else "+.1f"
    spread = half_width(figure(draw[anchor], draw[test], *of) for draw in drawn)
    return percent(value, form) if np.isnan(spread) else f"{percent(value, form)[:-2]} ± {percent(spread, form[-3:])}"


def _interval_note(drawn: Sequence[dict[str, Curve]]) -> str:
    if not drawn:
        return f" Of fewer than {FEWEST} pictures no interval can be told."
    return f" After ±: half of the 95 % interval for other pictures of this kind ({len(drawn)} bootstrap draws)."
