"""Pictures to an archive and back, in Python: python examples/archive_a_folder.py [FOLDER ARCHIVE]"""

import sys
from pathlib import Path

from compressor import Archive
from compressor.samples import write_samples
from flows.environment import set_defaults


def main(folder: str = "example-pictures", url: str = "example-archive") -> None:
    if not Path(folder).exists() and "://" not in folder:
        write_samples(Path(folder))
    set_defaults()  # no telemetry, quiet logs; Prefect reads its settings when it is imported
    from flows.parameters import PipelineParameters
    from flows.pipeline import pipeline

    summary = pipeline(PipelineParameters(source=folder, archive=url, target_psnr=34))
    print(f"{summary['archived']} archived, {summary['quarantined']} quarantined")

    archive = Archive.open(url)
    key = next(iter(archive.keys()))
    row = archive.read_row(key)
    pixels = archive.read(key)
    print(f"{key}: {row.source_bytes} bytes -> {len(row.payload)}, {row.psnr} dB, pixels {pixels.shape}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
