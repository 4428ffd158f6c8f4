"""Contents of listed files in chunks that fit in memory, each a file's bytes or the reason why there are none."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.errors import UNREADABLE, ImageError, causes
from compressor.images import decode_picture
from compressor.limits import Limits, file_too_large
from compressor.listing import is_raw
from compressor.sources import Source, SourceFile

FILES_AT_ONCE = 256
FORBIDDEN = "forbidden"  # the reason of a file that may not be read


def read_together(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files in order, as many together as may be in memory: a few hundred small ones or a few large ones."""
    return bounded_chunks(files, lambda file: file.size, BYTES_AT_ONCE, FILES_AT_ONCE)


def read_contents(source: Source, files: Sequence[SourceFile], limits: Limits) -> list[bytes | ImageError]:
    """Bytes of each file, or an ImageError (``unreadable``, ``too_large``, ``unsupported``).

    Neither a file over the limit nor a camera's raw one is fetched.
    """
    refusals = [refusal(file, limits) for file in files]
    wanted = [file.path for file, refused in zip(files, refusals, strict=True) if refused is None]
    fetched = iter(source.read(wanted))
    contents: list[bytes | ImageError] = []
    for refused in refusals:
        if refused is not None:
            contents.append(refused)
            continue
        content = next(fetched)
        if not isinstance(content, bytes):
            error = ImageError(UNREADABLE, str(content))
            error.__cause__ = content
            content = error
        contents.append(content)
    return contents


def refusal(file: SourceFile, limits: Limits) -> ImageError | None:
    """Why a file is not worth fetching; None where it is."""
    if is_raw(file.key):  # as the TIFF that most of them are, they would be their thumbnails
        detail = "the raw file of a camera is not read here: develop it to TIFF, PNG or JPEG first"
        return ImageError("unsupported", detail)
    if file.size > limits.max_bytes:
        return file_too_large(file.size, limits)
    return None


def plain_pictures(
    source: Source, files: Sequence[SourceFile], limits: Limits, refused: Counter[str]
) -> Iterator[tuple[SourceFile, np.ndarray]]:
    """Those of ``files`` that plain 8-bit colour holds, uint8 (H, W, 3) each. The others count in ``refused``."""
    for chunk in read_together(files):
        for file, content in zip(chunk, read_contents(source, chunk, limits), strict=True):
            try:
                if isinstance(content, ImageError):
                    raise content
                picture = decode_picture(content, limits)
            except ImageError as error:
                refused[FORBIDDEN if _is_forbidden(error) else error.reason] += 1
                continue
            if picture.keep:
                refused[picture.keep] += 1
            else:
                yield file, picture.pixels


def _is_forbidden(error: BaseException) -> bool:
    """Whether a file was not given for want of a right, which will be so the next time too."""
    return any(isinstance(one, PermissionError) for one in causes(error))
