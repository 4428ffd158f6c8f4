"""The results as tables of text. What is reported stands beside what is measured, and says so."""

from collections.abc import Sequence

import numpy as np

from compressor.comparison import Table, count, percent
from compressor.experiments.findings import Finding
from compressor.experiments.measuring import Row, rate_curve
from compressor.experiments.reported import FINAL_MSE, MANY, PACKED, reported
from compressor.experiments.results import Results, Trial
from compressor.metrics import RateCurve

ARCHIVES = (30, 300, 3_000, MANY, 1_000_000)  # pictures: sizes of archive that description lengths are given for


def findings_table(found: Sequence[Finding]) -> Table:
    """Claims and verdicts."""
    rows = [[one.claim, one.verdict, one.sentence] for one in found]
    note = "A difference counts where it exceeds twice its standard error over the pictures measured (given after ±)."
    return Table("Findings", note, ["claimed", "is", "measured"], rows)


def ladder_table(results: Results) -> Table:
    """One row for each version and number of pictures."""
    rows = []
    for trial in results.ladder:
        best, training = trial.row(), trial.training
        if best is None or training is None:
            continue
        said = reported(trial.family, training.pictures, trial.everything)
        plain = trial.row("fp16-none") or best
        reached = training.seconds_to(FINAL_MSE)
        rows.append(
            [
                trial.family.upper(),
                f"{training.pictures:,}{' (all)' if trial.everything else ''}",
                count(plain.mean_bytes),
                f"{said.encoded:g} KB" if said else "–",
                count(best.mean_bytes),
                count(best.png_bytes),
                f"{said.decoded:g} KB" if said else "–",
                f"{best.mean_psnr:.2f}",
                f"{best.ssim:.4f}",
                f"{best.mse:.5f}",
                jpeg_bytes(results.rates("jpeg"), best.mean_psnr),
                jpeg_psnr(results.rates("jpeg"), best.mean_bytes),
                f"{training.seconds / 60:.1f} min",
                f"{training.rate:,.0f}",
                f"{MANY / training.rate / 60:.1f} min",
                f"{said.minutes:g} min" if said else "–",
                f"{reached / 60:.1f} min" if reached else "not reached",
            ]
        )
    note = (
        "Means over pictures not trained on. KB and minutes in columns headed *reported* are what the experiments "
        f"said, for 30 pictures and, beside the row of all pictures, for {MANY:,}. Quality is that of INT8 latents. "
        "JPEG: whole files, interpolated between qualities. Pictures a second are those of the fastest stretch between "
        "two validations; one pass is extrapolated from that; over how many passes the reported minutes went is not "
        "known."
    )
    columns = [
        "version", "pictures", "FP16 latents, bytes", "reported", "INT8, entropy coded, bytes", "decoded PNG, bytes",
        "reported", "PSNR, dB", "SSIM", "MSE", "JPEG at this PSNR, bytes", "JPEG at these bytes, dB", "trained for",
        "pictures/s", f"one pass of {MANY:,}, extrapolated", "reported", f"time to MSE {FINAL_MSE}",
    ]  # fmt: skip
    return Table("Versions by number of pictures", note, columns, rows)


def packers_table(results: Results) -> Table:
    """Bytes of every type of latents and packer, a column for each."""
    names = list(dict.fromkeys(row.packer for trial in results.ladder for row in trial.rows))
    rows = []
    for trial in results.ladder:
        found = {name: trial.row(name) for name in names}
        label = f"{trial.family.upper()}, {trial.training.pictures:,}" if trial.training else trial.name
        rows.append([label, *(count(row.mean_bytes) if row else "–" for row in found.values())])
    said = [f"{PACKED['v3', name]:g} KB" if ("v3", name) in PACKED else "–" for name in names]
    rows.append(["V3, reported", *said])
    note = "Bytes a picture. *none* is the latents as they are; quality depends on the type alone and is below."
    return Table("Types of latents and packers", note, ["version, pictures", *names], rows)


def types_table(results: Results) -> Table:
    """Quality by type of latents."""
    kinds = ("fp32-none", "fp16-none", "int8-none")
    rows = []
    for trial in results.ladder:
        found = [trial.row(kind) for kind in kinds]
        if trial.training and all(found):
            cells = [f"{row.mean_psnr:.3f} dB, {row.mse:.5f}" for row in found if row]
            rows.append([f"{trial.family.upper()}, {trial.training.pictures:,}", *cells])
    columns = ["version, pictures", *(f"{kind.split('-')[0].upper()}: PSNR, MSE" for kind in kinds)]
    return Table("Quality by type of latents", "Means over pictures not trained on.", columns, rows)


def jpeg_bytes(rates: RateCurve, level: float) -> str:
    """JPEG's bytes at a PSNR, or on which side of all its qualities that is."""
    size = rates.rate_at(level)
    if size is not None:
        return count(size)
    return f"under its worst ({rates.low:.1f} dB)" if level < rates.low else f"over its best ({rates.high:.1f} dB)"


def jpeg_psnr(rates: RateCurve, size: float) -> str:
    """JPEG's PSNR at so many bytes, or on which side of all its sizes that is."""
    level = rates.quality_at(size)
    if level is not None:
        return f"{level:.2f}"
    largest = rates.rates[-1]
    return f"{rates.high:.2f} at its most ({count(largest)})" if size > largest else "no file so small"


def entropy_table(results: Results) -> Table:
    """Entropies of stored integers beside what packers take."""
    rows = []
    for trial in [*results.tops, *results.given]:
        found = trial.information
        if found is None:
            continue
        sizes = {row.packer.split("-")[-1]: row.mean_bytes for row in _int8(trial, found.quality)}
        zero, best = found.entropy["none"], min(found.entropy.values())
        rows.append(
            [
                trial.name,
                f"{found.symbols:,}",
                *(count(found.entropy[name]) for name in ("none", "left", "top", "channel")),
                *(_over(sizes.get(name), zero) for name in ("gzip", "lzma", "entropy")),
                percent(1 - best / zero, ".1f") if zero else "–",
            ]
        )
    note = (
        "Bytes a picture of INT8 latents (hyperlatents and residuals of V5 and V6, at their middle quality): "
        "what an ideal coder takes with one table for each channel, and with one for each channel and value of a "
        "neighbour. Cross-entropy between halves of the pictures, so that what is learned is not charged to itself. "
        "Packers: bytes, and how far from the first."
    )
    columns = [
        "codec", "integers", "zero order", "given left", "given top", "given the channel before", "gzip", "LZMA",
        "entropy coder", "best context saves",
    ]  # fmt: skip
    return Table("Entropy of the latents", note, columns, rows)


def _int8(trial: Trial, quality: int) -> list[Row]:
    rows = [row for row in trial.rows if row.quality == quality]
    return [row for row in rows if row.packer.startswith("int8-") or "-" not in row.packer]


def _over(size: float | None, ideal: float) -> str:
    if size is None:
        return "–"
    return f"{size:,.0f} ({percent(size / ideal - 1, '+.1f')})" if ideal else f"{size:,.0f}"


def description_table(results: Results) -> Table:
    """Weights and latents together, by the number of pictures; where they come to less than JPEG and AVIF."""
    rows = []
    smaller = [one.trial for one in results.quantized if one.kind == "int8" and one.method == "calibrated"]
    for trial in [*results.tops, *results.given, *smaller]:
        row = trial.row()
        if row is None:
            continue
        cells = [trial.name, f"{trial.artifact_bytes / 1e6:.2f} MB", count(row.mean_bytes), f"{row.mean_psnr:.2f}"]
        cells += [count(trial.artifact_bytes / pictures + row.mean_bytes) for pictures in ARCHIVES]
        for name in ("jpeg", "avif"):
            cells.append(_overtakes(trial, row, results.rates(name)))
        rows.append(cells)
    note = (
        "Bytes a picture of everything a reader needs: the codec's file shared by all pictures, and each picture's "
        "payload. A codec overtakes a format where its whole comes to less at equal PSNR; *never* where its payload "
        "alone is larger."
    )
    columns = [
        "codec", "file", "payload", "PSNR, dB", *(f"{pictures:,} pictures" for pictures in ARCHIVES),
        "overtakes JPEG from", "overtakes AVIF from",
    ]  # fmt: skip
    return Table("Description length: weights and latents", note, columns, rows)


def _overtakes(trial: Trial, row: Row, rates: RateCurve) -> str:
    size = rates.rate_at(row.mean_psnr)
    if size is None:
        return "not measured there"
    saved = size - row.mean_bytes
    return f"{trial.artifact_bytes / saved:,.0f} pictures" if saved > 0 else "never"


def quantized_table(results: Results) -> Table:
    """Weights in fewer bits."""
    rows = []
    for one in results.quantized:
        row = one.trial.row()
        if row is None:
            continue
        rows.append(
            [
                one.of.name,
                f"{one.kind.upper()}, {one.method}",
                f"{one.trial.weight_bytes:,}",
                percent(one.trial.weight_bytes / one.trial.full_bytes, ".1f"),
                f"{one.trial.artifact_bytes:,}",
                count(row.mean_bytes),
                f"{row.mean_psnr:.2f}",
                "–" if one.lost is None else f"{one.lost:+.3f}",
            ]
        )
    note = (
        "INT8: a scale for each output channel. INT4: one for about 64 weights, depthwise layers as INT8. *Rounded*: "
        "to the nearest; *calibrated*: scales by least output error, errors passed on from weight to weight (OPTQ), on "
        "training pictures. Integer networks, which pick entropy tables, keep every integer. dB lost: at equal bytes "
        "over all qualities for codecs that have several, else the difference of PSNR."
    )
    columns = ["codec", "weights", "weights, bytes", "of FP32", "file, bytes", "bytes a picture", "PSNR, dB", "dB lost"]
    return Table("Weights in fewer bits", note, columns, rows)


def ablations_table(results: Results) -> Table:
    """One change each."""
    rows = []
    for trial in results.ablations:
        row, training = trial.row(), trial.training
        if row is None or training is None:
            continue
        size = results.rates("jpeg").rate_at(row.mean_psnr)
        rows.append(
            [
                trial.name,
                trial.about,
                f"{trial.full_bytes / 1e6:.2f} MB",
                count(row.mean_bytes),
                f"{row.mean_psnr:.2f}",
                f"{row.ssim:.4f}",
                f"{row.mse:.5f}",
                "–" if size is None else f"{row.mean_bytes / size:.2f}",
                _coarse(trial, 1000),
                f"{training.rate:,.0f}",
            ]
        )
    note = (
        "Each trained on all pictures, with half of the steps or the time of a cell of the ladder. *At 1,000 bytes*: "
        "latents quantised so coarsely that an ideal coder takes 1,000 bytes a picture, interpolated."
    )
    columns = [
        "network", "what differs", "weights", "INT8, entropy coded, bytes", "PSNR, dB", "SSIM", "MSE",
        "of JPEG's bytes", "PSNR at 1,000 bytes", "pictures/s",
    ]  # fmt: skip
    return Table("Layers and losses", note, columns, rows)


def _coarse(trial: Trial, size: float) -> str:
    """PSNR where coarser INT8 latents come to ``size`` bytes."""
    points = sorted((p.ideal_bytes, p.psnr) for p in trial.information.curve) if trial.information else []
    if not points or not points[0][0] <= size <= points[-1][0]:
        return "–"
    sizes, levels = zip(*points, strict=True)
    return f"{np.interp(np.log(size), np.log(sizes), levels):.2f} dB"


def elsewhere_table(results: Results) -> Table:
    """Codecs on pictures of other kinds."""
    rows = []
    for place in results.elsewhere:
        rates = rate_curve(place.standards["jpeg"])
        for trial in place.trials:
            row = trial.row()
            if row is None:
                continue
            size = rates.rate_at(row.mean_psnr)
            rows.append(
                [
                    f"{place.name} ({place.pictures})",
                    trial.name,
                    count(row.mean_bytes),
                    f"{row.mean_psnr:.2f}",
                    f"{row.ssim:.4f}",
                    jpeg_bytes(rates, row.mean_psnr),
                    "–" if size is None else f"{row.mean_bytes / size:.2f}",
                ]
            )
    note = (
        "Measured on every second picture; fine-tuned, with half of a cell's steps or time, on the others. Tiles of "
        "one photograph are in both halves, so fine-tuning shows what a codec gains on pictures much like those it "
        "knows."
    )
    columns = ["pictures", "codec", "bytes", "PSNR, dB", "SSIM", "JPEG at this PSNR, bytes", "of JPEG's bytes"]
    return Table("Other pictures", note, columns, rows)
