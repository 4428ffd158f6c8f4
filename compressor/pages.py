"""A report's pages: Markdown, and one HTML file that holds everything it shows. Words and layout only."""

import base64
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from compressor import plots
from compressor.comparison import Headline, Table, count
from compressor.errors import LatentpackError
from compressor.picture_writing import encode_picture
from compressor.strips import Strip
from compressor.wording import legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "psnr": "PSNR over whole files.",
    "psnr_payload": "PSNR over coded data alone, without what every file repeats.",
    "ssim": "SSIM over whole files.",
    "ssimulacra2": "SSIMULACRA 2 over whole files.",
    "equal_bytes": "Equal bytes: every codec at the highest quality whose payload is no larger than the first codec's, "
    "or at its lowest.",
    "equal_quality": "Equal quality: every codec at the lowest quality that reaches the first codec's PSNR, or at its "
    "highest.",
}


def template(name: str) -> Any:
    """One of the package's Jinja templates: what is put in is escaped, and a name that is missing is an error."""
    import jinja2
    import markupsafe

    def emphasised(text: str) -> markupsafe.Markup:
        """Text with what Markdown has between asterisks emphasised."""
        return markupsafe.Markup(re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", str(markupsafe.escape(text))))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compressor"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["emphasised"] = emphasised
    return environment.get_template(name)


def make_folder(directory: Path) -> None:
    """Make a folder for a report, unless there is one. LatentpackError where it cannot be made, or written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise LatentpackError(
            f"a report cannot be written to {directory}: {error.strerror}; choose a folder"
        ) from error


def markdown(
    title: str, head: Headline, tables: list[Table], points: Table | None, settings: Table, images: dict[str, str]
) -> str:
    """A report as Markdown; ``images`` are links by the names of ``CAPTIONS``."""
    parts = [f"# {markdown_text(title)}", f"**{markdown_text(head.text)}**", markdown_text(head.detail)]
    parts += [f"![{CAPTIONS[name]}]({source})" for name, source in images.items()]
    for one in [*tables, *([points] if points else []), settings]:
        parts += [f"## {one.title}", one.note, markdown_report_table(one)]
    return "\n\n".join(parts) + "\n"


def markdown_report_table(table: Table) -> str:
    """A report's table as Markdown: figures to the right, strong rows in bold."""
    rows = [[f"**{cell}**" if n in table.strong else cell for cell in row] for n, row in enumerate(table.rows)]
    words = {0, *filter(table.in_words, range(len(table.columns)))}
    return markdown_table(table.columns, rows, set(range(len(table.columns))) - words)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], figures: Collection[int] = ()) -> str:
    """A Markdown table; columns of ``figures`` are set to the right."""
    lines = [columns, ["---:" if n in figures else "---" for n in range(len(columns))], *rows]
    return "\n".join(
        "| " + " | ".join(markdown_text(str(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def markdown_text(text: str) -> str:
    """Text, which may hold a file's name, within a line of Markdown: on one line, and without HTML of its own."""
    return legible(text).replace("<", "&lt;")


def html(
    title: str,
    head: Headline,
    tables: list[Table],
    points: Table,
    settings: Table,
    figures: "dict[str, Figure]",
    strips: Mapping[str, Sequence[Strip]],
    palette: dict[str, str],
    ours: Sequence[str],
) -> str:
    """A report as one HTML file; ``figures`` and ``strips`` by the names of ``CAPTIONS``, ``palette`` the codecs'
    colours.
    """
    widest = max((size for _, size in head.bars), default=1.0)
    bars = [
        {
            "name": name,
            "size": count(size),
            "width": 100 * size / widest,
            "colour": palette[name],
            "strong": name == head.codec,
        }
        for name, size in head.bars
    ]
    told = ", ".join(f"{bar['name']} {bar['size']} bytes" for bar in bars)
    return template("report.html.j2").render(
        title=title, head=head, bars=bars, tables=tables, points=points, settings=settings,
        plots={name: data_uri(plots.svg(figure), "svg+xml") for name, figure in figures.items()},
        strips={name: [cells(strip, ours) for strip in several] for name, several in strips.items()},
        captions=CAPTIONS,
        alts={"psnr": f"At {head.level:.4g} dB: {told}."} if told and isfinite(head.level) else {},
    )  # fmt: skip


def cells(strip: Strip, ours: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A strip's pictures for ``strips.j2``, each a PNG of its own: a browser enlarges them by a whole number."""
    return [
        {
            "codec": cell.codec,
            "caption": cell.caption.replace(" dB", "\N{NO-BREAK SPACE}dB"),
            "strong": cell.codec in ours,
            "width": cell.pixels.shape[1],
            "source": data_uri(encode_picture(cell.pixels, 3), "png"),
        }
        for cell in strip.cells
    ]


def data_uri(data: bytes, kind: str) -> str:
    """An image's bytes as a link that holds them; ``kind`` is ``png`` or ``svg+xml``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
