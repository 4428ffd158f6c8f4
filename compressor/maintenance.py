"""An archive in figures, and small files merged into large ones. Called through ``Archive``."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compressor import parquet
from compressor.carried import carried_ids, codec_name
from compressor.chunks import bounded_chunks
from compressor.defaults import MOST_PSNR
from compressor.delta_log import Change
from compressor.keyed_table import KeyedTable
from compressor.parquet import Part

TARGET_BYTES = 64 * 2**20  # of a compacted file: what replacing one picture in it rewrites
MAX_OVERLAP = 4  # files that one key may have to be looked for in, before compaction rewrites the large ones too
MANY_OVERLAP = 32  # small files that a cut would go through, all read again for each new file
SAMPLES = 16  # keys of a row group that say where to cut
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class ArchiveInfo:
    """An archive in figures. Bytes are those of the present version; PSNR in dB, over pictures that are not exact.

    ``table_bytes`` are the Parquet files (payloads and metadata), ``ratio`` is source bytes over table and codec bytes,
    ``ratio_without_codecs`` over table bytes alone, as a run's. ``unused_codecs`` are ids of those that the archive
    carries, and no picture is stored by.
    """

    url: str
    format: int
    version: int
    pictures: int
    quarantined: int
    exact: int
    source_bytes: int
    payload_bytes: int
    table_bytes: int
    codec_bytes: int
    files: int
    ratio: float
    ratio_without_codecs: float
    metadata_bytes_per_picture: float
    codecs: dict[str, int]
    unused_codecs: list[str]
    packers: dict[str, int]
    qualities: dict[int, int]
    sizes: dict[str, int]
    quarantine_reasons: dict[str, int]
    psnr_mean: float | None
    psnr_min: float | None
    psnr_percentiles: dict[str, float]
    psnr_histogram: dict[str, int]
    ssim_mean: float | None


def sizes(images: KeyedTable) -> tuple[int, int]:
    """Bytes of the Parquet files that hold an archive's pictures, and of the codecs beside them."""
    store = images.store
    codec_bytes = sum(store.size(codec_name(id)) for id in carried_ids(store))
    return sum(part.size for part in images.parts), codec_bytes


def info(images: KeyedTable, quarantine: KeyedTable, format: int) -> ArchiveInfo:
    """Figures from all columns but the payload's. FileNotFoundError where another run has taken a file away."""
    store = images.store
    counts: dict[str, Counter[Any]] = {name: Counter() for name in ("codec", "packer", "quality", "size", "psnr")}
    source_bytes = payload_bytes = 0
    ssim_sum = 0.0
    ssim_count = 0
    columns = ["width", "height", "source_bytes", "codec", "quality", "packer", "psnr", "ssim"]
    for part, group in images.groups():
        if group == 0:  # while its footer is at hand
            payload_bytes += parquet.payload_bytes(images.footer(part))
        table = images.read(part, [group], columns)
        source_bytes += pc.sum(table["source_bytes"]).as_py()
        for name in ("codec", "packer", "quality", "psnr"):
            for entry in pc.value_counts(table[name].combine_chunks()).to_pylist():
                counts[name][entry["values"]] += entry["counts"]
        counts["size"].update(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
        ssim_count += len(table) - table["ssim"].null_count
        ssim_sum += pc.sum(table["ssim"]).as_py() or 0.0
    exact = sum(counts["psnr"].pop(value, 0) for value in (None, MOST_PSNR))
    psnr = np.array(sorted(counts["psnr"]), np.float64)
    weights = np.array([counts["psnr"][value] for value in sorted(counts["psnr"])], np.int64)
    histogram: Counter[int] = Counter()
    for value, count in counts["psnr"].items():
        histogram[int(np.floor(value))] += count
    table_bytes, codec_bytes = sizes(images)
    reasons: Counter[str] = Counter()
    for part, group in quarantine.groups():
        reasons.update(quarantine.read(part, [group], ["reason"])["reason"].to_pylist())
    pictures = images.rows
    return ArchiveInfo(
        url=store.url,
        format=format,
        version=images.log.version,
        pictures=pictures,
        quarantined=reasons.total(),
        exact=exact,
        source_bytes=source_bytes,
        payload_bytes=payload_bytes,
        table_bytes=table_bytes,
        codec_bytes=codec_bytes,
        files=len(images.parts),
        ratio=source_bytes / max(table_bytes + codec_bytes, 1),
        ratio_without_codecs=source_bytes / max(table_bytes, 1),
        metadata_bytes_per_picture=(table_bytes - payload_bytes) / max(pictures, 1),
        codecs=dict(counts["codec"].most_common()),
        unused_codecs=[id for id in carried_ids(store) if id not in counts["codec"]],
        packers=dict(counts["packer"].most_common()),
        qualities=dict(sorted(counts["quality"].items())),
        sizes={f"{width}x{height}": count for (width, height), count in counts["size"].most_common(20)},
        quarantine_reasons=dict(reasons.most_common()),
        psnr_mean=round(float(np.average(psnr, weights=weights)), 3) if len(psnr) else None,
        psnr_min=round(float(psnr[0]), 2) if len(psnr) else None,
        psnr_percentiles=_percentiles(psnr, weights),
        psnr_histogram={f"{db}": count for db, count in sorted(histogram.items())},
        ssim_mean=round(ssim_sum / ssim_count, 4) if ssim_count else None,
    )


def _percentiles(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Of sorted ``values`` that occur ``weights`` times."""
    if not len(values):
        return {}
    reached = np.cumsum(weights) / weights.sum() * 100
    return {str(p): round(float(values[np.searchsorted(reached, p)]), 2) for p in PERCENTILES}


def compact(
    table: KeyedTable, target: int = TARGET_BYTES, on_progress: Callable[[int, int], None] | None = None
) -> int:
    """Merge small files, so that no two of the new ones overlap. Returns how many files fewer there are.

    Large files stay as they are, unless so many overlap that looking for a key would have to open more than a few.
    Where very many small ones overlap they are merged a new file's worth at a time first, each a commit: a small file
    is one row group, which each cut through it would have read again. ``on_progress`` is told (MB written, of so
    many).
    """
    table.log.refresh()
    small = [part for part in table.parts if part.size < target // 2]
    portions = list(bounded_chunks(small, lambda part: part.size, target, len(small) or 1))
    apart = len(portions) >= MAX_OVERLAP and _overlap(small) >= MANY_OVERLAP
    total = sum(part.size for part in small) * (2 if apart else 1)
    written = 0

    def tell(size: int) -> None:
        nonlocal written
        written += size
        if on_progress:
            on_progress(written // 10**6, max(total, written) // 10**6)

    fewer = 0
    between: list[Part] = []
    for portion in portions if apart else []:
        merged = _merge(table, portion, target, tell)
        fewer += len(portion) - len(merged) if merged else 0
        between += merged
    again = set(_overlapping(between))
    large = [part for part in table.parts if part.size >= target // 2 and part not in again]
    chosen = set(_overlapping(large)) if _overlap(large) >= MAX_OVERLAP else set()
    chosen |= set(table.parts).difference(large)
    total = written + sum(part.size for part in chosen)
    merged = _merge(table, sorted(chosen, key=lambda part: part.key_range), target, tell)
    return fewer + (len(chosen) - len(merged) if merged else 0)


def _merge(table: KeyedTable, merged: Sequence[Part], target: int, tell: Callable[[int], None]) -> list[Part]:
    """Write the rows of some files as files that do not overlap, in one commit. Returns these; none if it was in vain.

    ``tell`` is called with the bytes of each as it is written.
    """
    if len(merged) < 2:
        return []
    written = []
    for rows in _sorted_runs(table, merged, target):
        if (part := table.write(rows)) is not None:
            written.append(part)
            tell(part.size)
    change = Change(add=written, remove=list(merged), moves_only=True)
    gone = {part.path for part in merged}

    in_vain = proposed = False

    def plan() -> Change | None:
        nonlocal in_vain, proposed
        # Appends by others do not matter; if they replaced a picture in one of these files, the work was in vain.
        in_vain = not gone <= {part.path for part in table.parts}
        if in_vain:
            return None
        table.check_there(written)
        proposed = True
        return change

    table.log.transact(plan)
    if in_vain and not proposed:  # else the commit may arrive after all
        table.store.delete([f"{table.folder}/{part.path}" for part in written])
    return [] if in_vain else written


def _overlap(parts: Sequence[Part]) -> int:
    """Most files that hold the same key between their smallest and largest."""
    edges = sorted([(part.key_range[0], 0) for part in parts] + [(part.key_range[1], 1) for part in parts])
    depth = deepest = 0
    for _, closing in edges:
        depth += -1 if closing else 1
        deepest = max(deepest, depth)
    return deepest


def _overlapping(parts: Sequence[Part]) -> list[Part]:
    """Those that overlap another."""
    found: set[Part] = set()
    last: Part | None = None  # that reaches furthest
    for part in sorted(parts, key=lambda part: part.key_range):
        if last and part.key_range[0] <= last.key_range[1]:
            found |= {last, part}
        if last is None or part.key_range[1] > last.key_range[1]:
            last = part
    return [part for part in parts if part in found]


def _sorted_runs(table: KeyedTable, parts: Sequence[Part], target: int) -> Iterator[Iterator[pa.Table]]:
    """The rows of ``parts`` as runs of about ``target`` bytes, each sorted, none overlapping another.

    A sample of the keys says where to cut; only the row groups that a cut divides are read twice.
    """
    samples: list[tuple[str, float]] = []  # key, bytes that it stands for
    there: set[str] = set()
    for part in parts:
        footer = table.footer(part)
        there.update(parquet.column_names(footer))
        for group in range(footer.num_row_groups):
            keys = table.read(part, [group], ["key"])["key"].to_pylist()
            keys = keys[:: -(-len(keys) // SAMPLES)]
            samples += [(key, footer.row_group(group).total_byte_size / len(keys)) for key in keys]
    samples.sort()
    # Equal runs, rather than full ones and a small rest that the next compaction would take up again.
    runs = max(1, round(sum(size for _, size in samples) / target))
    share = sum(size for _, size in samples) / runs
    cuts: list[str] = []
    passed = 0.0
    for key, size in samples:
        if passed >= share * (len(cuts) + 1) and len(cuts) < runs - 1:
            cuts.append(key)
        passed += size
    columns = [column.name for column in table.layout.columns if column.name in there or not column.optional]
    for first, end in zip([None, *cuts], [*cuts, None], strict=True):
        yield _sorted_run(table, parts, columns, first, end)


def _sorted_run(
    table: KeyedTable, parts: Sequence[Part], columns: Sequence[str], first: str | None, end: str | None
) -> Iterator[pa.Table]:
    """All rows with first <= key < end in order; None is no bound."""
    pieces = []
    for part in parts:
        smallest, largest = part.key_range
        if (end is not None and smallest >= end) or (first is not None and largest < first):
            continue
        groups = parquet.row_groups_with(table.footer(part), parquet.Spans([(first or smallest, end or largest)]))
        rows = table.read(part, groups, columns, salvage=True)
        if first is not None:
            rows = rows.filter(pc.greater_equal(rows["key"], first))
        if end is not None:
            rows = rows.filter(pc.less(rows["key"], end))
        pieces.append(rows)
    merged = pa.concat_tables(pieces).combine_chunks()
    order = pc.sort_indices(merged["key"])
    for start in range(0, len(order), parquet.GROUP_ROWS):
        yield merged.take(order[start : start + parquet.GROUP_ROWS])
