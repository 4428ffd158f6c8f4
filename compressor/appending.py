"""Pictures from a program's memory into an archive, in one commit: arrays, and the bytes of picture files.

How they are encoded lies in encoding.py; where a run's files come from in sources.py.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from compressor.archive import Archive
from compressor.choosing import put_codec
from compressor.defaults import CODEC, HIGHEST_TARGET, LEAST_TARGET, TARGET_PSNR
from compressor.encoding import BatchReport, EncodeOptions, encode_contents
from compressor.errors import ArchiveError, ImageError, LatentpackError, enough_memory
from compressor.images import decode_picture
from compressor.keys import require_text
from compressor.known import content_fingerprint
from compressor.limits import Limits, check_size
from compressor.picture_writing import encode_picture
from compressor.reading import refusal
from compressor.sources import SourceFile, name_problem
from compressor.wording import number

NAMED = 3  # refused pictures that a message tells of


@dataclass(frozen=True)
class Appended:
    """What was archived: how many pictures, how many by each of ``codecs``, and bytes.

    ``source_bytes`` are those of the files, of an array those of its PNG; ``psnr_min`` is in dB, infinite where nothing
    was lost.
    """

    archived: int
    source_bytes: int
    payload_bytes: int
    codecs: dict[str, int]
    psnr_min: float


class NotAppended(LatentpackError):
    """Some pictures cannot be archived, so that none was. ``refused`` says why of each of them, by key."""

    def __init__(self, message: str, refused: dict[str, ImageError]) -> None:
        super().__init__(message)
        self.refused = refused

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.refused)


def append(
    archive: Archive,
    pictures: Mapping[str, np.ndarray | bytes | bytearray | memoryview],
    codec: str | bytes | os.PathLike[str] = CODEC,
    target_psnr: float | None = TARGET_PSNR,
    quality: int | None = None,
    effort: int = 0,
    limits: Limits | None = None,
    threads: int = 1,
    keep_metadata: bool = False,
) -> Appended:
    """Archive pictures by key as a run archives files, with the same promise and the same fallbacks; all or none.

    An array is archived as the PNG of it would be, so that one which PNG stores in fewer bytes than the codec keeps
    every value. What is archived under one of the keys is replaced.

    The fingerprint of such a picture is a digest of its bytes, and never that of a file in a source. A later run over a
    source that lists one of the keys therefore takes it for changed and archives the source's picture in its place; a
    run with ``--mirror`` takes the keys that its source does not list for gone, and deletes them.

    Parameters
    ----------
    pictures
        By key, a relative path such as ``holiday/beach.jpg``: uint8 arrays, (H, W, 3) in RGB or (H, W) in grey, or the
        bytes of files in a format that a run reads. All are in memory, and become visible together: append a large
        collection some thousands at a time.
    codec
        Released name, standard format's name, path or bytes of an artifact, or id of one that the archive carries.
    target_psnr
        dB that every picture reaches, from 10 to 60. None, where a quality is given or the codec has just one: any.
    quality
        Fixed quality step instead, with which no other target than the usual one may be given.
    effort
        Rounds of refinement of each picture, 0 to 100: fewer bytes, more time.
    limits
        Of bytes and pixels, the usual ones where None is given.
    threads
        Pictures that fall back to a standard format at the same time.
    keep_metadata
        Store what files say in EXIF and XMP, too.

    Raises
    ------
    NotAppended
        Some cannot be archived: damaged bytes, another shape or type of numbers, too many pixels. It is known before
        anything is encoded, of all of them, and the archive stays as it is.
    ArchiveError
        A key is no relative path, ``target_psnr`` or ``threads`` is out of range, or there is a target and a quality.
    CodecError
        There is no such codec, or it does not know this quality or effort.
    TypeError
        Something is neither an array nor bytes, a key is no text, or ``codec`` or ``limits`` are nothing of the kind.
    """
    if not isinstance(pictures, Mapping):
        raise TypeError(f"pictures come by key, as in {{'a.png': pixels}}, not as {type(pictures).__name__}")
    contents = {_checked_key(key): _array_or_bytes(key, picture) for key, picture in pictures.items()}
    if not contents:
        return Appended(0, 0, 0, {}, np.inf)
    limits = Limits() if limits is None else limits
    _check_arguments(target_psnr, quality, limits, threads)
    with enough_memory(archive.url, "append to it"):
        _raise_if_any({key: error for key in contents if (error := _refusal(key, contents[key], limits))}, contents)
        id, _ = put_codec(archive, codec)
        # A floor as well: of a codec that has one quality, too
        floor = target_psnr if quality is None else None
        if keep_metadata:
            archive.take_metadata()
        options = EncodeOptions(
            id, target_psnr, quality, floor, effort=effort, limits=limits, keep_metadata=keep_metadata
        )
        report = encode_contents(_files(contents), archive, options, "append", threads=threads)
    # What only its PNG shows: an array of noise may be too large as a file
    _raise_if_any({row.key: ImageError(row.reason, row.detail) for row in report.quarantined}, contents)
    commit_batch(archive, report, contents.keys(), replaced=contents.keys(), once_quarantined=contents.keys())
    return Appended(report.archived, report.source_bytes, report.payload_bytes, report.codecs, report.psnr_min)


def _check_arguments(target_psnr: float | None, quality: int | None, limits: Limits, threads: int) -> None:
    in_range = isinstance(target_psnr, Real) and LEAST_TARGET <= target_psnr <= HIGHEST_TARGET
    if target_psnr is not None and not in_range:
        raise ArchiveError(f"target_psnr is from {LEAST_TARGET:g} to {HIGHEST_TARGET:g} dB, not {target_psnr!r}")
    if quality is not None and target_psnr not in (None, TARGET_PSNR):  # as of a run, whose form sends the usual one
        raise ArchiveError(f"quality does not go with a target PSNR: leave out quality={quality} or {target_psnr=}")
    if not isinstance(limits, Limits):
        raise TypeError(f"limits are compressor.limits.Limits(max_bytes, max_pixels), not {type(limits).__name__}")
    if not isinstance(threads, Integral) or threads < 1:
        raise ArchiveError(f"threads are 1 or more, not {threads!r}")


def commit_batch(
    archive: Archive,
    report: BatchReport,
    keys: Collection[str],
    replaced: Collection[str],
    once_quarantined: Collection[str],
    batch_id: str | None = None,
) -> tuple[int, int]:
    """Make a finished batch visible in one commit, and list what of it failed.

    Parameters
    ----------
    keys
        Of all pictures in the batch.
    replaced
        Those of them whose archived rows are out of date. Of what failed they stay.
    once_quarantined
        Keys that may be on the quarantine list; those that are archived now leave it.
    batch_id
        See :meth:`compressor.archive.Archive.commit`.

    Returns
    -------
    How many rows were replaced, and how many were dropped, for another run had archived their keys meanwhile.
    """
    failed = {row.key for row in report.quarantined}
    changed = sorted(set(replaced) - failed)
    dropped = archive.commit(report.parts, changed, batch_id) if report.parts else 0
    archive.quarantine(report.quarantined)
    healed = [key for key in keys if key in once_quarantined and key not in failed]
    if healed:
        archive.clear_quarantine(healed)
    return len(changed), dropped


def _checked_key(key: str) -> str:
    require_text(key)
    problem = name_problem(key)
    if not {"", ".", ".."}.isdisjoint(key.split("/")):  # which no source lists
        problem = "it is a relative path, without empty parts, '.' and '..'"
    if problem:
        raise ArchiveError(f"{key!r} cannot be a key: {problem}")
    return key


def _array_or_bytes(key: str, picture: object) -> np.ndarray | bytes:
    if isinstance(picture, (np.ndarray, bytes)):
        return picture
    if isinstance(picture, (bytearray, memoryview)):
        return bytes(picture)
    packages = {base.__module__.partition(".")[0] for base in type(picture).__mro__}
    if isinstance(picture, (str, os.PathLike)):
        advice = "pathlib.Path(...).read_bytes()"
    elif "PIL" in packages:  # an array of one with a palette would hold numbers of colours, and pass for grey
        advice = 'numpy.asarray(picture.convert("RGB"))'
    elif "torch" in packages:
        advice = "picture.permute(1, 2, 0).cpu().numpy()"
    else:
        advice = "see numpy.asarray"
    kind = type(picture).__name__
    raise TypeError(f"{key}: a picture is a NumPy array or the bytes of a file, not {kind}; {advice}")


def _refusal(key: str, picture: np.ndarray | bytes, limits: Limits) -> ImageError | None:
    """Why a picture cannot be archived; None where it can."""
    try:
        if isinstance(picture, bytes):
            if refused := refusal(SourceFile(key, key, len(picture), b""), limits):
                return refused
            decode_picture(picture, limits)
        else:
            _check_array(picture, limits)
    except ImageError as error:
        return error
    return None


def _check_array(pixels: np.ndarray, limits: Limits) -> None:
    if isinstance(pixels, np.ma.MaskedArray):
        raise ImageError("unsupported", "a masked array, whose hidden values would be stored too: fill it first")
    if pixels.dtype != np.uint8:
        detail = f"an array of {pixels.dtype}; pictures are uint8, from 0 to 255: round and convert it first"
        raise ImageError("unsupported", detail)
    if pixels.ndim != 2 and pixels.shape[2:] != (3,):
        detail = f"an array of shape {pixels.shape}; pictures are (H, W, 3) or (H, W), those with alpha bytes of a PNG"
        raise ImageError("unsupported", detail)
    if not pixels.size:
        raise ImageError("empty", f"an array of shape {pixels.shape} has no pixels")
    check_size(pixels.shape[1], pixels.shape[0], limits)


def _raise_if_any(refused: dict[str, ImageError], pictures: Mapping[str, np.ndarray | bytes]) -> None:
    if not refused:
        return
    told = [f"{key}: {error}" for key, error in list(refused.items())[:NAMED]]
    more = f"; and {len(refused) - NAMED:,} more" if len(refused) > NAMED else ""
    raise NotAppended(
        f"none of {number(len(pictures), 'picture')} was archived, for {len(refused):,} cannot be: "
        f"{'; '.join(told)}{more}. Leave out what .refused names, or mend it",
        refused,
    )


def _files(pictures: Mapping[str, np.ndarray | bytes]) -> Iterator[tuple[SourceFile, bytes]]:
    """Each picture as a file, an array as a PNG."""
    for key, picture in pictures.items():
        content = picture if isinstance(picture, bytes) else _png(picture)
        yield SourceFile(key, key, len(content), content_fingerprint(content)), content


def _png(pixels: np.ndarray) -> bytes:
    return encode_picture(pixels, 3) if pixels.ndim == 3 else encode_picture(pixels[:, :, None], 1)
