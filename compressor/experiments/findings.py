"""What the experiments claimed, held against what was measured: confirmed, refuted or unclear, in a sentence each.

Every verdict follows from figures alone. A difference counts where it exceeds twice its standard error over the
pictures measured, each cell trained once; what lies within that, or was not measured, is unclear.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compressor.experiments.measuring import Row
from compressor.experiments.reported import FINAL_MINUTES, FINAL_MSE
from compressor.experiments.results import Results, Trial

CONFIRMED, REFUTED, UNCLEAR = "confirmed", "refuted", "unclear"
MATCHES = 1.25  # times the bytes, up or down, that still count as the same size
TRAINED = 1.5  # times the error reported: what has more was trained too little to be judged
HARDLY_MORE = 1.01  # times as many bytes say nothing
MINIMAL = 0.1  # dB: a loss under it is not seen
USUAL_JPEG = 75  # the quality that programs write JPEG files with unless told otherwise


@dataclass(frozen=True)
class Finding:
    """One claim, and what the figures say."""

    claim: str
    verdict: str
    sentence: str


def findings(results: Results) -> list[Finding]:
    """All claims that the results hold figures for."""
    tests: list[tuple[str, Callable[[Results], tuple[str, str]]]] = [
        ("V1's quality is above JPEG's", _v1_quality),
        ("V1's files are far too large", _v1_size),
        ("V3 matches JPEG's sizes", _v3_size),
        ("deeper is better", _deeper_better),
        ("deeper is slower", _deeper_slower),
        ("LZMA packs smaller than gzip", _lzma),
        ("INT8 latents cost minimal loss", _int8),
        ("skips show potential", _skips),
        ("V4's final loss is V3's", _skips_loss),
        (f"V3 trains to a loss of {FINAL_MSE} in {FINAL_MINUTES} minutes", _final_loss),
        ("more pictures make it better", _more_pictures),
    ]
    return [Finding(claim, *test(results)) for claim, test in tests]


def _missing(*families: str) -> tuple[str, str]:
    return UNCLEAR, f"Not measured: it needs {' and '.join(name.upper() for name in families)} in the ladder."


def _difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """Mean of a - b over the same pictures, and twice its standard error."""
    values = np.array(a) - np.array(b)
    return float(values.mean()), float(2 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def _sign(difference: float, error: float) -> str:
    return UNCLEAR if abs(difference) <= error else CONFIRMED if difference > 0 else REFUTED


def _v1_quality(results: Results) -> tuple[str, str]:
    trial = results.best("v1")
    row = trial.row("fp16-none") if trial else None
    if row is None:
        return _missing("v1")
    jpeg = min(results.standards["jpeg"], key=lambda one: abs(one.quality - USUAL_JPEG))
    difference, error = _difference(row.psnr, jpeg.psnr)
    verdict = _sign(difference, error)
    if verdict == REFUTED and row.mse > TRAINED * FINAL_MSE:  # worse than V3 was said to be: too little training
        verdict = UNCLEAR
    return verdict, (
        f"V1 reaches {row.mean_psnr:.2f} dB in {row.mean_bytes:,.0f} bytes, JPEG at its usual quality {jpeg.quality} "
        f"{jpeg.mean_psnr:.2f} dB in {jpeg.mean_bytes:,.0f}: a difference of {difference:+.2f} ± {error:.2f} dB."
    )


def _v1_size(results: Results) -> tuple[str, str]:
    trial = results.best("v1")
    row = trial.row("fp16-none") if trial else None
    if row is None:
        return _missing("v1")
    ratio, sentence = _against_jpeg(results, row, "V1 (FP16, unpacked)")
    return (UNCLEAR if ratio is None else CONFIRMED if ratio > MATCHES else REFUTED), sentence


def _v3_size(results: Results) -> tuple[str, str]:
    trial = results.best("v3")
    row = trial.row("fp16-lzma") if trial else None
    small = trial.row("int8-entropy") if trial else None
    if trial is None or row is None or small is None:
        return _missing("v3")
    ratio, sentence = _against_jpeg(results, row, f"{trial.name} (FP16, LZMA)")
    smaller, more = _against_jpeg(results, small, "with INT8 and the entropy coder it")
    sentence = f"{sentence[:-1]}; {more}"
    if ratio is None or smaller is None:
        return UNCLEAR, sentence
    if row.mse > TRAINED * FINAL_MSE:
        return (
            UNCLEAR,
            f"{sentence[:-1]}, but it stands at an error of {row.mse:.4f}, far from the {FINAL_MSE} reported.",
        )
    if ratio <= MATCHES:
        return CONFIRMED, sentence
    return (UNCLEAR if smaller <= MATCHES else REFUTED), sentence


def _against_jpeg(results: Results, row: Row, name: str) -> tuple[float | None, str]:
    """How many times JPEG's bytes at equal PSNR a row takes, and the sentence that says so.

    Below JPEG's worst quality it is at least so many times: JPEG's smallest files are better than that.
    """
    jpeg = results.rates("jpeg")
    size, least = jpeg.rate_at(row.mean_psnr), ""
    if size is None and row.mean_psnr < jpeg.low:
        size, least = float(jpeg.rates[0]), f", which has {jpeg.low:.1f} dB"
    if size is None:
        return None, f"{name} reaches {row.mean_psnr:.2f} dB, more than JPEG at its best."
    ratio = row.mean_bytes / size
    times = f"more than {ratio:.2f} times JPEG's smallest" if least else f"{ratio:.2f} times JPEG's"
    return ratio, f"{name} takes {row.mean_bytes:,.0f} bytes for {row.mean_psnr:.2f} dB, {times} {size:,.0f}{least}."


def _is_bound(results: Results, row: Row) -> bool:
    """Whether what :func:`_against_jpeg` says of a row is a lower bound, which tells nothing beside another."""
    return row.mean_psnr < results.rates("jpeg").low


def _depths(results: Results) -> list[Trial]:
    return [trial for family in ("v1", "v2", "v3") if (trial := results.top(family))]


def _deeper_better(results: Results) -> tuple[str, str]:
    trials = _depths(results)
    ratios = [_against_jpeg(results, row, "")[0] for trial in trials if (row := trial.row())]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(trials) < 3:
        return _missing("v1", "v2", "v3")
    if len(known) < 3:
        return UNCLEAR, "One of them is better than JPEG at its best, so that there are no bytes to compare with."
    if any(_is_bound(results, row) for trial in trials if (row := trial.row())):
        return UNCLEAR, "One of them is worse than JPEG at its worst, so that there are no bytes to compare with."
    names = ", ".join(f"{trial.name} {ratio:.2f}" for trial, ratio in zip(trials, known, strict=True))
    falls = all(a > b for a, b in zip(known, known[1:], strict=False))
    rises = all(a < b for a, b in zip(known, known[1:], strict=False))
    return (CONFIRMED if falls else REFUTED if rises else UNCLEAR), (
        f"Bytes of INT8 latents under the entropy coder as multiples of JPEG's at equal PSNR: {names}."
    )


def _deeper_slower(results: Results) -> tuple[str, str]:
    rates = [(trial.name, trial.training.rate) for trial in _depths(results) if trial.training]
    if len(rates) < 3:
        return _missing("v1", "v2", "v3")
    falls = all(a > b for (_, a), (_, b) in zip(rates, rates[1:], strict=False))
    rises = all(a < b for (_, a), (_, b) in zip(rates, rates[1:], strict=False))
    figures = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates)
    return (CONFIRMED if falls else REFUTED if rises else UNCLEAR), f"Pictures trained on a second: {figures}."


def _lzma(results: Results) -> tuple[str, str]:
    trial = results.top("v3")
    gzip, lzma = (trial.row(f"fp16-{packer}") if trial else None for packer in ("gzip", "lzma"))
    if gzip is None or lzma is None:
        return _missing("v3")
    difference, error = _difference([float(size) for size in gzip.bytes], [float(size) for size in lzma.bytes])
    return _sign(difference, error), (
        f"V3's FP16 latents take {gzip.mean_bytes:,.0f} bytes with gzip and {lzma.mean_bytes:,.0f} with LZMA, "
        f"{difference:,.0f} ± {error:,.0f} fewer."
    )


def _int8(results: Results) -> tuple[str, str]:
    pairs = [
        (trial.name, full.mean_psnr - small.mean_psnr)
        for family in results.families
        if (trial := results.top(family)) and (full := trial.row("fp16-none")) and (small := trial.row("int8-none"))
    ]
    if not pairs:
        return _missing("v3")
    worst = max(lost for _, lost in pairs)
    figures = ", ".join(f"{name} {lost:.3f}" for name, lost in pairs)
    return (CONFIRMED if worst < MINIMAL else REFUTED), f"dB lost from FP16 to INT8: {figures}."


def _skips(results: Results) -> tuple[str, str]:
    plain, skipping = results.top("v3"), results.top("v4")
    a, b = (trial.row() if trial else None for trial in (plain, skipping))
    if a is None or b is None:
        return _missing("v3", "v4")
    ours, theirs = _against_jpeg(results, b, "")[0], _against_jpeg(results, a, "")[0]
    difference, error = _difference(b.psnr, a.psnr)
    sentence = (
        f"V4 is {difference:+.2f} ± {error:.2f} dB from V3 and takes {b.mean_bytes:,.0f} bytes instead of "
        f"{a.mean_bytes:,.0f}"
    )
    if ours is None or theirs is None:
        return UNCLEAR, sentence + "; one of them is better than JPEG at its best."
    if _is_bound(results, a) or _is_bound(results, b):
        return UNCLEAR, sentence + "; one of them is worse than JPEG at its worst."
    better = ours < theirs and difference > error
    worse = ours > HARDLY_MORE * theirs
    return (CONFIRMED if better else REFUTED if worse else UNCLEAR), (
        f"{sentence}: {ours:.2f} times JPEG's bytes at equal PSNR, V3 {theirs:.2f} times."
    )


def _skips_loss(results: Results) -> tuple[str, str]:
    rows = [trial.row("fp32-none") if trial else None for trial in (results.top("v3"), results.top("v4"))]
    if rows[0] is None or rows[1] is None:
        return _missing("v3", "v4")
    difference, error = _difference(rows[1].psnr, rows[0].psnr)
    same, other = abs(difference) + error < MINIMAL, abs(difference) > max(error, MINIMAL)
    return (CONFIRMED if same else REFUTED if other else UNCLEAR), (
        f"Mean squared error {rows[1].mse:.5f} for V4 and {rows[0].mse:.5f} for V3 after {results.each}; "
        f"in PSNR {difference:+.2f} ± {error:.2f} dB."
    )


def _final_loss(results: Results) -> tuple[str, str]:
    trial = results.top("v3")
    row = trial.row("fp32-none") if trial else None
    if trial is None or row is None or trial.training is None:
        return _missing("v3")
    reached = trial.training.seconds_to(FINAL_MSE)
    spent = (
        f"{trial.training.seconds / 60:.1f} minutes on {trial.training.pictures:,} pictures ({trial.training.machine})"
    )
    if reached is None:
        verdict = UNCLEAR if trial.training.seconds < 60 * FINAL_MINUTES else REFUTED
        return verdict, f"V3 stands at {row.mse:.5f} after {spent}; it was given no more."
    in_time = reached <= 60 * FINAL_MINUTES
    sentence = f"V3 came under it in {reached / 60:.1f} minutes, and stands at {row.mse:.5f} after {spent}."
    return (CONFIRMED if in_time else REFUTED), sentence


def _more_pictures(results: Results) -> tuple[str, str]:
    verdicts, figures = [], []
    for family in results.families:
        trials = [trial for trial in results.ladder if trial.family == family and trial.training]
        if len(trials) < 2:
            continue
        ordered = sorted(trials, key=lambda trial: trial.training.pictures if trial.training else 0)
        fewest, most = ordered[0].row(), ordered[-1].row()
        if fewest and most:
            difference, error = _difference(most.psnr, fewest.psnr)
            verdicts.append(_sign(difference, error))
            figures.append(f"{family.upper()} {difference:+.2f} ± {error:.2f}")
    if not verdicts:
        return UNCLEAR, "Not measured: it needs two rungs in the ladder."
    verdict = verdicts[0] if len(set(verdicts)) == 1 else UNCLEAR
    return verdict, f"dB gained from the fewest pictures to the most, after {results.each}: {', '.join(figures)}."
