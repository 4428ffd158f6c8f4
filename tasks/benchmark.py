"""Benchmark: rate and distortion of codecs on pictures of a source, as a report and as an artifact."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from prefect import task
from prefect.artifacts import create_markdown_artifact

from compressor.artifact import parse
from compressor.baselines import STANDARD
from compressor.codec import Codec, artifact_bytes, load_codec, titles, with_effort
from compressor.destinations import Destination, filled
from compressor.errors import CodecError, SourceError
from compressor.limits import Limits
from compressor.pages import make_folder
from compressor.reading import plain_pictures
from compressor.sources import Source
from compressor.strips import centre
from compressor.wording import by_reason, number
from tasks.artifacts import address_slug, not_vital
from tasks.retries import NOT_KEPT

MIDDLE = 2048  # pixels a side of what is measured of a large picture
LISTED = 100_000  # files that a sample is drawn of, so that the first of millions need not wait for the last


def load_pictures(
    source: Source, limit: int, codecs: Collection[Codec]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """At most ``limit`` pictures of a source that plain 8-bit colour can hold: uint8 (H, W, 3) by key, in its order.

    They are drawn from its first :data:`LISTED` files, the same ones at every call, for those that come first are
    often of one kind. And how many files that were drawn cannot be measured, by reason. Of a picture that is too large
    for one of ``codecs``, to which a run would not give it either, the middle.
    """
    listed = list(itertools.islice(source.files(), LISTED))
    Random(0).shuffle(listed)
    pictures: dict[str, np.ndarray] = {}
    refused: Counter[str] = Counter()
    files = iter(listed)
    while len(pictures) < limit and (wanted := list(itertools.islice(files, limit - len(pictures)))):
        for file, pixels in plain_pictures(source, wanted, Limits(), refused):
            suited = all(codec.suits(*pixels.shape[:2]) for codec in codecs)
            pictures[file.key] = pixels if suited else centre(pixels, MIDDLE)
    if not pictures:
        why = f" among {by_reason(refused)} (plain 8-bit ones can)" if refused else ": the source is empty"
        raise SourceError(f"{source.shown}: there is no picture here that can be measured{why}")
    return dict(sorted(pictures.items())), dict(refused.most_common())


def _trained_on(source: Source, codecs: Mapping[str, str]) -> list[str]:
    """Titles of ``codecs`` whose cards name this source."""
    learned = {title: name for title, name in codecs.items() if name not in STANDARD}
    cards = {title: parse(artifact_bytes(name)).metadata.get("card") for title, name in learned.items()}
    return [title for title, card in cards.items() if isinstance(card, dict) and card.get("source") == source.shown]


@task(name="benchmark", **NOT_KEPT)
def benchmark(
    source: Source,
    limit: int,
    codecs: Sequence[str],
    place: Destination,
    effort: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure ``codecs`` and the standard ones. Returns where the report lies, and its summary.

    With an ``effort``, each of ``codecs`` is measured a second time, with as many rounds of refinement.
    """
    from compressor.report import measure, standard_codecs, write_report

    named = {title: load_codec(name) for title, name in titles(codecs).items()}
    if effort:
        named |= {f"{name}, effort {effort}": with_effort(codec, effort) for name, codec in named.items()}
    standard = standard_codecs()
    if clash := named.keys() & standard.keys():
        raise CodecError(f"a codec of yours has the name of a standard format, {min(clash)}: rename its file")
    compared = {**named, **standard}
    pictures, refused = load_pictures(source, limit, compared.values())
    with filled(place, "report.html") as directory:
        make_folder(directory)  # what cannot be written is said before anything is measured
        table = measure(pictures, compared, ssimulacra2_pictures=min(20, len(pictures)), on_progress=on_progress)
        notes = [
            f"{title} was trained on pictures of this source: of others it may make less."
            for title in _trained_on(source, titles(codecs))
        ]
        title = f"Benchmark of {number(len(pictures), 'picture')} drawn from {source.shown}"
        report = write_report(table, pictures, directory, compared, list(named), title, notes)
    left_out = f"Left out: {by_reason(refused)}. " if refused else ""
    with not_vital("the benchmark"):
        create_markdown_artifact(
            f"{report.artifact}\n{left_out}The whole report: {place.told(report.html.name)}\n",
            key=f"benchmark-{address_slug(source.shown)}",
            description=f"rate and distortion on {number(len(pictures), 'picture')}",
        )
    return {
        "html": f"{place}/{report.html.name}",
        "markdown": f"{place}/{report.markdown.name}",
        "parquet": f"{place}/{report.parquet.name}",
        "pictures": len(pictures),
        "refused": refused,
        "notes": notes,
        **report.summary,
    }
