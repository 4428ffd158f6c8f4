"""A frozen codec as one safetensors file: weights, integer tables and JSON metadata; its SHA-256 is its name.

Nothing in it is executed: arrays and JSON only, checked before use.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from compressor.errors import CodecError

FORMAT = 3  # the newest that is read
PLAIN = 1  # weights as floats
QUANTIZED = 2  # some as integers with scales, which a reader of format 1 would take for the weights
PARTED = 3  # payloads name a part of their quality step, which an earlier reader would take for something else
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
        ``format``, ``family``, ``name``, ``network`` (its constructor's arguments), ``card`` (training data, terms,
        configuration, measured figures).
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
    from safetensors.numpy import save

    number = PARTED if QUALITY_PARTS in tensors else QUANTIZED if "weights" in metadata else PLAIN
    text = json.dumps({"format": number, **metadata}, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data = save(contiguous, {_KEY: text})
    if (length := int.from_bytes(data[:8], "little")) > _HEADER_LIMIT:
        raise CodecError(f"a codec's header has at most {_HEADER_LIMIT:,} bytes, not {length:,}: shorten its card")
    return data


def is_artifact(file: BinaryIO) -> bool:
    """Whether a file begins as an artifact does, of whatever format; the rest is not read."""
    try:
        length = int.from_bytes(file.read(8), "little")
        return length <= _HEADER_LIMIT and _KEY in json.loads(file.read(length))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def parse(data: bytes, expected_id: str | None = None) -> Artifact:
    """Read an artifact. CodecError where it is damaged, foreign, of a newer format or not the one expected."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    found = identify(data)
    if expected_id is not None and found != expected_id:
        raise CodecError(f"the codec is damaged: stored as {expected_id}, its bytes hash to {found}; restore a copy")
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
    return Artifact(found, metadata, tensors)
