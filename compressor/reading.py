"""Contents of listed files in chunks that fit in memory, each a file's bytes or the reason why there are none."""

from collections.abc import Iterator, Sequence

from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.errors import UNREADABLE, ImageError
from compressor.images import Limits
from compressor.listing import is_raw
from compressor.sources import Source, SourceFile

FILES_AT_ONCE = 256


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
        return ImageError("too_large", f"the file has {file.size:,} bytes, the limit is {limits.max_bytes:,}")
    return None
