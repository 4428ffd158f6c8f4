"""The experiments' table: what each family stores, by type of latents and packer, beside what was reported.

Training is elsewhere; here trained codecs are measured on pictures that none of them saw, and the report is written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.baselines import STANDARD
from compressor.codec import Codec
from compressor.images import encode_picture
from compressor.metrics import psnr, ssim

# 128 x 128 Flickr faces, as the experiments reported them: KB encoded and decoded a picture, minutes of training.
REPORTED: dict[str, dict[str, str]] = {
    "v1": {"weights": "0.1 MB", "encoded": "100 KB", "decoded": "30 KB", "training": "170 min"},
    "v2": {"weights": "0.4 MB", "encoded": "13.1 KB", "decoded": "26.9 KB", "training": "121 min"},
    "v3": {"weights": "4 MB", "encoded": "5.8 KB; 2.9 KB as INT8 with LZMA", "decoded": "25 KB", "training": "250 min"},
    "v4": {"weights": "", "encoded": "", "decoded": "", "training": "final loss 0.0039, as v3"},
}
REPORTED_PICTURES = 52_000  # that the reported minutes are for


@dataclass(frozen=True)
class Trained:
    """A codec and how it was trained."""

    codec: Codec
    weight_bytes: int
    pictures_seen: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One family with one type of latents and one packer: means over pictures. Bytes a picture, PSNR in dB."""

    family: str
    packer: str
    bytes: float
    psnr: float
    ssim: float
    mse: float
    decoded_png_bytes: float
    jpeg_bytes: float | None
    weight_bytes: int
    training_seconds: float
    training_pictures_per_second: float


def measure_family(family: str, trained: Trained, pictures: Sequence[np.ndarray]) -> list[Measured]:
    """Every packer of a codec on ``pictures``, uint8 (H, W, 3) each."""
    rows = []
    for packer in trained.codec.packers:
        quality = trained.codec.qualities.stop // 2 if len(trained.codec.qualities) else -1
        encoded = trained.codec.encode(pictures, quality, packer)
        decoded = trained.codec.decode(encoded)
        level = float(np.mean([psnr(a, b) for a, b in zip(pictures, decoded, strict=True)]))
        errors = [np.mean((a / 255.0 - b / 255.0) ** 2) for a, b in zip(pictures, decoded, strict=True)]
        rows.append(
            Measured(
                family=family,
                packer=packer,
                bytes=float(np.mean([len(one.payload) for one in encoded])),
                psnr=level,
                ssim=float(np.mean([ssim(a, b) for a, b in zip(pictures, decoded, strict=True)])),
                mse=float(np.mean(errors)),
                decoded_png_bytes=float(np.mean([len(encode_picture(one, 3, "png")) for one in decoded])),
                jpeg_bytes=jpeg_bytes_at(pictures, level),
                weight_bytes=trained.weight_bytes,
                training_seconds=trained.seconds,
                training_pictures_per_second=trained.pictures_seen / max(trained.seconds, 1e-9),
            )
        )
    return rows


def jpeg_bytes_at(pictures: Sequence[np.ndarray], level: float) -> float | None:
    """Mean size of JPEG files whose mean PSNR is ``level`` dB, interpolated; None outside JPEG's range."""
    jpeg = STANDARD["jpeg"]
    points = []
    for quality in (5, 10, 20, 35, 50, 70, 85, 95):
        encoded = jpeg.encode(pictures, quality)
        decoded = jpeg.decode(encoded)
        reached = float(np.mean([psnr(a, b) for a, b in zip(pictures, decoded, strict=True)]))
        points.append((reached, float(np.mean([len(one.payload) for one in encoded]))))
    levels, sizes = zip(*sorted(points), strict=True)
    if not levels[0] <= level <= levels[-1]:
        return None
    return float(np.exp(np.interp(level, levels, np.log(sizes))))


def write_experiments(rows: Sequence[Measured], context: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Write ``experiments.md`` and ``experiments.json``. Returns their paths and the table as Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    table = _table(rows)
    markdown = directory / "experiments.md"
    facts = "\n".join(f"- {name}: {value}" for name, value in context.items())
    markdown.write_text(f"# The experiments, measured again\n\n{facts}\n\n{table}\n", encoding="utf-8")
    values = {"context": dict(context), "rows": [asdict(row) for row in rows], "reported": REPORTED}
    (directory / "experiments.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    return {"report": str(markdown), "json": str(directory / "experiments.json"), "table": table}


def _table(rows: Sequence[Measured]) -> str:
    head = (
        "family", "latents-packer", "bytes", "reported", "PSNR, dB", "SSIM", "MSE", "JPEG at this PSNR, bytes",
        "decoded PNG", "reported", "weights", "training", f"{REPORTED_PICTURES:,} pictures, extrapolated", "reported",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        reported = REPORTED.get(row.family, {})
        minutes = REPORTED_PICTURES / row.training_pictures_per_second / 60
        cells = (
            row.family,
            row.packer,
            f"{row.bytes:,.0f}",
            reported.get("encoded", ""),
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.mse:.5f}",
            f"{row.jpeg_bytes:,.0f}" if row.jpeg_bytes else "out of range",
            f"{row.decoded_png_bytes:,.0f}",
            reported.get("decoded", ""),
            f"{row.weight_bytes / 1e6:.2f} MB",
            f"{row.training_seconds / 60:.1f} min",
            f"{minutes:.1f} min a pass",
            reported.get("training", ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
