"""The experiments again: every family on every number of pictures, then what was left for later; all remembered."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from compressor.artifact import parse
from compressor.codec import artifact_bytes, titles
from compressor.destinations import destination_at, filled
from compressor.errors import SourceError
from compressor.experiments.ablations import ABLATIONS
from compressor.experiments.cells import VALIDATION, Cell
from compressor.experiments.measuring import Row, rows_of
from compressor.experiments.results import Elsewhere, Quantized, Results, Trial, lossy_pictures, without_exact
from compressor.learning import held_out, spread
from compressor.pages import make_folder
from compressor.samples import PHOTOGRAPHS, TEXTURES, write_tiles
from compressor.shards import ShardConfig, ShardRecord, drawn, refused_of
from compressor.sources import Source, SourceFile
from compressor.training import TrainingConfig, TrainingState
from compressor.wording import by_reason, number
from flows.machine import worker_count
from flows.parameters import ExperimentsParameters
from flows.progress import listener
from flows.train import configure, prepare_shards
from flows.worded import worded_flow
from tasks.caching import fresh
from tasks.experiments import CellRecord, MeasurementRecord, measure, measure_standards, quantize, report, train_cell
from tasks.home import home
from tasks.threads import pin_threads

BATCH = 1000
MINUTES = 2.0  # a cell, where neither steps nor minutes are given
WARMUP = 50  # steps: cells are short
VALIDATIONS = 10  # of a cell, where steps are given
VALIDATE_EVERY = 50  # steps, where minutes are given
ELSEWHERE_MOST = 400  # pictures of another source
KINDS = (("int8", "rounded"), ("int8", "calibrated"), ("int4", "rounded"), ("int4", "calibrated"))


Pairs = Sequence[tuple[CellRecord, Trial]]


@dataclass(frozen=True)
class _Work:
    """What all parts share: pictures to learn from and to measure on, how long to train."""

    parameters: ExperimentsParameters
    learned: list[ShardRecord]
    measured: list[ShardRecord]
    whole: TrainingConfig
    half: TrainingConfig

    @property
    def pictures(self) -> int:
        """How many there are to train on."""
        return int(np.count_nonzero(~held_out(sum(record.count for record in self.learned), VALIDATION)))


@worded_flow("experiments", "experiments on {parameters.subject}")
def experiments(parameters: ExperimentsParameters) -> tuple[dict[str, Any], str]:
    """Train and measure, and write the report. Returns where it lies, and what it found."""
    others = list(_given(parameters.codec))  # what is misspelt is said before anything is trained
    for url in parameters.other:
        Source.open(url)
    place = destination_at(parameters.report)
    with filled(place, "report.html") as folder:
        make_folder(folder)  # what cannot be written is said before anything is trained
    work = _prepare(parameters)
    standards = _standards("held-out", work.measured, ("jpeg", "avif"))
    lossy_pictures("the pictures to measure on", itertools.chain(*standards.values()))  # said before the training
    trained = list(_ladder(work))
    ladder = [trial for _, trial in trained]
    tops = trained[-len(parameters.family) :]
    given = [(record, _measured(work, title, record, family)) for title, family, record in others]
    parts = set(parameters.parts)
    results = Results(
        context=_context(work, ladder),
        ladder=ladder,
        standards=standards,
        ablations=list(_ablations(work)) if "ablations" in parts else [],
        quantized=list(_quantized(work, [*tops, *given])) if "weights" in parts else [],
        elsewhere=list(_elsewhere(work, tops, given)) if "elsewhere" in parts else [],
        given=[trial for _, trial in given],
    )
    listener().stage("writing the report", 1, "reports")
    strips = {trial.name: record.path for record, trial in [*tops, *given]}
    own = work.measured if parameters.strips == "measured" else []
    done = report(without_exact(results), strips, own, place)
    return done, f"report: {place.told()}"


def _prepare(parameters: ExperimentsParameters) -> _Work:
    source = Source.open(parameters.source)
    workers = parameters.workers or worker_count()
    if parameters.evaluation:
        measured = Source.open(parameters.evaluation)
        kept_apart = _spread(measured, None, parameters.held_out, share=1)
    else:
        measured = source
        kept_apart = _spread(source, parameters.limit, parameters.held_out, share=5)
    kept = {measured.address_of(file) for file in kept_apart}  # whichever source they are listed by
    listed = itertools.islice(source.files(), parameters.limit)
    others = (file for file in listed if source.address_of(file) not in kept)
    learned = drawn(others, parameters.max_pictures, parameters.seed)
    if not learned:
        raise SourceError(
            f"{source.shown}: no picture is left to train on, beside the {number(len(kept_apart), 'picture')} to "
            f"measure on from {measured.shown}; give a smaller --held-out, or other pictures"
        )
    ends = parameters.steps or parameters.minutes
    config = configure(parameters if ends else parameters.model_copy(update={"minutes": MINUTES}), learned=False)
    whole = replace(
        config,
        warmup=min(config.warmup, WARMUP),
        validate_every=max(1, parameters.steps // VALIDATIONS) if parameters.steps else VALIDATE_EVERY,
    )
    # Ablations and fine-tuning take half.
    half = replace(whole, minutes=whole.minutes / 2, steps=whole.steps // 2 or min(1, whole.steps))
    work = _Work(
        parameters,
        prepare_shards(source, iter(learned), ShardConfig(parameters.side), BATCH, workers),
        prepare_shards(measured, iter(kept_apart), ShardConfig(parameters.side), BATCH, workers),
        whole,
        half,
    )
    if not sum(record.count for record in work.measured):
        raise SourceError(f"{measured.shown}: none of the pictures held out can be read")
    pin_threads(workers)
    return work


def _spread(source: Source, limit: int | None, count: int, share: int) -> list[SourceFile]:
    """``count`` files spread evenly over the listing, at most one in ``share``; one at least."""
    total = sum(1 for _ in itertools.islice(source.files(), limit))
    if total < 2:
        raise SourceError(f"{source.shown}: experiments need at least two pictures")
    chosen = set(spread(total, min(count, -(-total // share))).tolist())
    return [file for index, file in enumerate(itertools.islice(source.files(), total)) if index in chosen]


def _rungs(work: _Work) -> Iterator[int | None]:
    """Numbers of pictures, fewest first, None for all; those that there are not are left out."""
    named = work.parameters.ladder.split(",")
    most = work.pictures - ("all" in named)  # which is as many as there are
    counts = sorted(count for one in set(named) - {"all"} if (count := int(one)) <= most)
    if not counts and "all" not in named:
        raise SourceError(
            f"{Source.open(work.parameters.source).shown}: there are {work.pictures:,} pictures to train on, "
            f"fewer than any that --ladder names: {work.parameters.ladder}"
        )
    yield from counts
    if "all" in named:
        yield None


def _ladder(work: _Work) -> Iterator[tuple[CellRecord, Trial]]:
    for pictures in _rungs(work):
        for family in work.parameters.family:
            name = family.upper() + ("" if pictures is None else f", {pictures:,} pictures")
            record = _trained(work, name, Cell(family, pictures), work.whole)
            yield record, _measured(work, name, record, family, everything=pictures is None)


def _ablations(work: _Work) -> Iterator[Trial]:
    for one in ABLATIONS:
        record = _trained(work, one.name, one.cell, work.half)
        yield _measured(work, one.name, record, one.cell.family, about=one.about)


def _quantized(work: _Work, codecs: Pairs) -> Iterator[Quantized]:
    for record, trial in codecs:
        for kind, method in KINDS:
            name = f"{trial.name}, {kind.upper()} weights"
            listener().stage(f"quantising {trial.name} as {kind}, {method}", 1, "codecs")
            arguments = {"codec": record.path, "id": record.id, "shards": work.learned, "weights": kind}
            made = fresh(quantize, CellRecord, name=name, method=method, **arguments)
            yield Quantized(trial, kind, method, _measured(work, name, made, trial.family, full=False))


def _elsewhere(work: _Work, tops: Pairs, given: Pairs) -> Iterator[Elsewhere]:
    """Pictures of other kinds: every codec as it is, and V3, or the last family, after fine-tuning."""
    tuned = next((pair for pair in tops if pair[1].family == "v3"), tops[-1] if tops else None)
    folder = home() / "samples"
    write_tiles(folder / "photographs", PHOTOGRAPHS)
    write_tiles(folder / "textures", TEXTURES)
    places = [("scikit-image's photographs", str(folder / "photographs")), ("textures", str(folder / "textures"))]
    for name, url in [*places, *((Source.open(url).shown, url) for url in work.parameters.other)]:
        source = Source.open(url)
        files = _spread(source, None, ELSEWHERE_MOST, share=1)
        workers = work.parameters.workers or worker_count()
        halves = [
            prepare_shards(source, iter(files[start::2]), ShardConfig(work.parameters.side), BATCH, workers)
            for start in (0, 1)
        ]
        there = replace(work, learned=halves[0], measured=halves[1])
        trials = [_measured(there, trial.name, record, trial.family, full=False) for record, trial in tops]
        if tuned:
            record, trial = tuned
            label = f"{trial.name}, fine-tuned"
            cell = Cell(trial.family, start=record.id)
            onward = replace(work.half, learning_rate=work.half.learning_rate / 3)
            further = _trained(there, f"{label} on {name}", cell, onward, record.path)
            trials.append(_measured(there, label, further, trial.family, full=False))
        trials += [_measured(there, trial.name, record, trial.family, full=False) for record, trial in given]
        count = sum(shard.count for shard in there.measured)
        yield Elsewhere(name, count, trials, _standards(name, there.measured, ("jpeg",)))


def _trained(work: _Work, name: str, cell: Cell, config: TrainingConfig, start: str | None = None) -> CellRecord:
    heard = listener()
    heard.stage(f"training {name}", 100, "%")

    def tell(state: TrainingState, done: float) -> None:
        heard.advance(round(100 * done), f"step {state.step:,}, loss {state.history[-1]['loss']:.5f}")

    arguments = {"cell": cell, "shards": work.learned, "config": config, "start": start, "on_progress": tell}
    return fresh(train_cell, CellRecord, name=name, **arguments)


def _measured(
    work: _Work,
    name: str,
    record: CellRecord,
    family: str,
    full: bool = True,
    everything: bool = False,
    about: str = "",
) -> Trial:
    listener().stage(f"measuring {name}", 1, "codecs")
    arguments = {"codec": record.path, "id": record.id, "shards": work.measured, "full": full}
    values = fresh(measure, MeasurementRecord, name=name, **arguments).values()
    described = {"name": name, "family": family, "everything": everything, "about": about, "training": record.training}
    return Trial.from_dict({**values, **described})


def _standards(name: str, shards: list[ShardRecord], formats: tuple[str, ...]) -> dict[str, list[Row]]:
    listener().stage(f"measuring {', '.join(formats)} on {name}", 1, "formats")
    record = fresh(measure_standards, MeasurementRecord, name=name, shards=shards, formats=formats)
    return {name: rows_of(rows) for name, rows in record.values().items()}


def _given(codecs: Sequence[str]) -> Iterator[tuple[str, str, CellRecord]]:
    """Title, family and file of codecs that are not trained here."""
    for title, codec in titles(codecs).items():
        artifact = parse(artifact_bytes(codec))
        yield title, artifact.family, CellRecord(codec, artifact.id, None)


def _context(work: _Work, ladder: Sequence[Trial]) -> dict[str, str]:
    parameters = work.parameters
    machines = dict.fromkeys(trial.training.machine for trial in ladder if trial.training)
    asked = [one for one in parameters.ladder.split(",") if one != "all" and int(one) > work.pictures]
    spent = sum(trial.training.seconds for trial in ladder if trial.training)
    measured = sum(record.count for record in work.measured)
    context = {
        "source": Source.open(parameters.source).shown,
        "trained on": f"up to {work.pictures:,} pictures, {parameters.side} x {parameters.side} pixels",
        "measured on": f"{number(measured, 'picture')} from files that no training here read",
        "side": f"{parameters.side} pixels",
        "each cell": _length(work.whole),
        "training": f"{work.whole.optimizer}, batches of {work.whole.batch}, "
        f"learning rate {work.whole.learning_rate:g}, seed {work.whole.seed}",
        "trained by": "; ".join(machines),
        "time to train the ladder": f"{spent / 60:.1f} minutes",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    if refused := refused_of([*work.learned, *work.measured]):
        context["left out"] = f"{by_reason(refused)}; plain pictures of 8 bits are taken"
    if asked:
        context["left out of the ladder"] = f"{', '.join(asked)}: there are only {work.pictures:,} pictures"
    return context


def _length(config: TrainingConfig) -> str:
    """How long a training is."""
    steps, minutes = number(config.steps, "step"), f"{config.minutes:g} minute{'s' * (config.minutes != 1)}"
    said = f"{steps} or {minutes}" if config.steps and config.minutes else steps if config.steps else minutes
    if config.patience:
        said += f" at most, or {number(config.patience, 'validation')} without improvement,"
    return said
