"""The experiments' report: a self-contained HTML file, Markdown with its pictures beside it, and figures as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor import pages, plots
from compressor.baselines import STANDARD
from compressor.codec import Codec
from compressor.comparison import Table
from compressor.experiments import figures, tables
from compressor.experiments.figures import CAPTIONS
from compressor.experiments.findings import Finding, findings
from compressor.experiments.results import Results
from compressor.images import decode_picture, resize_picture
from compressor.metrics import psnr
from compressor.strips import Cell, Strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "The experiments, measured again"
STRIP_NOTE = (
    "Whole pictures of 128 x 128 pixels, enlarged without smoothing: INT8 latents under the entropy coder, V5 "
    "and V6 at their middle quality, JPEG at the bytes of the codec before it."
)
_SAMPLES = {  # of scikit-image's photographs: the square that is shown, left, top and side
    "astronaut.png": (110, 0, 256),
    "chelsea.png": (80, 10, 256),
    "coffee.png": (150, 60, 300),
    "rocket.jpg": (190, 90, 256),
}
_SIDE = 128


@dataclass(frozen=True)
class Written:
    """Where a report lies and what it found. ``artifact`` is the Markdown with one figure inside it."""

    html: Path
    markdown: Path
    json: Path
    headline: str
    table: str
    artifact: str
    findings: list[Finding]


def sample_strips(codecs: Mapping[str, Codec], pictures: Sequence[np.ndarray] | None = None) -> list[Strip]:
    """Each picture as it is and through every codec; JPEG last. scikit-image's photographs unless others are given."""
    shown = {f"picture {n + 1}": one for n, one in enumerate(pictures)} if pictures is not None else _samples()
    return [_strip(key, picture, codecs) for key, picture in shown.items()]


def _samples() -> dict[str, np.ndarray]:
    from compressor.samples import photograph

    cut = {}
    for name, (left, top, side) in _SAMPLES.items():
        picture = decode_picture(photograph(name)).pixels[top : top + side, left : left + side]
        cut[name] = resize_picture(np.ascontiguousarray(picture), _SIDE)
    return cut


def _strip(key: str, picture: np.ndarray, codecs: Mapping[str, Codec]) -> Strip:
    cells = [Cell("source", f"{picture.size:,} B · uncompressed", picture)]
    size = 0
    for name, codec in codecs.items():
        quality = codec.qualities[len(codec.qualities) // 2] if len(codec.qualities) else -1
        [encoded] = codec.encode([picture], quality, "entropy")
        size = len(encoded.payload)
        cells.append(_cell(name, size, picture, codec.decode([encoded])[0]))
    jpeg = STANDARD["jpeg"]
    encodings = [jpeg.encode([picture], quality)[0] for quality in range(1, 101, 3)]
    fitting = [one for one in encodings if len(one.payload) <= size] or encodings[:1]
    cells.append(_cell("JPEG", len(fitting[-1].payload), picture, jpeg.decode(fitting[-1:])[0]))
    return Strip(key, cells)


def _cell(name: str, size: int, picture: np.ndarray, decoded: np.ndarray) -> Cell:
    return Cell(name, f"{size:,} B · {psnr(picture, decoded):.1f} dB", decoded)


def write(results: Results, strips: Sequence[Strip], directory: Path) -> Written:
    """Write ``experiments.html``, ``experiments.md`` with PNG files, and ``experiments.json`` into ``directory``."""
    pages.make_folder(directory)
    found = findings(results)
    parts = _tables(results)
    drawn = figures.draw(results)
    html, markdown, values = (directory / f"experiments.{kind}" for kind in ("html", "md", "json"))
    html.write_text(_html(results, found, parts, drawn, strips), encoding="utf-8")
    images = {name: plots.png(figure) for name, figure in drawn.items()}
    if strips:
        images["strips"] = plots.png(plots.strips(strips))
    for name, image in images.items():
        (directory / f"{name}.png").write_bytes(image)
    links = {name: f"{name}.png" for name in images}
    markdown.write_text(_markdown(results, found, parts, links), encoding="utf-8")
    inside = {name: pages.data_uri(image, "png") for name, image in images.items() if name == "rate"}
    values.write_text(json.dumps(_compact(results, found), indent=1), encoding="utf-8")
    artifact = _markdown(results, found, parts, inside)
    table = pages.markdown_report_table(parts[0])
    return Written(html, markdown, values, _headline(found), table, artifact, found)


def _tables(results: Results) -> list[Table]:
    made = [
        tables.ladder_table(results),
        tables.packers_table(results),
        tables.types_table(results),
        tables.entropy_table(results),
        tables.description_table(results),
        tables.quantized_table(results),
        tables.ablations_table(results),
        tables.elsewhere_table(results),
    ]
    return [one for one in made if one.rows]


def _headline(found: Sequence[Finding]) -> str:
    count = {verdict: sum(one.verdict == verdict for one in found) for verdict in ("confirmed", "refuted", "unclear")}
    said = ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)
    return f"Of {len(found)} claims: {said}"


def _lead(results: Results) -> str:
    return (
        f"{len(results.ladder)} networks trained on {results.context['source']} and measured on "
        f"{results.context['measured on']}."
    )


def _markdown(results: Results, found: Sequence[Finding], parts: Sequence[Table], images: Mapping[str, str]) -> str:
    claims = tables.findings_table(found)
    text = [f"# {TITLE}", f"**{_headline(found)}**", _lead(results)]
    text += [f"## {claims.title}", claims.note, pages.markdown_report_table(claims)]
    text += [f"![{CAPTIONS[name]}]({link})" for name, link in images.items() if name in CAPTIONS]
    for table in parts:
        text += [f"## {table.title}", table.note, pages.markdown_report_table(table)]
    if "strips" in images:
        text += ["## Side by side", STRIP_NOTE, f"![Pictures decoded, side by side]({images['strips']})"]
    text += ["## Settings", "\n".join(f"- {name}: {value}" for name, value in results.context.items())]
    return "\n\n".join(text) + "\n"


def _html(
    results: Results,
    found: Sequence[Finding],
    parts: Sequence[Table],
    drawn: "dict[str, Figure]",
    strips: Sequence[Strip],
) -> str:
    return pages.template("experiments.html.j2").render(
        title=TITLE,
        headline=_headline(found),
        lead=_lead(results),
        findings=tables.findings_table(found),
        tables=parts,
        pictures={name: pages.data_uri(plots.svg(figure), "svg+xml") for name, figure in drawn.items()},
        captions=CAPTIONS,
        strips=[pages.cells(strip) for strip in strips],
        strip_note=STRIP_NOTE,
        settings=results.context,
    )


def _compact(results: Results, found: Sequence[Finding]) -> dict:
    """Results without what is per picture: means are enough to draw every table again."""

    def means(value: object) -> object:
        if isinstance(value, dict):
            kept = {key: means(one) for key, one in value.items()}
            if "png_bytes" in value and isinstance(value.get("bytes"), list):
                kept |= {"bytes": float(np.mean(value["bytes"])), "psnr": float(np.mean(value["psnr"]))}
            return kept
        return [means(one) for one in value] if isinstance(value, list | tuple) else value

    values = means(asdict(results))
    assert isinstance(values, dict)
    return values | {"findings": [asdict(one) for one in found]}
