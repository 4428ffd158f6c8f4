"""Figures of a report: rate-distortion plots and strips of pictures. Takes what was measured; measures nothing.

Colours are Okabe and Ito's, told apart without colour too (dashes, markers, names at the lines).
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.comparison import Curve

if TYPE_CHECKING:
    from datetime import datetime

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from compressor.strips import Strip

OURS = ("#D55E00", "#E69F00")  # vermilion, orange
OTHERS = {"JPEG": "#6B7280", "WebP": "#009E73", "AVIF": "#0072B2", "AVIF 4:4:4": "#56B4E9", "JPEG XL": "#A34E86"}
_SPARE = ("#3B3B3B", "#7A0019")
_DASHES = {
    "JPEG": (0, (1, 1)), "WebP": (0, (4, 1.5)), "AVIF": "solid", "AVIF 4:4:4": (0, (7, 1.5)),
    "JPEG XL": (0, (5, 1, 1, 1)),
}  # fmt: skip
_OUR_DASHES = ("solid", (0, (6, 1.2)), (0, (2.5, 1)), (0, (8, 1, 1.5, 1)))
_OUR_MARKERS = ("o", "s", "^", "D", "X", "P", "v")  # more than dashes or colours: not all start over together
_INK = "#1F2933"
_DPI = 144
_CELL, _GAP, _LINE = 288, 12, 36  # pixels of a strip's PNG: a picture at most, between two, a line under one
_LETTERS = 15  # points: to be read where a page shows a strip at a third of its size
_BYTE_TICKS = [m * 10**e for e in range(1, 8) for m in (1, 2, 5)]
STYLE: dict[Any, Any] = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": _INK, "axes.labelcolor": _INK,
    "xtick.color": "#52606D", "ytick.color": "#52606D", "axes.edgecolor": "#CBD2D9", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E7EB", "grid.linewidth": 0.8,
    "axes.axisbelow": True, "svg.fonttype": "path",
}  # fmt: skip
METRICS = {
    "psnr": ("PSNR, dB", (27.0, 41.0)),
    "ssim": ("SSIM", (0.80, 1.0)),
    "ssimulacra2": ("SSIMULACRA 2", (20.0, 95.0)),
}
"""Title of each metric and the range worth showing: below it nobody stores pictures, above it nobody sees more."""


def colours(codecs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """A colour for each codec, the same in every figure."""
    own = iter([*OURS, *_SPARE] * len(codecs))
    spare = iter(_SPARE * len(codecs))
    return {name: next(own) if name in ours else OTHERS.get(name) or next(spare) for name in codecs}


def own_lines(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the line of each codec of one's own is drawn: dashes of four kinds, markers of seven."""
    return {
        name: {"linestyle": _OUR_DASHES[n % len(_OUR_DASHES)], "marker": _OUR_MARKERS[n % len(_OUR_MARKERS)]}
        for n, name in enumerate(names)
    }


def plain_figures(axis: "Axis") -> None:
    """Label a logarithmic axis in plain figures, where it is short between its powers of ten too."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    class Minor(LogFormatter):
        """Which of the ticks between powers of ten have a label is as usual."""

        def __call__(self, value: float, position: int | None = None) -> str:
            return f"{value:,.10g}" if super().__call__(value, position) else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(Minor(labelOnlyBase=False))


def rate_distortion(found: dict[str, Curve], metric: str, rate: str, ours: Sequence[str]) -> "Figure | None":
    """One metric over bytes per picture (logarithmic), a line for each codec with its name at the end.

    ``rate`` is ``bytes`` or ``payload_bytes``. None where the metric was measured for no codec.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    title, (low, high) = METRICS[metric]
    shown = {name: _points(curve, metric, rate, low, high) for name, curve in found.items()}
    shown = {name: points for name, points in shown.items() if len(points[0])}
    if not shown:
        return None
    palette, own = colours(list(found), ours), own_lines(ours)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, (x, y) in shown.items():
            look: dict[str, Any] = (
                {"markersize": 4.5, "linewidth": 3.2, "zorder": 3} if name in own else {"markersize": 2.5}
            )
            look |= own.get(name) or {"marker": "o", "linestyle": _DASHES.get(name, "solid")}
            if len(x) == 1:
                look |= {"marker": "D", "markersize": 8}
            axes.plot(x, y, color=palette[name], label=name, **look)
        axes.set_xscale("log")
        everything = np.concatenate([x for x, _ in shown.values()])
        axes.set_xlim(everything.min() * 0.9, everything.max() * 1.25)
        axes.xaxis.set_major_locator(FixedLocator(_BYTE_TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(f"{'payload ' if rate == 'payload_bytes' else ''}bytes per picture (logarithmic)")
        axes.set_title(title + (" by payload" if rate == "payload_bytes" else ""), loc="left", fontweight="bold")
        name_lines(axes, ours)
    return figure


def growth(at: "Sequence[datetime]", pictures: Sequence[int], stored: Sequence[int]) -> "Figure":
    """Pictures and bytes of an archive after each commit, one above the other."""
    import matplotlib as mpl
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    after = at[-1] + (at[-1] - at[0]) / 40  # or what the last commit brought would be a line without width
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        for one, values, title, colour in (
            (axes[0], pictures, "pictures", OTHERS["AVIF"]),
            (axes[1], stored, "bytes stored", OURS[0]),
        ):
            one.step([*at, after], [*values, values[-1]], where="post", color=colour, linewidth=2)
            one.fill_between([*at, after], [*values, values[-1]], step="post", color=colour, alpha=0.15)
            one.set_ylim(bottom=0)
            one.set_ylabel(title)
        axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].yaxis.set_major_formatter(EngFormatter(unit="B"))
        axes[1].set_xlabel("UTC")
        dates = AutoDateLocator(minticks=3, maxticks=8)
        axes[1].xaxis.set_major_locator(dates)
        axes[1].xaxis.set_major_formatter(ConciseDateFormatter(dates))
    return figure


def quality(histogram: Mapping[str, int]) -> "Figure":
    """How many pictures are stored at which PSNR, in whole decibels rounded down."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    levels = [int(db) for db in histogram]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.6), layout="constrained")
        axes = figure.subplots()
        bars = axes.bar(levels, list(histogram.values()), 0.9, align="edge", color=OTHERS["WebP"])
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
        # Most archives have nearly all in one decibel: its bar is no wall.
        axes.set_xlim(min(levels) - 1, max(max(levels), min(levels) + 6) + 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("PSNR, dB")
        axes.set_ylabel("pictures")
    return figure


def training(history: "Sequence[Mapping[str, float]]") -> "Figure":
    """Loss in training and in validation (logarithmic) over steps, and under them PSNR in dB where it was measured.

    Each has a scale of its own: the two losses are taken at other quality steps.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    steps = [row["step"] for row in history]
    with_psnr = all("psnr" in row for row in history)
    with mpl.rc_context(STYLE):
        shown = [("train_loss", "training loss", OTHERS["JPEG"]), ("loss", "validation loss", OURS[0])]
        shown += [("psnr", "validation PSNR, dB", OURS[0])] * with_psnr
        figure = Figure(figsize=(7.5, 2.1 * len(shown)), layout="constrained")
        for axes, (name, title, colour) in zip(figure.subplots(len(shown), 1, sharex=True), shown, strict=True):
            axes.plot(steps, [row[name] for row in history], color=colour, linewidth=2)
            if name != "psnr":
                axes.set_yscale("log")
                plain_figures(axes.yaxis)
            axes.set_ylabel(title)
        figure.axes[-1].set_xlabel("step")
    return figure


def strips(strips: "Sequence[Strip]", ours: Sequence[str] = ()) -> "Figure":
    """Pictures side by side, a row a strip, with bytes and dB under each.

    Each pixel is a square of whole pixels in :func:`png`, as many as fit a cell.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = max(len(strip.cells) for strip in strips)
    longest = max(max(cell.pixels.shape[:2]) for strip in strips for cell in strip.cells)
    side = longest * max(1, _CELL // longest)
    lines = [[[cell.codec, *cell.caption.split(" · ")] for cell in strip.cells] for strip in strips]
    below = 20 + _LINE * max(len(one) for strip in lines for one in strip)
    width, height = columns * (side + _GAP) + _GAP, len(strips) * (side + below) + _GAP
    with mpl.rc_context(STYLE):
        # Half a pixel more, or rounding may take one off.
        figure = Figure(figsize=((width + 0.5) / _DPI, (height + 0.5) / _DPI), dpi=_DPI)
        for row, strip in enumerate(strips):
            for column, cell in enumerate(strip.cells):
                left, bottom = _GAP + column * (side + _GAP), height - (row + 1) * side - row * below - _GAP
                axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
                axes.set_axis_off()
                high, wide = cell.pixels.shape[:2]
                axes.imshow(cell.pixels, interpolation="nearest", extent=(0, wide, high, 0))
                axes.set(xlim=(0, longest), ylim=(longest, 0))
                weight = "bold" if cell.codec in ours else "normal"
                axes.text(
                    0.5, -0.03, "\n".join(lines[row][column]), fontsize=_LETTERS, fontweight=weight, ha="center",
                    va="top", parse_math=False, transform=axes.transAxes,
                )  # fmt: skip
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, "png", dpi=_DPI)


def svg(figure: "Figure") -> bytes:
    """The figure as an SVG file."""
    return _saved(figure, "svg")


def _saved(figure: "Figure", kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    # No date: the same figures give the same file.
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return file.getvalue()


def _points(curve: Curve, metric: str, rate: str, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = getattr(curve, rate), getattr(curve, metric)
    keep = np.isfinite(y) & (y >= low) & (y <= high)
    return x[keep], y[keep]


def name_lines(axes: "Axes", strong: Sequence[str] = ()) -> None:
    """Each line's label in the right margin, in the order of the lines' ends and led to them, none over another."""
    from matplotlib.colors import to_hex

    to_fraction = axes.transData + axes.transAxes.inverted()
    low, high = axes.get_ylim()
    ends = []
    for line in axes.get_lines():
        points = np.asarray(line.get_xydata(), float)
        points = points[(points[:, 1] >= low) & (points[:, 1] <= high)]
        name = str(line.get_label())
        if len(points) and not name.startswith("_child"):  # as lines are called that have no name
            end = points[np.argmax(points[:, 0])]
            ends.append((float(to_fraction.transform(end)[1]), tuple(end), name, to_hex(line.get_color())))
    ends.sort()
    for position, (_, end, name, colour) in zip(_apart([end[0] for end in ends], 0.06, 1.0), ends, strict=True):
        axes.annotate(
            name, end, xytext=(1.03, position), textcoords="axes fraction", va="center", color=_legible(colour),
            annotation_clip=False, parse_math=False, fontweight="bold" if name in strong else "normal",
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.7, "shrinkA": 1, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _legible(colour: str) -> tuple[float, ...]:
    """A line's colour dark enough for letters on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.6 * part for part in to_rgb(colour))


def _apart(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Rising ``values`` moved as little as leaves ``gap`` between neighbours and none above ``top``."""
    placed = list(values)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
