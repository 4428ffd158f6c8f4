"""The benchmark: codecs against JPEG, WebP, AVIF and JPEG XL on pictures of a source, as a report."""

from typing import Any

from prefect import flow

from compressor.destinations import destination_at
from compressor.sources import Source
from flows.machine import cores
from flows.parameters import BenchmarkParameters
from flows.progress import on_progress
from tasks.benchmark import benchmark as measure
from tasks.threads import pin_threads


@flow(name="benchmark", flow_run_name="benchmark on {parameters.subject}", persist_result=False)
def benchmark(parameters: BenchmarkParameters) -> dict[str, Any]:
    """Measure and write the report. Returns where it lies, and its summary."""
    source = Source.open(parameters.source)
    pin_threads(parameters.workers or cores())
    place, progress = destination_at(parameters.report), on_progress("measuring", "encodings")
    return measure(source, parameters.limit, parameters.codec, place, parameters.effort, progress)
