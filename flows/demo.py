"""The whole chain on sample pictures: archive, again with nothing new, verify, restore, measure. No download."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.archive import Archive
from compressor.samples import write_samples
from compressor.wording import number, ratio, size
from flows.archive import restore, verify
from flows.benchmark import benchmark
from flows.parameters import (
    BenchmarkParameters,
    DemoParameters,
    PipelineParameters,
    RestoreParameters,
    VerifyParameters,
)
from flows.pipeline import pipeline
from flows.progress import listener

MEASURED = 20  # pictures in the benchmark


def demo(parameters: DemoParameters) -> dict[str, Any]:
    """Run the chain below ``parameters.folder``. Returns each step's result, ``shown`` for people, and ``next``."""
    started = time.monotonic()
    folder = Path(parameters.folder)
    source, archive, restored, report = (folder / name for name in ("pictures", "archive", "restored", "report"))
    listener().stage("cutting sample pictures")
    count = write_samples(source)
    chain = PipelineParameters(source=str(source), archive=str(archive), workers=parameters.workers)
    first = pipeline(chain)
    second = pipeline(chain)
    checked = verify(VerifyParameters(archive=str(archive)))
    back = restore(
        # The folder is the demo's own: what an older version restored there differs, and may go.
        RestoreParameters(archive=str(archive), destination=str(restored), overwrite=True, workers=parameters.workers)
    )
    measured = benchmark(
        BenchmarkParameters(
            source=str(source / "tiles"), report=str(report), limit=MEASURED, workers=parameters.workers
        )
    )
    info = Archive.open(str(archive)).info()
    each = info.table_bytes / max(1, info.pictures)
    shown = [
        ("pictures", f"{count:,} tiles and photographs, {size(info.source_bytes)}: {source}"),
        ("archive", f"{size(info.table_bytes)}, {each:,.0f} bytes a picture: {archive}"),
        ("ratio", f"{ratio(info.source_bytes, info.table_bytes)}, without the decoder"),
        ("decoder", f"{size(info.codec_bytes)}, once in every archive"),
        ("quality", f"PSNR {info.psnr_mean:.2f} dB on average, {info.psnr_min:.2f} dB at the lowest"),
        ("archived", f"{first['archived']:,} in the first run, {second['archived']:,} in the second: nothing was new"),
        ("verified", f"{number(checked['pictures'], 'picture')}, {len(checked['problems'])} bad"),
        ("restored", f"{number(back['written'], 'file')}: {restored}"),
        ("measured", measured["headline"]),
        ("report", measured["html"]),
        ("took", f"{time.monotonic() - started:.0f} s"),
    ]
    return {
        "run": first,
        "second_run": second,
        "verify": checked,
        "restore": back,
        "benchmark": {name: measured[name] for name in ("html", "markdown", "parquet", "headline")},
        "info": asdict(info),
        "shown": shown,
        "next": _next(archive),
    }


def _next(archive: Path) -> str:
    return "\n".join(
        (
            "Next:",
            "  latentpack run ~/Pictures my-archive              archive pictures of your own",
            f"  latentpack info {archive}".ljust(52) + "what an archive holds",
            f"  latentpack sheet {archive} --worst".ljust(52) + "a page of its pictures of lowest PSNR",
            f"  latentpack restore {archive} out --key tiles/00000/00000.png",
            "  latentpack train ~/Pictures --start faces --out my-codec.safetensors",
        )
    )
