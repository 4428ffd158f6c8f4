"""The benchmark: codecs against JPEG, WebP, AVIF and JPEG XL on pictures of a source, as a report."""

from typing import Any

from compressor.destinations import destination_at
from compressor.sources import Source
from flows.machine import cores
from flows.parameters import BenchmarkParameters
from flows.progress import on_progress
from flows.worded import worded_flow
from tasks.benchmark import benchmark as measure
from tasks.threads import pin_threads


@worded_flow("benchmark", "benchmark on {parameters.subject}")
def benchmark(parameters: BenchmarkParameters) -> tuple[dict[str, Any], str]:
    """Measure and write the report. Returns where it lies, and its summary."""
    source = Source.open(parameters.source)
    pin_threads(parameters.workers or cores())
    place, progress = destination_at(parameters.report), on_progress("measuring", "encodings")
    done = measure(source, parameters.limit, parameters.codec, place, parameters.effort, progress)
    return done, f"{done['headline']}; report: {place.told()}"
