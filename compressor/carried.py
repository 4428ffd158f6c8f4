"""The codecs that an archive carries, so that reading it takes no other: which they are, stored and loaded."""

import os
import re

from compressor.artifact import identify, parse
from compressor.codec import Codec, load_codec
from compressor.errors import ArchiveError
from compressor.store import Store

# What else lies in the folder is no codec of the archive, such as a damaged copy that was put aside as *.bak.
CODEC_FILE = re.compile(r"([0-9A-Za-z_-]+)\.safetensors")
CODECS_KEPT = 8


def codec_name(id: str) -> str:
    """The file of a codec."""
    return f"codecs/{id}.safetensors"


def carried_ids(store: Store) -> list[str]:
    """Ids of the codecs in an archive, by the names of their files."""
    return [found[1] for name in store.names("codecs") if (found := CODEC_FILE.fullmatch(name))]


def damaged_codecs(store: Store) -> dict[str, str]:
    """Ids of the codecs that are not what their names say, with what their bytes hash to."""
    hashes = {id: identify(store.get(codec_name(id))) for id in carried_ids(store)}
    return {id: found for id, found in hashes.items() if found != id}


class CarriedCodecs:
    """The codecs of one archive. Those that were loaded last are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: dict[str, Codec] = {}
        self._process = os.getpid()

    def put(self, data: bytes, replace: bool) -> str:
        """See :meth:`compressor.archive.Archive.put_codec`."""
        if not isinstance(data, bytes):
            raise TypeError(f"a codec is stored from its artifact's bytes, not from {type(data).__name__}")
        id = parse(data).id
        with self._store.errors("store a codec"):
            if replace or not self._store.exists(codec_name(id)):
                self._store.put(codec_name(id), data)
        return id

    def load(self, id: str) -> Codec:
        """See :meth:`compressor.archive.Archive.codec`."""
        if self._process != os.getpid():  # after a fork a network's threads, or its GPU, are the parent's
            self._process = os.getpid()
            self._loaded.clear()
        if id not in self._loaded:
            codec = self._read(id)
            while len(self._loaded) >= CODECS_KEPT:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[id] = codec
        return self._loaded[id]

    def _read(self, id: str) -> Codec:
        from compressor.baselines import STANDARD

        if id in STANDARD:
            return load_codec(id)
        unknown = ArchiveError(
            f"{self._store.url}: codec {id!r} is not in its codecs folder, nor is it a format that this version knows; "
            "a newer latentpack may"
        )
        if not CODEC_FILE.fullmatch(f"{id}.safetensors"):  # a crafted row may lead anywhere
            raise unknown
        with self._store.errors(f"read codec {id}"):
            try:
                data = self._store.get(codec_name(id))
            except FileNotFoundError:
                raise unknown from None
        codec = load_codec(data)
        if codec.id != id:
            raise ArchiveError(f"{self._store.url}: {codec_name(id)} is codec {codec.id}: damaged or renamed")
        return codec
