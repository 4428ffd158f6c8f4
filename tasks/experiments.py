"""Experiments: cells trained and measured, every one remembered by all that it depends on; the report as artifacts.

A key covers a stage's version, the digests of its shards of pictures, the codec's id and the cell's options, so that a
new row of the table costs that row. Raise a version when the same input gives another result.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext

from compressor.artifact import identify
from compressor.codec import artifact_bytes, load_codec
from compressor.destinations import Destination, filled
from compressor.devices import has_fast_bf16, pick_device
from compressor.experiments import cells, measuring
from compressor.experiments.cells import Cell, split, weight_bytes
from compressor.experiments.information import inform
from compressor.experiments.results import Results, Training
from compressor.families import refreeze
from compressor.files import write_whole
from compressor.report import machine
from compressor.shards import ShardRecord, content_of, load_shards
from compressor.training import TrainingConfig, TrainingState
from tasks.artifacts import not_vital, training_progress
from tasks.caching import is_artifact, stage_key
from tasks.home import home
from tasks.retries import NOT_KEPT, retry_unless_told

TRAIN_VERSION = 5
MEASURE_VERSION = 3
QUANTIZE_VERSION = 1
STRIPS = 4  # pictures shown side by side
CALIBRATED = 512  # pictures that smaller weights are calibrated on
MEASURED = 1000  # pictures at most that anything is measured on


@dataclass(frozen=True)
class CellRecord:
    """A codec's file, its id, and how it was trained (None where it was made from another codec)."""

    path: str
    id: str
    training: dict[str, Any] | None

    def exists(self) -> bool:
        """Whether the file is there, and whole."""
        return is_artifact(self.path, self.id)


@dataclass(frozen=True)
class MeasurementRecord:
    """Where a measurement's JSON lies."""

    path: str

    def exists(self) -> bool:
        """Whether the file is there, and whole."""
        try:
            return bool(self.values())
        except (OSError, ValueError, TypeError):
            return False

    def values(self) -> dict[str, Any]:
        return dict(json.loads(Path(self.path).read_text(encoding="utf-8")))


def _folder() -> Path:
    return home() / "experiments"


def _train_key(context: TaskRunContext | None, arguments: dict[str, Any]) -> str:
    configuration = {"cell": asdict(arguments["cell"]), "config": asdict(arguments["config"])}
    return stage_key("cell", TRAIN_VERSION, content_of(arguments["shards"]), configuration)


@task(
    name="train-cell",
    task_run_name="train-{name}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=retry_unless_told,
    cache_key_fn=_train_key,
    tags={"latentpack-training"},
)
def train_cell(
    name: str,
    cell: Cell,
    shards: Sequence[ShardRecord],
    config: TrainingConfig,
    start: str | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
) -> dict[str, Any]:
    """Train one cell on the shards' pictures, from the artifact at ``start`` if given. Returns a CellRecord as JSON."""
    key = _train_key(None, {"cell": cell, "config": config, "shards": shards})
    checkpoint = _folder() / f"{key}.ckpt"
    get_run_logger().info("training %s", name)
    begun = Path(start).read_bytes() if start else None
    learned = cells.train_cell(
        cell, load_shards(shards), config, begun, checkpoint, training_progress(name, on_progress)
    )
    path = _folder() / f"{key}.safetensors"
    write_whole(path, learned.data)
    state = learned.state
    by = f"{machine()}, {'bfloat16' if has_fast_bf16(pick_device()) else 'float32'}"
    training = Training(learned.pictures, state.pictures, state.step, state.seconds, learned.device, by, state.history)
    record = CellRecord(str(path), identify(learned.data), asdict(training))
    checkpoint.unlink(missing_ok=True)  # last: without it a retry begins at step 0
    return asdict(record)


def _measure_key(context: TaskRunContext | None, arguments: dict[str, Any]) -> str:
    configuration = {"full": arguments.get("full", True)}
    return stage_key("measure", MEASURE_VERSION, content_of(arguments["shards"], arguments["id"]), configuration)


@task(name="measure-cell", task_run_name="measure-{name}", cache_key_fn=_measure_key)
def measure(name: str, codec: str, id: str, shards: Sequence[ShardRecord], full: bool = True) -> dict[str, Any]:
    """Bytes and quality of a codec on the shards' pictures; entropies too if ``full``. Returns a MeasurementRecord."""
    pictures = list(load_shards(shards)[:MEASURED])
    loaded = load_codec(codec)
    packers = None if full else [name for name in loaded.packers if name.endswith("entropy")]
    rows = measuring.measure(loaded, pictures, packers=packers)
    found = inform(loaded, pictures, measuring.rows_at_middle(rows)[0].quality) if full else None
    key = _measure_key(None, {"id": id, "shards": shards, "full": full})
    data = artifact_bytes(codec)
    weights, full_precision = weight_bytes(data)
    values = {
        "artifact_bytes": len(data),
        "weight_bytes": weights,
        "full_bytes": full_precision,
        "rows": [asdict(row) for row in rows],
        "information": asdict(found) if found else None,
    }
    return _keep(key, values)


def _standards_key(context: TaskRunContext | None, arguments: dict[str, Any]) -> str:
    from imagecodecs import __version__ as library

    configuration = {name: measuring.STANDARD_QUALITIES[name] for name in arguments["formats"]} | {"library": library}
    return stage_key("standards", MEASURE_VERSION, content_of(arguments["shards"]), configuration)


@task(name="measure-standards", task_run_name="measure-standards-{name}", cache_key_fn=_standards_key)
def measure_standards(name: str, shards: Sequence[ShardRecord], formats: Sequence[str]) -> dict[str, Any]:
    """Standard formats on the shards' pictures. Returns a :class:`MeasurementRecord` as JSON."""
    found = measuring.measure_standards(list(load_shards(shards)[:MEASURED]), formats)
    values = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    return _keep(_standards_key(None, {"shards": shards, "formats": formats}), values)


def _quantize_key(context: TaskRunContext | None, arguments: dict[str, Any]) -> str:
    configuration = {"weights": arguments["weights"], "method": arguments["method"]}
    return stage_key("quantize", QUANTIZE_VERSION, content_of(arguments["shards"], arguments["id"]), configuration)


@task(name="quantize-weights", task_run_name="quantize-{name}", cache_key_fn=_quantize_key)
def quantize(
    name: str, codec: str, id: str, shards: Sequence[ShardRecord], weights: str, method: str
) -> dict[str, Any]:
    """A codec with its weights stored as ``weights``, calibrated on the shards' pictures. Returns a CellRecord."""
    learned, _ = split(load_shards(shards), None)
    chosen = learned[:: max(1, len(learned) // CALIBRATED)][:CALIBRATED]
    data = refreeze(artifact_bytes(codec), chosen, weights, method)
    key = _quantize_key(None, {"id": id, "shards": shards, "weights": weights, "method": method})
    path = _folder() / f"{key}.safetensors"
    write_whole(path, data)
    return asdict(CellRecord(str(path), identify(data), None))


def _keep(key: str, values: dict[str, Any]) -> dict[str, Any]:
    path = _folder() / f"{key}.json"
    write_whole(path, json.dumps(values).encode())
    return asdict(MeasurementRecord(str(path)))


@task(name="experiments-report", **NOT_KEPT)
def report(
    results: Results, strips: dict[str, str], own_pictures: Sequence[ShardRecord], place: Destination
) -> dict[str, Any]:
    """Write the report, and publish it. ``strips``: codecs to show side by side by name, on bundled photographs or,
    where given, on the first of ``own_pictures``."""
    from compressor.experiments.tables import ladder_table
    from compressor.experiments.writing import sample_strips, write

    pictures = list(load_shards(own_pictures)[:STRIPS]) if own_pictures else None
    shown = sample_strips({name: load_codec(path) for name, path in strips.items()}, pictures)
    with filled(place, "report.html") as directory:
        written = write(results, shown, directory)
    with not_vital("the report"):
        create_markdown_artifact(written.artifact, key="experiments", description=written.headline)
    with not_vital("the ladder"):
        table = ladder_table(results)
        create_table_artifact(
            [dict(zip(table.columns, row, strict=True)) for row in table.rows],
            key="experiments-ladder",
            description=table.note,
        )
    return {
        "report": f"{place}/{written.html.name}",
        "markdown": f"{place}/{written.markdown.name}",
        "json": f"{place}/{written.json.name}",
        "headline": written.headline,
        "table": written.table,
        "findings": [asdict(one) for one in written.findings],
    }
