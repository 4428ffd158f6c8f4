"""Contents of listed files in chunks that fit in memory, each a file's bytes or the reason why there are none."""

from collections.abc import Iterator, Sequence

from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.errors import UNREADABLE, ImageError
from compressor.images import Limits
from compressor.sources import Source, SourceFile

FILES_AT_ONCE = 256


def read_together(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files in order, as many together as may be in memory: a few hundred small ones or a few large ones."""
    return bounded_chunks(files, lambda file: file.size, BYTES_AT_ONCE, FILES_AT_ONCE)


def read_contents(source: Source, files: Sequence[SourceFile], limits: Limits) -> list[bytes | ImageError]:
    """Bytes of each file, or an ImageError (``unreadable``, ``too_large``). A file over the limit is not fetched."""
    fetched = iter(source.read([file.path for file in files if file.size <= limits.max_bytes]))
    contents: list[bytes | ImageError] = []
    for file in files:
        if file.size > limits.max_bytes:
            text = f"the file has {file.size:,} bytes, the limit is {limits.max_bytes:,}"
            contents.append(ImageError("too_large", text))
            continue
        content = next(fetched)
        if not isinstance(content, bytes):
            error = ImageError(UNREADABLE, str(content))
            error.__cause__ = content
            content = error
        contents.append(content)
    return contents
