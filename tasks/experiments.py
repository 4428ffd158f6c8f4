"""Experiments: trained families measured on pictures that they did not see, as a table and an artifact."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from compressor.codec import load_codec
from compressor.errors import ImageError, SourceError
from compressor.experiments import Trained, measure_family, write_experiments
from compressor.images import decode_picture, resize_picture
from compressor.sources import Source, SourceFile
from tasks.train import TrainingRecord


@task(name="measure-families", cache_policy=NO_CACHE, persist_result=False)
def measure_families(
    source: Source, files: Sequence[SourceFile], side: int, records: Mapping[str, TrainingRecord], directory: Path
) -> dict[str, Any]:
    """Measure each family's codec on ``files`` at ``side`` x ``side`` pixels. Returns paths and the table."""
    pictures = []
    for content in source.read([file.path for file in files]):
        try:
            if not isinstance(content, Exception):
                pictures.append(resize_picture(decode_picture(content).pixels, side))
        except ImageError:
            continue
    if not pictures:
        raise SourceError(f"{source.shown}: none of the pictures held out can be read")
    rows = []
    for family, record in records.items():
        size = Path(record.path).stat().st_size
        seen = int(record.validation.get("pictures", record.pictures))
        rows += measure_family(family, Trained(load_codec(record.path), size, seen, record.seconds), pictures)
    context = {
        "source": source.shown,
        "pictures trained on": max(record.pictures for record in records.values()),
        "pictures measured on, not trained on": len(pictures),
        "side": f"{side} pixels",
        "machine": f"{platform.machine()}, trained on {', '.join(sorted({r.device for r in records.values()}))}",
    }
    written = write_experiments(rows, context, directory)
    create_markdown_artifact(written["table"], key="experiments", description="the experiments, measured again")
    return {**written, "context": context}
