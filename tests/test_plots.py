"""Plots as a person sees them: names that can be read, bars and steps that can be seen."""

from datetime import datetime

import numpy as np
import pytest
from matplotlib.figure import Figure

from compressor import plots
from compressor.strips import Cell, Strip


def test_names_at_lines_can_be_read_on_white_and_apart() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_yscale("log")
    names = [*plots.OTHERS, "mine", "mine too"]
    palette = plots.colours(names, ["mine", "mine too"])
    for n, name in enumerate(names):
        axes.plot([1, 2 + n], [1, 1000 + n], color=palette[name], label=name)
    plots.name_lines(axes)
    shown = {text.get_text(): text for text in axes.texts}
    assert set(shown) == set(names)
    for text in shown.values():
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in text.get_color()]
        assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5, text.get_text()  # WCAG's AA
    heights = sorted(text.get_position()[1] for text in shown.values())
    assert min(np.diff(heights)) > 0.059 and heights[-1] <= 1


def test_a_codecs_name_is_shown_as_it_is() -> None:
    """That of a file, in which dollars are no formula and a line at the front hides nothing."""
    name = r"_$\no$"
    axes = Figure().subplots()
    axes.plot([1, 2], [1, 2], label=name)
    axes.axhline(1)
    plots.name_lines(axes)
    assert [text.get_text() for text in axes.texts] == [name]
    assert plots.png(axes.get_figure())
    assert plots.png(plots.strips([Strip("key", [Cell(name, "3 B", np.zeros((4, 4, 3), np.uint8))])]))


def test_an_archive_of_one_decibel_is_a_bar_and_no_wall() -> None:
    [axes] = plots.quality({"34": 12_345}).axes
    [bar] = axes.patches
    low, high = axes.get_xlim()
    assert bar.get_width() < 0.2 * (high - low) and [text.get_text() for text in axes.texts] == ["12,345"]
    assert all(tick == int(tick) for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_majorticklocs())


def test_what_the_last_commit_brought_has_a_width() -> None:
    days = [datetime(2026, 11, day) for day in (1, 2, 3)]
    for axes in plots.growth(days, [1, 2, 3], [10, 20, 30]).axes:
        x, y = axes.get_lines()[0].get_data()
        assert y[-1] == y[-2] and x[-1] > x[-2]


def test_lines_of_ones_own_are_told_apart_without_colour() -> None:
    looks = plots.own_lines(["V1", "V2", "V3", "V4"])
    for part in ("linestyle", "marker"):
        assert len({str(look[part]) for look in looks.values()}) == 4


@pytest.mark.parametrize(("low", "high", "labels"), [(2e-4, 9e-4, 3), (3e-4, 2e-2, 2)])
def test_a_logarithmic_axis_is_labelled_in_plain_figures(low: float, high: float, labels: int) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_yscale("log")
    plots.plain_figures(axes.yaxis)
    axes.plot([1, 2], [low, high])
    figure.canvas.draw()
    shown = [text.get_text() for which in ("major", "minor") for text in axes.get_yticklabels(which=which)]
    shown = [text for text in shown if text]
    assert len(shown) >= labels and all(float(text) > 0 for text in shown)
