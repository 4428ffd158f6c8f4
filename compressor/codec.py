"""The interface that everything which turns pixels into bytes offers, and how to get one by name, path or bytes."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from compressor.addresses import is_s3
from compressor.artifact import identify, parse
from compressor.defaults import MOST_EFFORT
from compressor.errors import ArchiveError, CodecError

RELEASED = Path(__file__).parent / "weights"  # the codecs that are shipped, one safetensors file each
ORIGINAL = "original"  # the source file's own bytes: what no codec may touch
NETWORK_MULTIPLE = 32  # to which a network's pictures are padded, at most
NETWORK_PIXELS = 2**22  # of a padded picture; for a larger one a network takes ten times as long as AVIF


@dataclass(frozen=True)
class Encoded:
    """One picture as a codec wrote it, and all that its reader needs to know beside the codec.

    ``quality`` is -1 and ``packer`` empty where a codec has no choice of them.
    """

    payload: bytes
    width: int
    height: int
    channels: int
    codec: str
    quality: int
    packer: str


@runtime_checkable
class Codec(Protocol):
    """Pixels to bytes and back. Implementations keep no state between calls."""

    @property
    def id(self) -> str:
        """Name stored with every picture: a standard format's name or an artifact's hash."""

    @property
    def description(self) -> str:
        """For people: family, settings, versions."""

    @property
    def qualities(self) -> range:
        """Quality steps, worst first; empty where there is just one quality."""

    @property
    def packers(self) -> tuple[str, ...]:
        """Names for ``packer`` besides ``auto``, which takes the smallest; empty where there is no choice."""

    def suits(self, height: int, width: int) -> bool:
        """Whether a picture of this size should go to this codec and not to a fallback."""

    def encode(self, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto") -> list[Encoded]:
        """Encode uint8 (H, W, 3) pictures, whatever their sizes, at one quality or at one each.

        CodecError where a picture is of another type or shape, or there is no such quality or packer.
        """

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """uint8 (H, W, 3) pictures. CodecError where a payload is not one that this codec wrote."""


@runtime_checkable
class Refinable(Protocol):
    """A codec that finds fewer bytes for a picture if it may take longer."""

    def with_effort(self, effort: int) -> Codec:
        """The same codec, with ``effort`` rounds of refinement for each picture. CodecError as :func:`check_effort`."""


def padded_pixels(height: int, width: int) -> int:
    """Pixels that a network computes for a picture: of a row of pixels, 32 times what there are."""
    return (height + -height % NETWORK_MULTIPLE) * (width + -width % NETWORK_MULTIPLE)


def with_effort(codec: Codec, effort: int) -> Codec:
    """``codec`` taking ``effort`` rounds of refinement. CodecError where it cannot take so many."""
    check_effort(effort)
    if not effort:
        return codec
    if not isinstance(codec, Refinable):
        raise CodecError(f"{codec.description} knows no effort but 0: ask for no other, or take a codec of v5 or v6")
    return codec.with_effort(effort)


def check_effort(effort: int) -> None:
    """CodecError unless so many rounds of refinement may be asked for."""
    if not isinstance(effort, Integral) or not 0 <= effort <= MOST_EFFORT:
        raise CodecError(f"effort is a whole number from 0 to {MOST_EFFORT}, not {effort!r}")


def check_quality(codec: Codec, quality: int) -> None:
    """CodecError where a codec that has several qualities has not this one, or -1 says that none is given."""
    if len(codec.qualities) and (not isinstance(quality, Integral) or quality not in codec.qualities):
        range_ = f"from {codec.qualities.start} to {codec.qualities.stop - 1} for {codec.description}"
        raise CodecError(
            f"there is no target: give one, or a quality {range_}"
            if quality == -1
            else f"quality must be {range_}, not {quality}"
        )


def check_packer(codec: Codec, packer: str) -> None:
    """CodecError, with the choices, where a codec has no such packer."""
    if packer != "auto" and packer not in codec.packers:
        choices = ", ".join(("auto", *codec.packers))
        raise CodecError(f"{codec.description} has no packer {str(packer)!r}: choose from {choices}")


def check_pictures(pixels: Sequence[np.ndarray]) -> None:
    """CodecError, naming the first that is none, unless all are uint8 (H, W, 3) pictures of a pixel or more."""
    for index, picture in enumerate(pixels):
        if not isinstance(picture, np.ndarray):
            raise CodecError(f"picture {index} is no array but a {type(picture).__name__}")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise CodecError(
                f"a codec encodes a list of uint8 pictures (height, width, 3); number {index} is {picture.dtype} "
                f"{picture.shape}"
            )


def check_encoded(encoded: Sequence[Encoded]) -> None:
    """CodecError unless all say that they are pictures of a pixel or more."""
    for one in encoded:
        if one.width < 1 or one.height < 1:
            raise CodecError(f"the row is damaged: {one.width} x {one.height} pixels")


def per_picture(quality: int | Sequence[int], count: int) -> list[int]:
    """One quality for each of ``count`` pictures. CodecError where it is no whole number, or not one for each."""
    qualities = list(quality) if isinstance(quality, Sequence | np.ndarray) else [quality] * count
    if len(qualities) != count or not all(isinstance(q, Integral) and not isinstance(q, bool) for q in qualities):
        raise CodecError(f"quality is a whole number, or one for each of {count} pictures, not {quality!r}")
    return [int(q) for q in qualities]


def spread_qualities(codec: Codec, count: int) -> list[int]:
    """``count`` of a codec's quality steps, evenly from the worst to the best; -1 alone where it has just one."""
    steps = len(codec.qualities)
    return [codec.qualities[int(at)] for at in np.linspace(0, steps - 1, min(count, steps)).round()] if steps else [-1]


def released() -> list[str]:
    """Names of the codecs that are shipped with weights."""
    return sorted(path.stem for path in RELEASED.glob("*.safetensors"))


def released_ids() -> dict[str, str]:
    """The same by the ids that rows know them by. Reads them whole."""
    return {identify(artifact_bytes(name)): name for name in released()}


def titles(names: Sequence[str]) -> dict[str, str]:
    """Codecs by what a report calls them: a file by its name without folder and suffix, where no other has the same.

    >>> titles(["faces", "a/codec.safetensors", "b/codec.safetensors"])
    {'faces': 'faces', 'a/codec.safetensors': 'a/codec.safetensors', 'b/codec.safetensors': 'b/codec.safetensors'}
    """
    stem_of = {name: Path(name).stem for name in names}
    found = Counter(stem_of.values())
    return {stem if found[stem] == 1 else name: name for name, stem in stem_of.items()}


def artifact_bytes(name: str) -> bytes:
    """The artifact behind a released name, a path or an ``s3://`` address.

    CodecError where there is none, or it cannot be read.
    """
    if is_s3(name):
        return _from_bucket(name)
    path = RELEASED / f"{name}.safetensors" if name in released() else Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # nor where the name is longer than any file's, which Path.is_file raises of
        from compressor.baselines import STANDARD

        raise CodecError(
            f"there is no codec {name!r}: neither a file nor one of {', '.join([*released(), *STANDARD])}; "
            "train one with 'latentpack train'"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise CodecError(f"the codec {name} cannot be read: {error.strerror or error}") from error


def _from_bucket(url: str) -> bytes:
    from compressor.destinations import object_at

    try:
        bucket, name = object_at(url)
        data = bucket.read(name)
    except ArchiveError as error:
        raise CodecError(str(error)) from error
    if data is None:
        raise CodecError(f"there is no codec at {url}; see 'latentpack train --out'")
    return data


def load_codec(source: str | bytes | Path) -> Codec:
    """A codec by released name, standard format's name, path of an artifact, or an artifact's bytes."""
    if isinstance(source, bytes):
        return _from_artifact(source)
    from compressor.baselines import STANDARD

    if str(source) in STANDARD:
        return STANDARD[str(source)]
    data = artifact_bytes(str(source))
    with naming(str(source)):
        return _from_artifact(data)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Where bytes are no codec that can be used, have the CodecError say whose bytes they are."""
    try:
        yield
    except CodecError as error:
        raise CodecError(f"{source}: {error}") from error


@lru_cache(maxsize=4)
def _from_artifact(data: bytes) -> Codec:
    import torch

    from compressor.families import FAMILIES

    artifact = parse(data)
    family = FAMILIES.get(artifact.family)
    if family is None:
        raise CodecError(
            f"codec {artifact.id} is of family {artifact.family!r}, unknown to this version; upgrade latentpack"
        )
    # It is kept for the whole process, and a gradient does not pass through what inference mode has made.
    with torch.inference_mode(False):
        return family.codec(artifact)


def _after_fork() -> None:
    """Forget what the parent has loaded, which may be on a device of its own, and do not wait for its threads."""
    if _from_artifact.cache_info().currsize:
        import torch

        torch.set_num_threads(1)
    _from_artifact.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
