"""Figures of a comparison and how far other pictures would move them, on tables whose answer is known."""

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from compressor.bootstrap import FEWEST, half_width, resamplings
from compressor.comparison import DRAWS, bd_table, curves, drawn_curves, equal_psnr_tables
from compressor.report import SCHEMA

QUALITIES = np.arange(6)


def table_of(bytes_CN: dict[str, np.ndarray]) -> pa.Table:
    """Codecs over qualities of 2 dB each; a picture takes its bytes at the first, and half as much more at each."""
    rows = [
        {
            "codec": codec,
            "quality": quality,
            "key": f"{picture:04d}",
            "bytes": round(first * 1.5**quality),
            "payload_bytes": round(first * 1.5**quality) - 20,
            "psnr": 30.0 + 2 * quality,
            "psnr_luma": 31.0 + 2 * quality,
            "ssim": 1 - 10 ** -(1 + quality / 5),
        }
        for codec, first_N in bytes_CN.items()
        for quality in QUALITIES.tolist()
        for picture, first in enumerate(first_N)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def rates(table: pa.Table) -> dict[str, str]:
    compared = bd_table(curves(table), drawn_curves(table), ["other"], ["mine"])
    return dict(zip(compared.columns[1:], compared.rows[0][1:], strict=True))


def test_what_makes_a_picture_hard_for_both_widens_no_interval() -> None:
    hard_N = np.random.default_rng(1).integers(1_000, 900_000, 40).astype(float)
    table = table_of({"mine": 0.8 * hard_N, "other": hard_N})
    found = rates(table.take(np.random.default_rng(4).permutation(table.num_rows)))
    assert found["PSNR"] == found["PSNR of luma"] == found["SSIM"] == "−20.0 ± 0.0 %"


def test_an_interval_is_as_wide_as_pictures_scatter() -> None:
    mine_N = 80_000 * (1 + 0.25 * np.random.default_rng(2).standard_normal(50)).clip(0.1)
    found = rates(table_of({"mine": mine_N, "other": np.full(50, 100_000.0)}))["PSNR"]
    [width] = re.findall(r"± ([\d.]+) %", found)
    assert float(width) == pytest.approx(1.96 * mine_N.std() / 1_000 / 50**0.5, rel=0.15)


def test_of_a_hundred_intervals_some_95_hold_the_mean() -> None:
    weights_DN, random = resamplings(50, DRAWS), np.random.default_rng(3)
    samples = random.gamma(4.0, 1 / 4, (400, 50))  # their mean is 1
    held = [abs(one.mean() - 1) <= half_width(weights_DN @ one) for one in samples]
    assert 0.91 <= np.mean(held) <= 0.97


def with_columns(table: pa.Table, **changed: Callable[[dict], float]) -> pa.Table:
    """The table with other values of some columns in the rows of ``mine``."""
    rows = [
        row | {name: value(row) for name, value in changed.items() if row["codec"] == "mine"}
        for row in table.to_pylist()
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def test_each_figure_is_of_its_own_metric_and_bytes() -> None:
    same = table_of({"mine": np.full(20, 10_000.0), "other": np.full(20, 10_000.0)})
    better = with_columns(
        same,
        psnr_luma=lambda row: row["psnr_luma"] + 2,  # at a third fewer bytes
        payload_bytes=lambda row: row["payload_bytes"] / 2,
        bytes=lambda row: row["bytes"] * (0.5 + 0.1 * row["quality"]),
        ssim=lambda row: row["ssim"],
    )
    found = {name: float(cell.split()[0].replace("−", "-")) for name, cell in rates(better).items() if cell != "–"}
    assert found["PSNR, payload"] == -50.0
    assert found["PSNR"] == pytest.approx(100 * np.expm1(-0.3069), abs=0.3)
    assert found["SSIM"] == found["PSNR"], "in dB both are as far from one quality to the next"
    assert found["PSNR of luma"] < found["PSNR"] - 20


def test_a_picture_whose_luma_a_codec_stores_exactly_is_left_out_of_lumas_figures_alone() -> None:
    table = table_of({"mine": np.linspace(8_000, 80_000, 20), "other": np.linspace(10_000, 100_000, 20)})
    plain = with_columns(table, psnr_luma=lambda row: np.inf if row["key"] == "0003" else row["psnr_luma"])
    assert rates(plain) == rates(table)
    found = curves(plain)["other"]
    assert np.all(np.isfinite(found.psnr_luma)) and np.all(found.luma_bytes > found.bytes), "a small one is missing"


@pytest.mark.parametrize("pictures", [1, FEWEST - 1, FEWEST])
def test_of_few_pictures_no_interval_is_told(pictures: int) -> None:
    table = table_of({"mine": np.full(pictures, 8_000.0), "other": np.full(pictures, 10_000.0)})
    found, drawn = curves(table), drawn_curves(table)
    told = " ± 0.0" if pictures >= FEWEST else ""
    assert rates(table)["PSNR"] == f"−20.0{told} %"
    shares = equal_psnr_tables(found, drawn, ["other"], ["mine"])[1]
    assert shares.rows == [["mine", *[f"80{told[:-2]} %"] * 5]]
    assert ("bootstrap" if told else f"fewer than {FEWEST} pictures") in shares.note
