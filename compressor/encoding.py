"""One batch of files from bytes to Parquet parts: read, decode, encode, verify, write. Committing it is the caller's.

A file's end is one of three: a row above its floor, a row that keeps the original bytes, or a quarantine entry.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event

import crc32c
import numpy as np

from compressor.archive import Archive, Part, QuarantineRow, Row
from compressor.baselines import is_carried
from compressor.chunks import BYTES_AT_ONCE
from compressor.clock import Clock
from compressor.codec import ORIGINAL, Codec, Encoded, check_packer, check_quality, with_effort
from compressor.defaults import MOST_PSNR, TARGET_PSNR
from compressor.errors import UNREADABLE, CodecError, ImageError, is_shortage
from compressor.fallback import PATIENT_EFFORT, fall_back, is_costly
from compressor.images import Picture, decode_picture, resize_picture
from compressor.limits import Limits
from compressor.metrics import ssim
from compressor.photo_metadata import kept_exif, kept_xmp, taken
from compressor.picture_files import EXIF, XMP
from compressor.quality import Stored, as_grey, encode_measured, encode_to_target, smallest
from compressor.reading import read_contents, read_together
from compressor.sources import Source, SourceFile

PART_BYTES = 256 * 2**20
MOST_PIXELS = 2**25  # that are decoded at once, so that all threads have work; one picture may have more
PIXELS_AT_ONCE = 2**22  # decoded before they are encoded: eight passes through a network, so that few are nearly empty
PROBED = 16  # of so many pictures that seem to suit the codec one is tried against the fallback all the same,
PROBES = 4  # and so many at most; where most of them are smaller, all are tried
PSNR_BINS = np.array([0, 28, 30, 31, 32, 33, 34, 35, 36, 38, 40, 45, np.inf])


@dataclass(frozen=True)
class EncodeOptions:
    """How a batch is encoded.

    Parameters
    ----------
    codec
        Id of an artifact in the archive, or a standard format's name.
    target_psnr
        dB that every picture must reach, at the lowest quality found that does. Ignored where ``quality`` is given
        or the codec has only one quality.
    quality
        Fixed quality step for all pictures.
    min_psnr
        Floor in dB where there is no target: a picture below it is stored by a fallback. None: none. Above the target
        it is the target.
    packer
        ``auto`` or one of the codec's.
    effort
        Rounds of refinement of each picture, for a codec that knows them. From five on fallbacks take their time too.
    resize
        Side of a centre crop that pictures are resized to, but for those that keep their bytes (see
        :class:`~compressor.images.Picture`); None keeps every picture's own size.
    limits
        What is refused unread.
    keep_metadata
        Store what files say in EXIF and XMP (see :mod:`compressor.photo_metadata`), and when pictures were taken. The
        archive must know the columns: :meth:`compressor.archive.Archive.take_metadata`.
    """

    codec: str
    target_psnr: float | None = TARGET_PSNR
    quality: int | None = None
    min_psnr: float | None = None
    packer: str = "auto"
    effort: int = 0
    resize: int | None = None
    limits: Limits = field(default_factory=Limits)
    keep_metadata: bool = False

    def floor(self, codec: Codec) -> float | None:
        """dB below which a picture goes to the fallback, with this codec; None where any will do."""
        target = self.target(codec)
        return self.min_psnr if target is None else target

    @property
    def fixed_quality(self) -> int:
        """The quality step of all pictures where there is no target; -1 where none is given."""
        return -1 if self.quality is None else self.quality

    def target(self, codec: Codec) -> float | None:
        """dB to reach with this codec, or None where its quality is fixed."""
        if self.quality is not None or not len(codec.qualities) or self.target_psnr is None:
            return None
        return max(self.target_psnr, self.min_psnr or 0.0)


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch, small whatever the batch.

    ``psnr_sum`` and ``psnr_min`` are in dB, over the pictures that have a PSNR, ``psnr_counts`` is how many of them are
    in each of ``PSNR_BINS``; ``seconds`` are by stage. ``kept`` are archived pictures that keep their bytes, by why
    (see :class:`~compressor.images.Picture`; ``no gain``: they are no longer than what encodes them),
    ``kept_metadata`` those of them with EXIF or XMP, ``not_resized`` those of another size than ``resize`` asks for;
    ``dropped`` counts of the others what their files held beside them.
    """

    parts: list[Part] = field(default_factory=list)
    archived: int = 0
    quarantined: list[QuarantineRow] = field(default_factory=list)
    source_bytes: int = 0
    payload_bytes: int = 0
    pixels: int = 0
    codecs: dict[str, int] = field(default_factory=dict)
    psnr_sum: float = 0.0
    psnr_min: float = np.inf
    psnr_counts: list[int] = field(default_factory=lambda: [0] * (len(PSNR_BINS) - 1))
    seconds: dict[str, float] = field(default_factory=dict)
    not_resized: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    kept_metadata: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> Counter[str]:
        """Quarantined pictures by reason."""
        return Counter(row.reason for row in self.quarantined)


def encode_batch(
    source: Source,
    files: Sequence[SourceFile],
    archive: Archive,
    options: EncodeOptions,
    run: str,
    on_progress: Callable[[int], None] | None = None,
    threads: int = 1,
) -> BatchReport:
    """Encode ``files`` into parts of ``archive``, not yet visible.

    Parameters
    ----------
    run
        Name of the run, kept with quarantine entries.
    on_progress
        Told now and then how many of ``files`` are done.
    threads
        Pictures that fall back to a standard format at the same time.

    Returns
    -------
    Counts that add up: every file is archived or quarantined.

    Raises
    ------
    CodecError
        The codec does not know the quality, the packer or the effort that is asked for.
    """
    clock = Clock()
    contents = _contents(source, files, options.limits, clock)
    return encode_contents(contents, archive, options, run, on_progress, threads, clock)


def _contents(
    source: Source, files: Sequence[SourceFile], limits: Limits, clock: Clock
) -> Iterator[tuple[SourceFile, bytes | ImageError]]:
    for chunk in read_together(files):
        with clock("read"):
            contents = read_contents(source, chunk, limits)
        yield from zip(chunk, contents, strict=True)


def encode_contents(
    contents: Iterable[tuple[SourceFile, bytes | ImageError]],
    archive: Archive,
    options: EncodeOptions,
    run: str,
    on_progress: Callable[[int], None] | None = None,
    threads: int = 1,
    clock: Clock | None = None,
) -> BatchReport:
    """As :func:`encode_batch`, of files with their bytes, or why there are none; they are taken as they are needed."""
    codec = with_effort(archive.codec(options.codec), options.effort)
    check_packer(codec, options.packer)
    if options.target(codec) is None:
        check_quality(codec, options.fixed_quality)
    clock = clock or Clock()
    writer = _Writer(archive, clock)
    quarantined: list[QuarantineRow] = []
    waiting: list[tuple[SourceFile, bytes, Picture]] = []
    kept: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    pixels = held = held_bytes = not_resized = kept_metadata = 0

    def encode_waiting() -> None:
        nonlocal kept_metadata
        ends = _encode_pictures(waiting, codec, options, clock, threads)
        writer.add([end for end in ends if isinstance(end, Row)])
        for (file, _, picture), end in zip(waiting, ends, strict=True):
            if isinstance(end, ImageError):
                quarantined.append(_quarantine_row(file, end, run))
            elif end.codec == ORIGINAL:
                kept[picture.keep or "no gain"] += 1
                kept_metadata += not picture.extras.isdisjoint((EXIF, XMP))
            else:
                kinds = ((EXIF, end.exif), (XMP, end.xmp))
                dropped.update(picture.extras.difference(kind for kind, block in kinds if block is not None))

    for file, content in contents:
        try:
            with clock("decode"):
                if isinstance(content, ImageError):
                    raise content
                picture = _prepare(content, options)
        except ImageError as error:
            if isinstance(content, bytes) and file.size and len(content) != file.size:
                error = _not_as_listed(file, content, error)
            quarantined.append(_quarantine_row(file, error, run))
            continue
        not_resized += options.resize is not None and picture.pixels.shape[:2] != (options.resize, options.resize)
        waiting.append((file, content, picture))
        held += picture.pixels[:, :, 0].size
        held_bytes += len(content)
        # Large ones are waited for until there is one for each thread, as far as memory goes. Of long animations
        # only one picture is decoded.
        enough = held > PIXELS_AT_ONCE and (len(waiting) >= threads or held > MOST_PIXELS)
        if enough or held_bytes > BYTES_AT_ONCE:
            encode_waiting()
            pixels, held, held_bytes, waiting = pixels + held, 0, 0, []
            if on_progress:
                on_progress(sum(writer.codecs.values()) + len(quarantined))
    encode_waiting()
    writer.flush()
    measured = np.array(writer.psnr)
    return BatchReport(
        parts=writer.parts,
        archived=sum(writer.codecs.values()),
        quarantined=quarantined,
        source_bytes=writer.source_bytes,
        payload_bytes=writer.payload_bytes,
        pixels=pixels + held,
        codecs=dict(writer.codecs),
        psnr_sum=float(measured.sum()),
        psnr_min=float(measured.min(initial=np.inf)),
        psnr_counts=[int(count) for count in np.histogram(measured, PSNR_BINS)[0]],
        seconds=dict(clock.seconds),
        not_resized=not_resized,
        kept=dict(kept),
        kept_metadata=kept_metadata,
        dropped=dict(dropped),
    )


class _Writer:
    """Rows to parts, most often one; a batch of large originals takes several, so that memory stays bounded."""

    def __init__(self, archive: Archive, clock: Clock) -> None:
        self.parts: list[Part] = []
        self.codecs: Counter[str] = Counter()
        self.psnr: list[float] = []
        self.source_bytes = 0
        self.payload_bytes = 0
        self._archive = archive
        self._clock = clock
        self._rows: list[Row] = []
        self._held = 0

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.codecs[row.codec] += 1
            self.source_bytes += row.source_bytes
            self.payload_bytes += len(row.payload)
            self._held += len(row.payload)
            self._rows.append(row)
            if row.psnr is not None:
                self.psnr.append(row.psnr)
            if self._held > PART_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write the rows that wait, if any."""
        if self._rows:
            with self._clock("write"):
                self.parts.append(self._archive.write_part(self._rows))
        self._rows, self._held = [], 0


def _prepare(content: bytes, options: EncodeOptions) -> Picture:
    """A file's pixels, resized if asked for, and metadata if they are kept. ImageError where there are no pixels."""
    picture = decode_picture(content, options.limits, options.keep_metadata)
    if options.resize and not picture.keep:
        picture = replace(picture, pixels=resize_picture(picture.pixels, options.resize))
    return picture


def _not_as_listed(file: SourceFile, content: bytes, error: ImageError) -> ImageError:
    """Why there is no picture in what is not the file that was listed, so that this is tried again.

    It was cut short, an error's page came in its place, or it was written meanwhile.
    """
    given = f"the source gave {len(content):,} bytes of it, its listing says {file.size:,}"
    return ImageError(UNREADABLE, f"{error}; {given}")


def _encode_pictures(
    pictures: Sequence[tuple[SourceFile, bytes, Picture]],
    codec: Codec,
    options: EncodeOptions,
    clock: Clock,
    threads: int,
) -> list[Row | ImageError]:
    """Rows of pictures, in their order, or why there is none."""
    stored: dict[int, Stored] = {}
    fits = [
        index
        for index, (_, _, picture) in enumerate(pictures)
        if not picture.keep and codec.suits(*picture.pixels.shape[:2])
    ]
    with clock("encode"):
        for index, one in zip(fits, _encode([pictures[i][2] for i in fits], codec, options), strict=True):
            if one is not None:
                stored[index] = one
    floor = options.floor(codec)
    target = options.target(codec)
    goal = floor or options.target_psnr or TARGET_PSNR  # a format's lowest quality would be nobody's choice
    patient = options.effort >= PATIENT_EFFORT
    stopped = Event()
    untried: set[int] = set()  # although they could be smaller as well

    def unless_stopped(_: int) -> None:
        if stopped.is_set():
            raise CancelledError

    def settled(index: int) -> Stored | None:
        picture, one = pictures[index][2], stored.get(index)
        if picture.keep is None and (one is None or (floor is not None and one.psnr < floor)):
            return fall_back(picture, goal, patient, unless_stopped)
        if one is not None and target is not None:
            if is_costly(one, picture, goal):
                return smaller(index)
            untried.add(index)
        return one

    def smaller(index: int) -> Stored | None:
        return smallest(stored[index], fall_back(pictures[index][2], goal, patient, unless_stopped))

    def settle_all(pool: ThreadPoolExecutor) -> list[Stored | None]:
        chosen = list(pool.map(settled, range(len(pictures))))
        rest = sorted(untried)
        probes = rest[:: max(PROBED, len(rest) // PROBES)][: len(rest) // PROBED]
        found = dict(zip(probes, pool.map(smaller, probes), strict=True))
        if 2 * sum(one is not stored[index] for index, one in found.items()) > len(probes):
            rest = sorted(untried.difference(probes))
            found |= zip(rest, pool.map(smaller, rest), strict=True)
        return [found.get(index, one) for index, one in enumerate(chosen)]

    with clock("fallback"), ThreadPoolExecutor(threads) as pool:
        try:
            chosen = settle_all(pool)
        except BaseException:  # Ctrl-C must not wait for the searches of large pictures, which take seconds a try
            stopped.set()
            raise
    ends: list[Row | ImageError] = []
    for (file, content, picture), one in zip(pictures, chosen, strict=True):
        # Nothing is gained by a loss that saves nothing; and a resized picture is no longer the file's.
        unchanged = options.resize is None or picture.keep is not None
        if unchanged and (one is None or len(one.encoded.payload) >= len(content)):
            ends.append(_original_row(file, content, picture))
        elif one is None:
            height, width = picture.pixels.shape[:2]
            ends.append(ImageError("unsupported", f"no codec could encode it, resized to {width} x {height} pixels"))
        else:
            with clock("verify"):
                ends.append(_row(file, len(content), picture, one))
    return ends


def _encode(pictures: Sequence[Picture], codec: Codec, options: EncodeOptions) -> list[Stored | None]:
    """By the codec alone: None where the target is out of its reach, or its encoder refuses a picture."""
    try:
        return _encode_together(pictures, codec, options)
    except CodecError as error:
        if is_shortage(error):
            raise
    if len(pictures) == 1:
        return [None]
    return [one for picture in pictures for one in _encode([picture], codec, options)]


def _encode_together(pictures: Sequence[Picture], codec: Codec, options: EncodeOptions) -> list[Stored | None]:
    """CodecError where the encoder refuses one of them."""
    pixels = [picture.pixels for picture in pictures]
    if not pixels:
        return []
    target = options.target(codec)
    stored: list[Stored | None]
    if target is None:
        stored = list(encode_measured(codec, pixels, options.fixed_quality, options.packer))
    else:
        stored = encode_to_target(codec, pixels, target, options.packer)
    return [
        as_grey(one, picture.pixels) if one is not None and picture.channels == 1 else one
        for one, picture in zip(stored, pictures, strict=True)
    ]


def _row(file: SourceFile, source_bytes: int, picture: Picture, stored: Stored) -> Row:
    encoded = stored.encoded
    # What a learned codec gives back exactly here it may not elsewhere, where roundings are others.
    exact = stored.psnr == np.inf and not is_carried(encoded.codec)
    in_payload = encoded.codec == ORIGINAL
    return Row(
        key=file.key,
        fingerprint=file.fingerprint,
        width=encoded.width,
        height=encoded.height,
        channels=encoded.channels,
        source_bytes=source_bytes,
        codec=encoded.codec,
        quality=encoded.quality,
        packer=encoded.packer,
        payload=encoded.payload,
        crc32c=crc32c.crc32c(encoded.payload),
        psnr=None if exact else min(stored.psnr, MOST_PSNR),
        ssim=None if exact else ssim(picture.pixels, stored.pixels),
        taken=taken(picture.exif) if picture.exif else None,
        exif=kept_exif(picture.exif) if picture.exif and not in_payload else None,
        xmp=kept_xmp(picture.xmp) if picture.xmp and not in_payload else None,
    )


def _quarantine_row(file: SourceFile, error: ImageError, run: str) -> QuarantineRow:
    return QuarantineRow.now(file.key, file.fingerprint, error.reason, str(error), run)


def _original_row(file: SourceFile, content: bytes, picture: Picture) -> Row:
    height, width = picture.pixels.shape[:2]
    encoded = Encoded(content, width, height, picture.channels, ORIGINAL, -1, "")
    return _row(file, len(content), picture, Stored(encoded, picture.pixels, np.inf))
