"""Figures of the experiments' report: rate and distortion, squared error by bits, description length, training."""

from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.experiments.results import Results, Trial
from compressor.plots import STYLE, colours, name_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "rate": "PSNR by bytes. A version's line: its INT8 latents ever more coarsely quantised, under an ideal coder.",
    "error": "Mean squared error by bits: straight lines where a bit more divides it by a constant.",
    "length": "Bytes a picture of weights and latents together, by the number of pictures that share the weights; "
    "dotted: JPEG at that PSNR.",
    "training": "Squared error on pictures not trained on, by time; the most pictures.",
    "ladder": "What more pictures gain: squared error on pictures not trained on; the settings say how long each was "
    "trained.",
}
_GIVEN = ("#009E73", "#A34E86", "#8B5A2B")  # like no version
_STANDARD = {"jpeg": "JPEG", "avif": "AVIF"}


def draw(results: Results) -> "dict[str, Figure]":
    """Figures by the names of ``CAPTIONS``; those that there is nothing for are left out."""
    figures = {
        "rate": _rate(results),
        "error": _error(results),
        "length": _length(results),
        "training": _training(results),
        "ladder": _ladder(results),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _axes(title: str, x: str, y: str, log_y: bool = True) -> "tuple[Figure, Axes]":
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log" if log_y else "linear")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def _palette(results: Results) -> dict[str, str]:
    names = [trial.name for trial in results.tops]
    return colours([*names, *_STANDARD.values()], names)


def _standards(results: Results, axes: "Axes", palette: dict[str, str]) -> None:
    for name, title in _STANDARD.items():
        rows = results.standards[name]
        sizes, levels = [row.mean_bytes for row in rows], [row.mean_psnr for row in rows]
        axes.plot(sizes, levels, color=palette[title], linewidth=1.6, label=title)


def _rate(results: Results) -> "Figure":
    figure, axes = _axes("Rate and distortion", "bytes a picture (logarithmic)", "PSNR, dB", log_y=False)
    palette = _palette(results)
    _standards(results, axes, palette)
    for trial in results.tops:
        curve = trial.information.curve if trial.information else []
        if curve:
            x, y = [point.ideal_bytes for point in curve], [point.psnr for point in curve]
        else:
            x, y = [row.mean_bytes for row in trial.usual], [row.mean_psnr for row in trial.usual]
        axes.plot(x, y, color=palette[trial.name], linewidth=2.4, marker="o", markersize=3.5, label=trial.name)
    for number, trial in enumerate(results.given):
        rows = trial.usual
        axes.plot(
            [row.mean_bytes for row in rows], [row.mean_psnr for row in rows], linewidth=2.4,
            color=_GIVEN[number % len(_GIVEN)], marker="o", markersize=3.5,
            linestyle=(0, (4, 1.5)), label=f"{trial.name}, given",
        )  # fmt: skip
    axes.set_ylim(14, 44)
    name_lines(axes)
    return figure


def _error(results: Results) -> "Figure":
    figure, axes = _axes("Squared error by bits", "bits a pixel (logarithmic)", "mean squared error (logarithmic)")
    palette = _palette(results)
    pixels = int(results.context["side"].split()[0]) ** 2
    for name, title in _STANDARD.items():
        rows = results.standards[name]
        bits = [8 * row.mean_bytes / pixels for row in rows]
        axes.plot(bits, [row.mse for row in rows], color=palette[title], linewidth=1.6, label=title)
    for trial in results.tops:
        curve = trial.information.curve if trial.information else []
        bits = [8 * point.ideal_bytes / pixels for point in curve]
        axes.plot(bits, [point.mse for point in curve], color=palette[trial.name], linewidth=2.4, label=trial.name)
    name_lines(axes)
    return figure


def _length(results: Results) -> "Figure | None":
    figure, axes = _axes("Description length", "pictures (logarithmic)", "bytes a picture (logarithmic)")
    palette = _palette(results)
    pictures = np.geomspace(10, 1e6, 60)
    shown = False
    lines: list[tuple[Trial, str, str, Any]]
    lines = [(one, one.name, palette[one.name], "solid") for one in results.tops]
    lines += [
        (one, f"{one.name}, given", _GIVEN[n % len(_GIVEN)], (0, (4, 1.5))) for n, one in enumerate(results.given)
    ]
    for trial, label, colour, style in lines:
        row = trial.row()
        if row is None:
            continue
        shown = True
        whole = trial.artifact_bytes / pictures + row.mean_bytes
        axes.plot(pictures, whole, color=colour, linestyle=style, label=label)
        jpeg = results.rates("jpeg").rate_at(row.mean_psnr)
        if jpeg is not None:
            axes.axhline(jpeg, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xticks([10, 1_000, 100_000])  # more do not fit beside each other
    name_lines(axes)
    return figure if shown else None


def _training(results: Results) -> "Figure | None":
    figure, axes = _axes("Training", "seconds (logarithmic)", "mean squared error (logarithmic)")
    palette = _palette(results)
    shown = False
    for trial in results.tops:
        history = trial.training.history if trial.training else []
        if history and "psnr" in history[0]:  # V1 to V4: their loss is the squared error
            x, y = [row["seconds"] for row in history], [row["loss"] for row in history]
            axes.plot(x, y, color=palette[trial.name], linewidth=2.4, marker="o", markersize=3, label=trial.name)
            shown = True
    if shown:
        name_lines(axes)
    return figure if shown else None


def _ladder(results: Results) -> "Figure | None":
    figure, axes = _axes("Number of pictures", "pictures trained on (logarithmic)", "mean squared error (logarithmic)")
    palette = colours(results.families, results.families)
    for family in results.families:
        points = [
            (trial.training.pictures, row.mse)
            for trial in results.ladder
            if trial.family == family and trial.training and (row := trial.row())
        ]
        x, y = zip(*sorted(points), strict=True) if points else ((), ())
        axes.plot(x, y, color=palette[family], linewidth=2.4, marker="o", markersize=4, label=family.upper())
    name_lines(axes)
    return figure if len({t.training.pictures for t in results.ladder if t.training}) > 1 else None
