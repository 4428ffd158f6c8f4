"""A frozen codec as one safetensors file: weights, integer tables and JSON metadata; its SHA-256 is its name.

Nothing in it is executed: arrays and JSON only, checked before use.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from compressor.errors import CodecError

FORMAT = 4  # the newest that is read
PLAIN = 1  # weights as floats
QUANTIZED = 2  # some as integers with scales, which a reader of format 1 would take for the weights
PARTED = 3  # payloads name a part of their quality step, which an earlier reader would take for something else
COMPRESSED = 4  # the file of one of the formats above is an array of this one's, compressed
_LEVEL = 3  # of Zstandard: higher ones find nothing more in weights, and take up to a hundred times as long
_MOST_BYTES = 2**26  # that any artifact may hold, and larger ones up to so many times their own size:
_MOST_TIMES = 8
QUALITY_PARTS = "frequencies.part"  # the array that says so
_HEADER_LIMIT = 2**19  # nine times that of the release
ARTIFACT_BEGINS = 8 + _HEADER_LIMIT  # bytes, at most, that :func:`is_artifact` reads
_KEY = "latentpack"


@dataclass(frozen=True)
class Artifact:
    """What an artifact's bytes say.

    Parameters
    ----------
    id
        First 32 hexadecimal digits of the file's SHA-256.
    metadata
        ``format`` (of what is compressed, that within), ``family``, ``name``, ``network`` (its constructor's
        arguments), ``card`` (training data, terms, configuration, measured figures).
    tensors
        Arrays by name.
    """

    id: str
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def family(self) -> str:
        return str(self.metadata.get("family", ""))

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or self.family)

    @property
    def options(self) -> dict[str, Any]:
        """The network's, as its constructor takes them."""
        return dict(self.metadata.get("network", {}))

    def state(self) -> dict[str, np.ndarray]:
        """The network's arrays, without the prefix ``network.``; quantised ones expanded."""
        from compressor.weight_quantization import expand

        return expand(self.tensors, self.metadata)


def identify(data: bytes) -> str:
    """The id of an artifact's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def dump(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """Artifact bytes; equal input gives equal bytes. ``weights`` in the metadata says that there are quantised ones.

    CodecError where the metadata is too long to be read again.
    """
    import pyarrow as pa

    number = PARTED if QUALITY_PARTS in tensors else QUANTIZED if "weights" in metadata else PLAIN
    data = _save({"format": number, **metadata}, tensors)
    if (length := int.from_bytes(data[:8], "little")) > _HEADER_LIMIT:
        raise CodecError(f"a codec's header has at most {_HEADER_LIMIT:,} bytes, not {length:,}: shorten its card")
    packed = pa.Codec("zstd", _LEVEL).compress(data, asbytes=True)
    if len(data) > _most_within(packed):
        return data
    return _save({"format": COMPRESSED, "bytes": len(data)}, {"zstd": np.frombuffer(packed, np.uint8)})


def _save(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    return save(contiguous, {_KEY: json.dumps(metadata, sort_keys=True)})


def is_artifact(file: BinaryIO) -> bool:
    """Whether a file begins as an artifact does, of whatever format; the rest is not read."""
    try:
        length = int.from_bytes(file.read(8), "little")
        return length <= _HEADER_LIMIT and _KEY in json.loads(file.read(length))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def parse(data: bytes, expected_id: str | None = None) -> Artifact:
    """Read an artifact. CodecError where it is damaged, foreign, of a newer format or not the one expected."""
    found = identify(data)
    if expected_id is not None and found != expected_id:
        raise CodecError(f"the codec is damaged: stored as {expected_id}, its bytes hash to {found}; restore a copy")
    metadata, tensors = _load(data)
    if metadata["format"] == COMPRESSED:
        metadata, tensors = _load(_within(metadata, tensors))
        if metadata["format"] == COMPRESSED:
            raise CodecError("not a latentpack codec, or a damaged one: it is compressed twice")
    return Artifact(found, metadata, tensors)


def _most_within(packed: bytes) -> int:
    """Bytes that a reader makes of compressed ones, whatever they say."""
    return max(_MOST_BYTES, _MOST_TIMES * len(packed))


def _within(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """The artifact that a compressed one holds."""
    import pyarrow as pa

    try:
        packed, size = tensors["zstd"].tobytes(), int(metadata["bytes"])
        if not 0 < size <= _most_within(packed):
            raise ValueError(f"it says to hold {size:,} bytes in {len(packed):,}")
        data: bytes = pa.decompress(packed, size, codec="zstd", asbytes=True)
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise CodecError(f"not a latentpack codec, or a damaged one: {error}") from error
    return data


def _load(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(_HEADER_LIMIT, len(data) - 8):
            raise CodecError("not a latentpack codec: its header is missing or too long")
        metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        if metadata["format"] > FORMAT:
            raise CodecError(
                f"the codec has format {metadata['format']}, this version reads up to {FORMAT}; upgrade latentpack"
            )
        tensors = load(data)
    except (KeyError, TypeError) as error:
        raise CodecError(
            "not a latentpack codec, or a damaged one: its header is not as latentpack writes it"
        ) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CodecError(f"not a latentpack codec, or a damaged one: {error}") from error
    return metadata, tensors
