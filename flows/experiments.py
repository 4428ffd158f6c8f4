"""The experiments again: train each family on a source, measure it on pictures held out, write the table."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow

from compressor.errors import SourceError
from compressor.sources import Source, SourceFile
from flows.parameters import ExperimentsParameters
from flows.train import train_on
from tasks.experiments import measure_families
from tasks.threads import cores

BATCH = 1000


@flow(name="experiments", flow_run_name="experiments on {parameters.source}", persist_result=False)
def experiments(parameters: ExperimentsParameters) -> dict[str, Any]:
    """Train and measure. Returns the table as Markdown and where the report lies. Trainings are remembered."""
    source = Source.open(parameters.source)
    held_out = _held_out(source, parameters.limit, parameters.held_out)
    names = {file.key for file in held_out}

    def learned() -> Iterator[SourceFile]:
        return (file for file in itertools.islice(source.files(), parameters.limit) if file.key not in names)

    workers = parameters.workers or cores()
    records = {
        family.value: train_on(source, learned(), family.value, parameters, BATCH, workers)
        for family in parameters.family
    }
    return measure_families(source, held_out, parameters.side, records, Path(parameters.report))


def _held_out(source: Source, limit: int | None, count: int) -> list[SourceFile]:
    """``count`` files spread evenly over the listing, at most a fifth of it."""
    total = sum(1 for _ in itertools.islice(source.files(), limit))
    if total < 2:
        raise SourceError(f"{source.shown}: experiments need at least two pictures")
    step = max(5, total // count) if total >= 5 else total
    return list(itertools.islice(source.files(), 0, limit or total, step))[:count]
