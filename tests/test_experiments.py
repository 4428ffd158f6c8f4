"""Experiments: entropies that are known, verdicts that follow the figures, cells that are split and resumed as said."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks.experiments
from compressor.artifact import identify
from compressor.codec import load_codec
from compressor.destinations import Folder
from compressor.errors import LatentpackError, SourceError
from compressor.experiments.cells import Cell, split, train_cell
from compressor.experiments.figures import CAPTIONS
from compressor.experiments.findings import CONFIRMED, REFUTED, UNCLEAR, findings
from compressor.experiments.information import code_length, inform
from compressor.experiments.losses import LOSSES, ms_ssim
from compressor.experiments.measuring import EXACT, Row, measure
from compressor.experiments.results import Elsewhere, Quantized, Results, Training, Trial, without_exact
from compressor.experiments.tables import description_table, entropy_table, ladder_table
from compressor.experiments.writing import write
from compressor.metrics import psnr
from compressor.training import TrainingConfig
from tests.codecs import smooth_pictures, tiny_codec


def row(packer: str, size: int, level: float, quality: int = -1) -> Row:
    """Four pictures about a mean."""
    mse = 10 ** (-level / 10)
    return Row(
        quality, packer, [size - 1, size, size, size + 1], [level - 0.1, level, level, level + 0.1], 0.9, mse, 1.0
    )


def jpeg() -> list[Row]:
    """1,000 bytes at 25 dB, twice as many for each 5 dB more."""
    return [row("", 1000 * 2**step, 25 + 5 * step, quality) for step, quality in enumerate((10, 50, 75, 95))]


def trial(family: str, size: int, level: float, pictures: int = 500, rate: float = 100.0) -> Trial:
    """A version whose INT8 latents take ``size`` bytes, and FP16 twice that."""
    rows = [row(f"{kind}-{packer}", times * size, level) for kind, times in (("fp32", 4), ("fp16", 2), ("int8", 1))
            for packer in ("none", "gzip", "lzma")]  # fmt: skip
    history = [{"pictures": 30 * rate, "seconds": 30.0, "loss": 0.004}]
    training = Training(pictures, 6000, 100, 6000 / rate, "cpu", "a machine", history)
    everything = pictures == 500
    return Trial(
        family.upper(),
        family,
        1_000_000,
        900_000,
        3_600_000,
        [*rows, row("int8-entropy", size, level)],
        training,
        everything,
    )


def results(*trials: Trial) -> Results:
    context = {"source": "faces", "measured on": "4 pictures", "side": "32 pixels", "each cell": "20 steps"}
    return Results(
        context, list(trials), {"jpeg": jpeg(), "avif": [replace(r, bytes=[b // 2 for b in r.bytes]) for r in jpeg()]}
    )


def verdicts(*trials: Trial) -> dict[str, str]:
    return {one.claim: one.verdict for one in findings(results(*trials))}


def test_entropy_of_independent_symbols_is_theirs() -> None:
    random = np.random.default_rng(0)
    probability = np.array([0.5, 0.25, 0.125, 0.125])
    values = random.choice(4, (64, 2, 16, 16), p=probability)
    assert code_length(values) == pytest.approx(1.75 * 2 * 16 * 16 / 8, rel=0.01)
    for context in ("left", "top", "channel"):
        assert code_length(values, context) == pytest.approx(code_length(values), rel=0.01), "nothing to be learned"


@pytest.mark.parametrize("context, axis", [("left", 3), ("top", 2), ("channel", 1)])
def test_a_neighbour_that_tells_all_leaves_almost_nothing(context: str, axis: int) -> None:
    line = np.random.default_rng(0).integers(0, 8, (64, 8, 8, 8))
    values = np.broadcast_to(np.take(line, [0], axis=axis), line.shape)
    others = {"left", "top", "channel"} - {context}
    assert code_length(values, context) < 0.3 * code_length(values), "an eighth has no neighbour"
    assert all(code_length(values, other) > 0.9 * code_length(values) for other in others)


def test_coarser_steps_trade_bytes_for_error() -> None:
    found = inform(tiny_codec("v2"), smooth_pictures(6))
    assert found is not None and found.symbols == 28 * 4 * 4
    sizes, errors = [p.ideal_bytes for p in found.curve], [p.mse for p in found.curve]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[0]
    assert abs(errors[-1] - errors[0]) > abs(errors[1] - errors[0])


def test_every_packer_of_a_codec_is_measured() -> None:
    codec = tiny_codec("v3")
    rows = measure(codec, smooth_pictures(3))
    assert [one.packer for one in rows] == list(codec.packers)
    by = {one.packer: one for one in rows}
    assert by["fp32-none"].mean_bytes == 2 * by["fp16-none"].mean_bytes == 4 * by["int8-none"].mean_bytes
    assert by["int8-lzma"].psnr == by["int8-entropy"].psnr, "the same symbols"


def test_a_format_whose_qualities_are_all_one_point_tells_nothing_of_others() -> None:
    plain = results(trial("v3", 900, 27))
    flat = replace(plain, standards={**plain.standards, "jpeg": [row("", 300, 45, quality) for quality in (10, 75)]})
    [cells] = ladder_table(flat).rows
    assert "under its worst (45.0 dB)" in cells and "45.00 at its most (300)" in cells


def test_sizes_are_judged_at_equal_quality() -> None:
    assert verdicts(trial("v3", 500, 30))["V3 matches JPEG's sizes"] == CONFIRMED
    assert verdicts(trial("v3", 5000, 30))["V3 matches JPEG's sizes"] == REFUTED
    assert verdicts(trial("v3", 1500, 30))["V3 matches JPEG's sizes"] == UNCLEAR, "FP16 does not, INT8 does"
    assert verdicts(trial("v3", 500, 20))["V3 matches JPEG's sizes"] == UNCLEAR, "JPEG was not measured there"
    assert verdicts(trial("v1", 50_000, 38))["V1's files are far too large"] == CONFIRMED
    assert verdicts(trial("v1", 1000, 38))["V1's files are far too large"] == REFUTED


def test_quality_is_judged_against_its_error() -> None:
    claim = "V1's quality is above JPEG's"  # which is 35 dB at 75
    assert verdicts(trial("v1", 9000, 36))[claim] == CONFIRMED
    assert verdicts(trial("v1", 9000, 34))[claim] == REFUTED
    assert verdicts(trial("v1", 9000, 35))[claim] == UNCLEAR


def test_depth_is_judged_by_bytes_and_by_time() -> None:
    better = [trial("v1", 9000, 35, rate=300), trial("v2", 3000, 30, rate=200), trial("v3", 900, 27, rate=100)]
    worse = [trial("v1", 900, 35, rate=100), trial("v2", 3000, 30, rate=200), trial("v3", 9000, 27, rate=300)]
    assert (verdicts(*better)["deeper is better"], verdicts(*better)["deeper is slower"]) == (CONFIRMED, CONFIRMED)
    assert (verdicts(*worse)["deeper is better"], verdicts(*worse)["deeper is slower"]) == (REFUTED, REFUTED)
    mixed = [better[0], worse[1], better[2]]
    assert verdicts(mixed[0], replace(mixed[1], training=better[0].training), mixed[2])["deeper is slower"] == UNCLEAR


def test_skips_are_judged_by_what_they_cost() -> None:
    claim = "skips show potential"
    assert verdicts(trial("v3", 2000, 30), trial("v4", 2200, 34))[claim] == CONFIRMED
    assert verdicts(trial("v3", 2000, 30), trial("v4", 4000, 31))[claim] == REFUTED


@pytest.mark.parametrize("length", ["20 steps", "2 minutes"])
def test_sentences_say_what_each_cell_had(length: str) -> None:
    found = results(trial("v3", 500, 30, pictures=30), trial("v3", 500, 31), trial("v4", 500, 31))
    sentences = [one.sentence for one in findings(replace(found, context={**found.context, "each cell": length}))]
    assert sum(f"after {length} each" in one for one in sentences) == 2
    assert not any("equal time" in one for one in [*sentences, *CAPTIONS.values()])


def test_what_was_not_measured_is_unclear() -> None:
    assert set(verdicts().values()) == {UNCLEAR}


def test_a_loss_reached_is_told_from_one_given_too_little_time() -> None:
    claim = "V3 trains to a loss of 0.0039 in 250 minutes"
    reached = trial("v3", 500, 30)
    assert reached.training is not None
    reached = replace(
        reached, training=replace(reached.training, history=[{"pictures": 900.0, "seconds": 30.0, "loss": 0.003}])
    )
    assert verdicts(reached)[claim] == CONFIRMED
    assert verdicts(trial("v3", 500, 30))[claim] == UNCLEAR


def test_reported_figures_stand_beside_their_rows() -> None:
    table = ladder_table(results(trial("v3", 500, 30, pictures=30), trial("v3", 500, 30)))
    assert "4.62 KB" in table.rows[0] and "5.8 KB" in table.rows[1]
    assert "8.7 min" in table.rows[1], "52,000 pictures at 100 a second"


def test_break_even_is_where_weights_are_paid_back() -> None:
    table = description_table(results(trial("v3", 1500, 30)))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["overtakes JPEG from"] == "2,000 pictures", "a million bytes at 500 a picture"
    assert cells["overtakes AVIF from"] == "never"


def test_db_lost_are_taken_at_equal_bytes() -> None:
    before = replace(trial("v5", 1, 30), rows=[replace(r, packer="entropy") for r in jpeg()])
    worse = replace(before, rows=[replace(r, psnr=[p - 1 for p in r.psnr]) for r in before.rows])
    assert Quantized(before, "int8", "rounded", worse).lost == pytest.approx(1)
    larger = replace(before, rows=[replace(r, bytes=[round(b * 2**0.2) for b in r.bytes]) for r in before.rows[:-1]])
    assert Quantized(before, "int8", "rounded", larger).lost == pytest.approx(1, abs=0.01)


def test_validation_is_the_same_for_every_number_of_pictures() -> None:
    pictures = np.arange(100, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8)
    few, validated = split(pictures, 10)
    many, also = split(pictures, None)
    assert np.array_equal(validated, also) and (len(few), len(many), len(also)) == (10, 95, 5)
    assert not set(many[:, 0, 0, 0]) & set(also[:, 0, 0, 0])
    with pytest.raises(SourceError, match="there are 95"):
        split(pictures, 96)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str) -> None:
    pictures = np.stack(smooth_pictures(24, 64, 64))
    config = TrainingConfig(steps=60, batch=4, warmup=5, learning_rate=1e-2, optimizer="muon", validate_every=20)
    options = {"widths": [16, 8], "strides": [2, 2]}
    learned = train_cell(Cell("autoencoder", loss=loss, network=options), pictures, config)
    assert learned.state.history[-1]["loss"] < 0.7 * learned.state.history[0]["loss"]
    again = train_cell(Cell("autoencoder", start=identify(learned.data)), pictures, config, start=learned.data)
    assert again.state.history[0]["loss"] < learned.state.history[0]["loss"], "goes on from where it stood"


def test_a_report_holds_what_it_shows(tmp_path: Path) -> None:
    found = results(trial("v1", 9000, 35), trial("v3", 900, 27))
    written = write(found, [], tmp_path / "report")
    page = written.html.read_text()
    assert (
        'src="data:image/svg+xml' in page
        and 'src="/' not in page
        and "http://" not in page.replace("http://www.w3", "")
    )
    assert re.search(r"<h1>Of 11 claims: \d+ confirmed, .*\d+ unclear</h1>", page)
    assert "headed <em>reported</em> are" in page and "*reported*" not in page
    text = written.markdown.read_text()
    assert "| V1's files are far too large | confirmed |" in text
    assert len(json.loads(written.json.read_text())["findings"]) == len(written.findings)


def test_a_report_is_written_though_the_server_does_not_show_it(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def refuse(*_: object, key: str, **__: object) -> None:
        tries.append(key)
        raise ConnectionError("no server")

    monkeypatch.setattr(tasks.experiments, "create_markdown_artifact", refuse)
    monkeypatch.setattr(tasks.experiments, "create_table_artifact", refuse)
    found = results(trial("v1", 9000, 35), trial("v3", 900, 27))
    assert Path(tasks.experiments.report(found, {}, [], Folder(tmp_path / "report"))["report"]).exists()
    assert tries == ["experiments", "experiments-ladder"]


def test_the_rate_is_that_of_the_fastest_stretch():
    history = [{"pictures": 100.0, "seconds": 10.0, "loss": 1.0}, {"pictures": 400.0, "seconds": 20.0, "loss": 0.9}]
    training = Training(10, 400, 100, 60.0, "cpu", "a machine", history)
    assert training.rate == 30.0
    assert replace(training, history=[]).rate == pytest.approx(400 / 60)


def test_structure_is_judged_in_full_precision_whatever_the_training_runs_in():
    pictures = torch.from_numpy(np.stack(smooth_pictures(2, 128, 128))).permute(0, 3, 1, 2) / 255
    near = (pictures + 0.01 * torch.sin(torch.arange(128.0))).clamp(0, 1)
    exact = ms_ssim(near, pictures)
    with torch.autocast("cpu", torch.bfloat16):
        assert ms_ssim(near, pictures) == exact
    assert ms_ssim(pictures, pictures) == pytest.approx(1.0, abs=1e-5)
    assert 0.5 < float(exact) < 1.0


def test_fine_tuning_never_ends_below_its_start() -> None:
    pictures = np.stack(smooth_pictures(24))
    start = train_cell(Cell("v1"), pictures, TrainingConfig(steps=60, batch=4, warmup=5, learning_rate=1e-2)).data
    before = measure(load_codec(start), list(pictures))[0].mse
    harmful = TrainingConfig(steps=4, batch=2, warmup=1, learning_rate=0.5, validate_every=1)
    after = train_cell(Cell("v1", start=identify(start)), pictures, harmful, start)
    assert min(one["loss"] for one in after.state.history) > before
    assert after.data == start


def test_structure_is_judged_on_pictures_of_any_side_that_trains() -> None:
    for side in (32, 64, 160):
        a = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        assert ms_ssim(a, a) == pytest.approx(1) and ms_ssim(a, a.flip(-1)) < 0.9


def test_constant_latents_and_exact_pictures_are_reported() -> None:
    black = [np.zeros((32, 32, 3), np.uint8)] * 2
    found = inform(tiny_codec("v2"), black)
    assert found is not None and all(np.isfinite(point.psnr) for point in found.curve)
    assert inform(tiny_codec("v2"), black[:1]) is None, "one picture tells nothing of others"
    silent = replace(found, entropy=dict.fromkeys(found.entropy, 0.0))
    table = entropy_table(results(replace(trial("v2", 500, 30), information=silent)))
    assert table.rows[0][-1] == "–"


def with_picture(trial_or_rows, size: int, level: float):
    """A fifth picture beside the four."""
    if isinstance(trial_or_rows, Trial):
        return replace(trial_or_rows, rows=with_picture(trial_or_rows.rows, size, level))
    return [replace(r, bytes=[*r.bytes, size], psnr=[*r.psnr, level]) for r in trial_or_rows]


def test_a_picture_that_one_codec_stores_exactly_counts_for_none() -> None:
    plain = results(trial("v1", 9000, 36), trial("v3", 900, 27))
    place = Elsewhere("tiles", 4, plain.ladder, {"jpeg": jpeg()})
    plain = replace(
        plain, quantized=[Quantized(plain.ladder[0], "int8", "rounded", plain.ladder[0])], elsewhere=[place]
    )
    blank = [with_picture(one, 500, 45.0) for one in plain.ladder]
    standards = {"jpeg": with_picture(jpeg(), 300, EXACT), "avif": with_picture(plain.standards["avif"], 90, 60.0)}
    mixed = replace(
        plain,
        ladder=blank,
        standards=standards,
        quantized=[Quantized(blank[0], "int8", "rounded", blank[0])],
        elsewhere=[Elsewhere("tiles", 5, blank, {"jpeg": standards["jpeg"]})],
    )
    assert findings(mixed) != findings(plain)
    found = without_exact(mixed)
    assert replace(found, context=plain.context) == plain == without_exact(plain)
    assert found.context["left out of bytes and PSNR"].startswith("1 picture of those measured on")
    exact = replace(plain, standards={"jpeg": [replace(r, psnr=[EXACT] * 4) for r in jpeg()]})
    with pytest.raises(LatentpackError, match="stores every picture there exactly"):
        without_exact(exact)


def test_steps_that_store_a_picture_exactly_are_not_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, pictures = tiny_codec("v2"), smooth_pictures(4)
    blank = np.full_like(pictures[0], 77)
    expected = inform(codec, pictures)
    monkeypatch.setattr(
        "compressor.experiments.information.psnr", lambda a, b: np.inf if (a == 77).all() else psnr(a, b)
    )
    mixed = inform(codec, [*pictures, blank])
    assert mixed is not None and expected is not None and mixed.curve == expected.curve
    assert mixed.entropy != expected.entropy
    alone = inform(codec, [blank, blank])
    assert alone is not None and alone.curve == []


def test_what_jpeg_cannot_be_held_against_decides_nothing() -> None:
    worse = [trial("v1", 5000, 19), trial("v2", 2000, 15), trial("v3", 700, 12)]
    assert verdicts(*worse)["deeper is better"] == UNCLEAR
    assert verdicts(trial("v3", 2000, 30), trial("v4", 2001, 30))["skips show potential"] == UNCLEAR
