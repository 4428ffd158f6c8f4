"""Which codec a run uses: found by name, path or id, checked, and put into the archive, from which workers fetch it."""

from contextlib import suppress

from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.codec import Codec, artifact_bytes, check_packer, load_codec
from compressor.errors import ArchiveError, CodecError


def check_codec(name: str, archive_url: str) -> None:
    """CodecError where no codec of that name, path or id is to be had; reads the archive's codecs last."""
    try:
        if name not in STANDARD:
            artifact_bytes(name)
    except CodecError:
        with suppress(ArchiveError):
            Archive.open(archive_url).codec(name)
            return
        raise


def find_codec(name: str, archive_url: str) -> Codec:
    """The codec of a name, path or id, as :func:`check_codec` finds it."""
    if name in STANDARD:
        return load_codec(name)
    try:
        data = artifact_bytes(name)
    except CodecError:
        return Archive.open(archive_url).codec(name)
    return load_codec(data)


def put_codec(archive: Archive, name: str) -> tuple[str, Codec]:
    """The id of a codec that ``archive`` now carries, and the codec. CodecError where there is none of that name."""
    if name in STANDARD:
        return name, load_codec(name)
    try:
        data = artifact_bytes(name)
    except CodecError:
        with suppress(ArchiveError):
            return name, archive.codec(name)
        raise
    codec = load_codec(data)
    return archive.put_codec(data), codec


def packer_for(codec: Codec, packer: str, latents: str) -> str:
    """The codec's own name for a packer and a type of latents. CodecError, with the choices, where it has none such."""
    if latents != "int8":
        wanted = f"{latents}-{'lzma' if packer == 'auto' else packer}"
    elif packer != "auto" and any(name.startswith("int8-") for name in codec.packers):
        wanted = f"int8-{packer}"
    else:
        wanted = packer
    check_packer(codec, wanted)
    return wanted
