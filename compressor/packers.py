"""General-purpose compression of one picture's latents, as raw streams: a container would cost more than it tells.

Sizes are known to the reader, so no stream carries one, nor a checksum: the table's row has a crc32c.
"""

import lzma
import zlib
from typing import Any

from compressor.errors import CodecError

PACKERS = ("none", "gzip", "lzma")

# Latents are short and have no text-like context; what helps is alignment to the item (pb, lp) and, for bytes of
# mostly one channel after another, the high bits of the byte before (lc). Measured on portraits: docs/codec.md.
_LZMA_BY_ITEM = {
    1: {"lc": 0, "lp": 0, "pb": 0},
    2: {"lc": 0, "lp": 1, "pb": 1},
    4: {"lc": 0, "lp": 2, "pb": 2},
}


def pack(data: bytes, packer: str, item: int) -> bytes:
    """Compress ``data``, made of items of ``item`` bytes, by ``packer`` (one of :data:`PACKERS`)."""
    if packer == "none":
        return data
    if packer == "gzip":
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
        return deflate.compress(data) + deflate.flush()
    if packer == "lzma":
        return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(item))
    raise _unknown(packer)


def unpack(data: bytes, packer: str, item: int, size: int) -> bytes:
    """Undo :func:`pack`; never yields more than the ``size`` bytes expected. CodecError on anything else."""
    if packer == "none":
        unpacked, whole = data, True
    else:
        stream = _decompressor(packer, item)
        try:
            unpacked = stream.decompress(data, size + 1)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise CodecError(f"the payload is damaged: {packer} says {error}") from error
        whole = stream.eof and not stream.unused_data
    if len(unpacked) != size:
        raise CodecError(f"the payload is damaged: {len(unpacked)} bytes unpacked, {size} expected")
    if not whole:
        raise CodecError(f"the payload is damaged: its {packer} stream does not end where its bytes do")
    return unpacked


def _decompressor(packer: str, item: int) -> Any:
    if packer == "gzip":
        return zlib.decompressobj(-zlib.MAX_WBITS)
    if packer == "lzma":
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(item))
    raise _unknown(packer)


def _unknown(packer: str) -> CodecError:
    return CodecError(f"unknown packer {packer!r}: choose one of {', '.join(PACKERS)}")


def _filters(item: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, **_LZMA_BY_ITEM[item]}]
