"""Which codec a run uses: found by name, path or id, checked, and put into the archive, from which workers fetch it."""

import os
import re
from collections.abc import Callable
from contextlib import suppress

from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.carried import carried_ids
from compressor.codec import Codec, artifact_bytes, check_packer, load_codec, naming, released, released_ids
from compressor.errors import ArchiveError, CodecError

_LEAST_DIGITS = 8  # of an id, to name a codec by


def check_codec(name: str, archive_url: str) -> None:
    """CodecError where no codec of that name, path or id is to be had; reads the archive's codecs last."""
    _look_up(name, lambda: Archive.open(archive_url))


def find_codec(name: str, archive_url: str) -> Codec:
    """The codec of a name, path or id, as :func:`check_codec` finds it."""
    name, found = _look_up(name, lambda: Archive.open(archive_url))
    if not isinstance(found, bytes):
        return found
    with naming(name):
        return load_codec(found)


def put_codec(archive: Archive, codec: str | bytes | os.PathLike[str]) -> tuple[str, Codec]:
    """The id of a codec that ``archive`` now carries, and the codec: of a name, path or id, or an artifact's bytes.

    CodecError where there is none.
    """
    if not isinstance(codec, (str, bytes, os.PathLike)):
        raise TypeError(
            f"a codec is given by name, path or id, or as an artifact's bytes, not as {type(codec).__name__}; the "
            "archive's own codecs go by their .id"
        )
    found: bytes | Codec
    if isinstance(codec, bytes):
        name, found = "the codec given", codec
    else:
        name, found = _look_up(os.fspath(codec), lambda: archive)
    if not isinstance(found, bytes):
        return name, found
    with naming(name):
        loaded = load_codec(found)  # before it is stored: what cannot be used would stay
        return archive.put_codec(found), loaded


def _look_up(name: str, archive: Callable[[], Archive]) -> tuple[str, bytes | Codec]:
    """The whole name, and the artifact behind it, or the codec that has none or that only the archive carries."""
    name = _whole(name, archive)
    if name in STANDARD:
        return name, load_codec(name)
    try:
        return name, artifact_bytes(name)
    except CodecError:
        with suppress(ArchiveError):  # which would tell of the archive alone
            return name, archive().codec(name)
        raise


def _whole(name: str, archive: Callable[[], Archive]) -> str:
    """For the beginning of an id a shipped codec's name, or the whole id of one in the archive; else the name as it is.

    CodecError where no codec's id begins so, or several codecs' do.
    """
    if not re.fullmatch("[0-9a-f]+", name) or name in released() or os.path.isfile(name):
        return name
    names = released_ids()
    with suppress(ArchiveError):  # there may be none yet
        store = archive().tables[0].store
        with store.errors("list its codecs"):
            names = {id: id for id in carried_ids(store)} | names
    found = sorted(id for id in names if id.startswith(name) and len(name) >= _LEAST_DIGITS)
    if len(found) > 1:
        raise CodecError(f"{len(found)} codecs have an id that begins with {name}: name one, {' or '.join(found)}")
    if not found:
        raise CodecError(
            f"there is no codec {name!r}: no file is called so, and no codec, shipped or in the archive, has such an "
            f"id, which is 32 hexadecimal digits, or {_LEAST_DIGITS} or more of the first"
        )
    return names[found[0]]


def packer_for(codec: Codec, packer: str, latents: str) -> str:
    """The codec's own name for a packer and a type of latents. CodecError, with the choices, where it has none such."""
    if latents != "int8":
        if not any(name.startswith(f"{latents}-") for name in codec.packers):
            raise CodecError(
                f"--latents {latents} is for families v1 to v4, which {codec.description} is not of: leave it out"
            )
        wanted = f"{latents}-{'lzma' if packer == 'auto' else packer}"
    elif packer != "auto" and any(name.startswith("int8-") for name in codec.packers):
        wanted = f"int8-{packer}"
    else:
        wanted = packer
    check_packer(codec, wanted)
    return wanted
