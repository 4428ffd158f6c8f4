"""Figures of the experiments' report: rate and distortion, squared error by bits, description length, training."""

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.experiments.results import Results, Trial
from compressor.plots import OTHERS, STYLE, colours, name_lines, own_lines, plain_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "rate": "PSNR by bytes. A version's line: its INT8 latents ever more coarsely quantised, under an ideal coder.",
    "error": "Mean squared error by bits: straight lines where a bit more divides it by a constant.",
    "length": "Bytes a picture of weights and latents together, by the number of pictures that share the weights; "
    "dotted: JPEG at the PSNR of the smallest.",
    "training": "Squared error on pictures not trained on, by time; the most pictures.",
    "ladder": "What more pictures gain: squared error on pictures not trained on; the settings say how long each was "
    "trained.",
}
_GIVEN = (("#009E73", "v"), ("#A34E86", "P"), ("#8B5A2B", "X"))  # like no version
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

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        plain_figures(axes.xaxis)
        if log_y:
            axes.set_yscale("log")
            plain_figures(axes.yaxis)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def _looks(results: Results) -> dict[str, dict[str, Any]]:
    """How the line of each version, standard and given codec is drawn, by its label."""
    names = [trial.name for trial in results.tops]
    looks = _own_looks(names)
    looks |= {name: {"color": OTHERS[name], "linewidth": 1.6} for name in _STANDARD.values()}
    for number, trial in enumerate(results.given):
        colour, marker = _GIVEN[number % len(_GIVEN)]
        looks[_given(trial)] = {"color": colour, "linewidth": 2.4, "markersize": 5, "marker": marker, "linestyle": "--"}
    return looks


def _own_looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    palette = colours(names, names)
    return {
        name: {"color": palette[name], "linewidth": 2.4, "markersize": 4, **look}
        for name, look in own_lines(names).items()
    }


def _given(trial: Trial) -> str:
    return f"{trial.name}, given"


def _rate(results: Results) -> "Figure":
    figure, axes = _axes("Rate and distortion", "bytes a picture (logarithmic)", "PSNR, dB", log_y=False)
    looks = _looks(results)
    for name, title in _STANDARD.items():
        standard = results.standards[name]
        sizes, levels = [row.mean_bytes for row in standard], [row.mean_psnr for row in standard]
        axes.plot(sizes, levels, **looks[title], label=title)
    for trial in results.tops:
        curve = trial.information.curve if trial.information else []
        if curve:
            x, y = [point.ideal_bytes for point in curve], [point.psnr for point in curve]
        else:
            x, y = [row.mean_bytes for row in trial.usual], [row.mean_psnr for row in trial.usual]
        axes.plot(x, y, **looks[trial.name], label=trial.name)
    for trial in results.given:
        x, y = [row.mean_bytes for row in trial.usual], [row.mean_psnr for row in trial.usual]
        axes.plot(x, y, **looks[_given(trial)], label=_given(trial))
    axes.set_ylim(14, 44)
    name_lines(axes)
    return figure


def _error(results: Results) -> "Figure":
    figure, axes = _axes("Squared error by bits", "bits a pixel (logarithmic)", "mean squared error (logarithmic)")
    looks = _looks(results)
    pixels = int(results.context["side"].split()[0]) ** 2
    for name, title in _STANDARD.items():
        rows = results.standards[name]
        bits = [8 * row.mean_bytes / pixels for row in rows]
        axes.plot(bits, [row.mse for row in rows], **looks[title], label=title)
    for trial in results.tops:
        curve = trial.information.curve if trial.information else []
        bits = [8 * point.ideal_bytes / pixels for point in curve]
        axes.plot(bits, [point.mse for point in curve], **looks[trial.name], label=trial.name)
    name_lines(axes)
    return figure


def _length(results: Results) -> "Figure | None":
    figure, axes = _axes("Description length", "pictures (logarithmic)", "bytes a picture (logarithmic)")
    looks = _looks(results)
    pictures = np.geomspace(10, 1e6, 61)
    shown = False
    for trials, naming in ((results.tops, attrgetter("name")), (results.given, _given)):
        last: dict[str, tuple[float, float]] = {}  # bytes and PSNR by label
        for trial in trials:
            row = trial.row()
            if row is None:
                continue
            shown = True
            label = naming(trial)
            whole = trial.artifact_bytes / pictures + row.mean_bytes
            axes.plot(pictures, whole, **looks[label], markevery=12, label=label)
            last[label] = (whole[-1], row.mean_psnr)
        if last:
            best = min(last, key=lambda name: last[name])
            jpeg = results.rates("jpeg").rate_at(last[best][1])
            if jpeg is not None:
                look = looks["JPEG"] | {"color": looks[best]["color"], "linestyle": (0, (1, 2))}
                axes.plot(pictures, np.full_like(pictures, jpeg), **look, label=f"JPEG, PSNR of {best}")
    axes.set_xticks([10, 1_000, 100_000])  # more do not fit beside each other
    name_lines(axes)
    return figure if shown else None


def _training(results: Results) -> "Figure | None":
    figure, axes = _axes("Training", "seconds (logarithmic)", "mean squared error (logarithmic)")
    looks = _looks(results)
    shown = False
    for trial in results.tops:
        history = trial.training.history if trial.training else []
        if history and "psnr" in history[0]:  # V1 to V4: their loss is the squared error
            x, y = [row["seconds"] for row in history], [row["loss"] for row in history]
            axes.plot(x, y, **looks[trial.name], label=trial.name)
            shown = True
    if shown:
        name_lines(axes)
    return figure if shown else None


def _ladder(results: Results) -> "Figure | None":
    figure, axes = _axes("Number of pictures", "pictures trained on (logarithmic)", "mean squared error (logarithmic)")
    looks = _own_looks(results.families)
    for family in results.families:
        points = [
            (trial.training.pictures, row.mse)
            for trial in results.ladder
            if trial.family == family and trial.training and (row := trial.row())
        ]
        x, y = zip(*sorted(points), strict=True) if points else ((), ())
        axes.plot(x, y, **looks[family], label=family.upper())
    name_lines(axes)
    return figure if len({t.training.pictures for t in results.ladder if t.training}) > 1 else None
