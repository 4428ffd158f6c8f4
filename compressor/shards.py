"""Prepared training pictures: one Arrow file of equal-sized uint8 pictures for each batch of files.

A shard is named by what is in it and how it was made, so that it can be cached, shared and made again.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.errors import UNREADABLE, SourceError
from compressor.files import replacing
from compressor.images import resize_picture
from compressor.limits import Limits
from compressor.reading import plain_pictures
from compressor.sources import Source, SourceFile
from compressor.wording import by_reason

_END = b"ARROW1"  # of a whole Arrow file
VERSION = 3  # raise it when the same files give other pictures


@dataclass(frozen=True)
class ShardConfig:
    """How pictures are prepared: centre-cropped and resized to ``side`` x ``side``, within ``limits``.

    With ``crops`` as many squares of that side instead are cut out of each at random places, at its own size: at most
    as many as would cover it, and of a smaller picture one, enlarged.
    """

    side: int = 128
    limits: Limits = Limits()
    crops: int = 0

    def digest(self, source: Source, files: Sequence[SourceFile]) -> str:
        """Name of the shard of these files: 32 hexadecimal digits over all that tells it from others.

        Which are the source's address, the files' keys, sizes and fingerprints, and the configuration. The address,
        since copies of two folders, as an archive unpacks them, may have names, sizes and times in common.
        """
        settings = asdict(self)
        if not self.crops:  # shards of before there were any are named without
            del settings["crops"]
        told = json.dumps([VERSION, settings, source.address], sort_keys=True)  # ASCII, whatever a path holds
        content = hashlib.blake2b(told.encode(), digest_size=16)
        for file in files:
            content.update(f"\0{file.key}\0{file.size}\0".encode("utf-8", "surrogateescape") + file.fingerprint)
        return content.hexdigest()


@dataclass(frozen=True)
class ShardRecord:
    """A shard on disk: what passes between tasks instead of pixels."""

    path: str
    digest: str
    count: int
    refused: dict[str, int]
    native_side: int = 0  # the median of its pictures' shorter sides, before they were prepared; 0 is unknown

    @property
    def content(self) -> str:
        """What is in it: the files' digest, and how many of them the source did not give."""
        missing = self.refused.get(UNREADABLE, 0)
        return f"{self.digest}-{missing}" if missing else self.digest

    def exists(self) -> bool:
        """Whether the file is still there and whole: what the source did not give, it may give the next time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(-len(_END), os.SEEK_END)
                return file.read() == _END and not self.refused.get(UNREADABLE)
        except OSError:
            return False


def content_of(records: Sequence[ShardRecord], *ids: str) -> str:
    """Digest of what is in shards, and of ids of codecs: for keys of caches."""
    text = "|".join([*ids, ",".join(record.content for record in records)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def refused_of(records: Iterable[ShardRecord]) -> dict[str, int]:
    """How many files the shards lack, by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.refused)
    return dict(counts.most_common())


def native_side(records: Iterable[ShardRecord]) -> int:
    """The median of the shorter sides of their pictures as they came, near enough; 0 where it is not known."""
    sides = [record.native_side for record in records if record.native_side]
    return int(np.median(sides)) if sides else 0


def prepare_shard(source: Source, files: Sequence[SourceFile], config: ShardConfig, folder: Path) -> ShardRecord:
    """Decode, crop and resize ``files`` into one shard under ``folder``.

    Pictures that cannot be read, need more than 8-bit RGB or are refused are counted by reason and left out.
    """
    digest = config.digest(source, files)
    path = folder / f"{digest}.arrow"
    refused: Counter[str] = Counter()
    sides: list[int] = []
    count = _write(path, _prepared(source, files, config, refused, sides), config.side)
    return ShardRecord(str(path), digest, count, dict(refused), int(np.median(sides)) if sides else 0)


def _prepared(
    source: Source, files: Sequence[SourceFile], config: ShardConfig, refused: Counter[str], sides: list[int]
) -> Iterator[np.ndarray]:
    """Pictures as they are learned from, uint8 (side, side, 3) each; those that are left out count in ``refused``."""
    for file, pixels in plain_pictures(source, files, config.limits, refused):
        height, width = pixels.shape[:2]
        sides.append(min(height, width))
        if not config.crops or min(height, width) <= config.side:
            yield resize_picture(pixels, config.side)
            continue
        random = Random(file.key)  # the same each time that it is prepared
        for _ in range(min(config.crops, -(-height * width // config.side**2))):
            top, left = (random.randint(0, length - config.side) for length in (height, width))
            yield np.ascontiguousarray(pixels[top : top + config.side, left : left + config.side])


def drawn(files: Iterable[SourceFile], most: int, seed: int) -> list[SourceFile]:
    """At most ``most`` files, in order, each with the same chance: one pass over a listing of any length.

    A reservoir (Vitter, 1985).
    """
    random = Random(seed)
    kept: list[tuple[int, SourceFile]] = []
    for index, file in enumerate(files):
        if index < most:
            kept.append((index, file))
        elif (place := random.randrange(index + 1)) < most:
            kept[place] = (index, file)
    return [file for _, file in sorted(kept, key=lambda one: one[0])]


def load_shards(records: Sequence[ShardRecord], chosen_N: np.ndarray | None = None) -> np.ndarray:
    """Pictures of the shards in order, all or those that are ``chosen_N``: uint8 (N, H, W, 3).

    SourceError where the shards hold none.
    """
    total = sum(record.count for record in records)
    if not total:
        refused = refused_of(records)
        why = f" among {by_reason(refused)} (it takes plain 8-bit ones)" if refused else ": the source is empty"
        raise SourceError(f"there is no picture to train on{why}")
    chosen_N = np.ones(total, bool) if chosen_N is None else chosen_N
    pictures_NHWC, start, filled = np.empty(0, np.uint8), 0, 0
    for record in records:
        with pa.memory_map(record.path) as file:
            table = pa.ipc.open_file(file).read_all()
        shape = json.loads(table.schema.metadata[b"shape"])
        if not start:
            pictures_NHWC = np.empty((np.count_nonzero(chosen_N), *shape), np.uint8)
        for chunk in table["pixels"].chunks:
            here = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)
            wanted = here[chosen_N[start : start + len(here)]]
            pictures_NHWC[filled : filled + len(wanted)] = wanted
            start, filled = start + len(here), filled + len(wanted)
    return pictures_NHWC


def _write(path: Path, pictures: Iterable[np.ndarray], side: int) -> int:
    """Write pictures as they come, so that few are in memory. Returns how many there were."""
    shape = (side, side, 3)
    size = int(np.prod(shape))
    schema = pa.schema([("pixels", pa.list_(pa.uint8(), size))], metadata={"shape": json.dumps(shape)})
    count = 0
    with (
        replacing(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for batch in bounded_chunks(pictures, lambda picture: picture.nbytes, BYTES_AT_ONCE):
            values = pa.array(np.concatenate([picture.ravel() for picture in batch]))
            column = pa.FixedSizeListArray.from_arrays(values, size)
            writer.write_batch(pa.record_batch([column], schema=schema))
            count += len(batch)
    return count
