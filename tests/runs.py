"""Pictures and runs of the archive flow, for tests of flows."""

from pathlib import Path
from typing import Any

from compressor.picture_writing import encode_picture
from flows.parameters import PipelineParameters
from tests.codecs import smooth_pictures


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(smooth_pictures(count, seed=seed)):
        (folder / f"{number:03d}.png").write_bytes(encode_picture(pixels, 3))
    return folder


def archive_it(folder: Path, archive: Path, **options: Any) -> dict[str, Any]:
    from flows.pipeline import pipeline

    given = {"source": str(folder), "archive": str(archive), "codec": "webp", "workers": 1, **options}
    return pipeline(PipelineParameters(**given))
