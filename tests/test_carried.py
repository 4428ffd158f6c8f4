"""The codecs that an archive carries: told by the names of their files, beside which other files may lie."""

from pathlib import Path

import pytest

from compressor.archive import Archive
from compressor.artifact import dump, parse
from compressor.choosing import check_codec, find_codec, put_codec
from compressor.errors import CodecError
from compressor.repairing import Repaired, repair
from tests.codecs import tiny_artifact
from tests.rows import add, picture_row


def test_other_files_beside_the_codecs_change_nothing(archive: Archive, tmp_path: Path) -> None:
    add(archive, [picture_row("a.png")])
    id, copy = archive.put_codec(tiny_artifact("v5")), tmp_path / "copy.safetensors"
    copy.write_bytes(tiny_artifact("v5"))
    before = archive.info()
    for name in (f"{id}.safetensors.bak", f"{id} (damaged).safetensors", f"{id}.txt", "notes", "tmp-abcdefgh"):
        Path(archive.url, "codecs", name).write_bytes(b"no codec")
    assert archive.info() == before and before.unused_codecs == [id]
    assert archive.verify() == []
    assert repair(archive, at_hand=[str(copy)]) == Repaired()
    check_codec(id[:8], archive.url)
    assert find_codec(id[:8], archive.url).id == put_codec(archive, id[:8])[0] == id


def test_a_codec_that_cannot_be_used_is_not_stored(archive: Archive) -> None:
    sound = parse(tiny_artifact("v5"))
    broken = {name: values for name, values in sound.tensors.items() if name != "frequencies.hyper"}
    with pytest.raises(CodecError):
        put_codec(archive, dump({**sound.metadata}, broken))
    assert not Path(archive.url, "codecs").exists()
