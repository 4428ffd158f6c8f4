"""What an earlier release wrote is read for ever: the frozen archive in tests/fixtures decodes to what it did then.

And is written on as one of today.
"""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compressor.archive import Archive
from compressor.codec import Encoded, load_codec
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.images import decode_picture
from compressor.known import FINGERPRINT_BYTES
from compressor.metrics import psnr
from compressor.salvaging import salvage
from tests.fixtures.make import ARCHIVES, HERE, release_pictures, symbols_hash
from tests.rows import add, contents, picture_row, source_file

EXPECTED = {name: json.loads((HERE / name / "expected.json").read_text()) for name in ARCHIVES}
ROWS = [(name, key) for name, expected in EXPECTED.items() for key in sorted(expected)]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Archive]:
    copies = tmp_path_factory.mktemp("frozen")
    for name in ARCHIVES:
        shutil.copytree(HERE / name / "archive", copies / name)
    return {name: Archive.open(str(copies / name)) for name in ARCHIVES}


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_frozen_payloads_decode_to_the_same_pictures(frozen: dict[str, Archive], name: str, key: str) -> None:
    expected = decode_picture((HERE / name / EXPECTED[name][key]["pixels"]).read_bytes()).pixels
    # A network's last rounding may fall the other way on another machine, where one multiplies bfloat16 and the other
    # float32 now and then by two steps; nothing else may differ.
    difference = np.abs(frozen[name].read(key).astype(int) - expected)
    assert difference.max() <= 2 and (difference > 1).mean() < 0.001


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in ROWS if "symbols" in EXPECTED[name][key]])
def test_frozen_payloads_hold_the_same_symbols(frozen: dict[str, Archive], name: str, key: str) -> None:
    row = frozen[name].read_row(key)
    codec = frozen[name].codec(row.codec)
    assert isinstance(codec, HyperpriorCodec)
    encoded = Encoded(row.payload, row.width, row.height, row.channels, row.codec, row.quality, row.packer)
    assert symbols_hash(codec, encoded) == EXPECTED[name][key]["symbols"]


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_payloads_of_a_release_hold_what_they_did(path: Path) -> None:
    kept, name = json.loads(path.read_text()), path.stem.rpartition("-")[0]
    codec = load_codec(name)
    if codec.id != kept["codec"]:
        pytest.skip(f"{name} has other weights by now, and these are in archives alone")
    assert isinstance(codec, HyperpriorCodec)
    pictures = release_pictures()
    for one in kept["payloads"]:
        picture, data = pictures[one["picture"]], base64.b85decode(one["payload"])
        height, width = picture.shape[:2]
        encoded = Encoded(data, width, height, 3, codec.id, one["quality"], one["packer"])
        assert symbols_hash(codec, encoded) == one["symbols"]
        assert psnr(picture, codec.decode([encoded])[0]) == pytest.approx(one["psnr"], abs=0.1)  # other roundings


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_frozen_archive_is_whole(frozen: dict[str, Archive], name: str) -> None:
    assert sorted(frozen[name].keys()) == sorted(EXPECTED[name])
    assert frozen[name].verify() == []


@pytest.fixture
def earliest(tmp_path: Path) -> Archive:
    """Its file has no checksums in its name, its commit no digest, its fingerprints have eight bytes."""
    shutil.copytree(HERE / "format-1" / "archive", tmp_path / "earliest")
    return Archive.open(str(tmp_path / "earliest"))


def test_a_frozen_archive_is_written_on(earliest: Archive) -> None:
    rows = contents(earliest)
    files = [source_file(row, fingerprint=row.fingerprint[:FINGERPRINT_BYTES]) for row in rows.values()]
    assert earliest.known().state(files) == ["same"] * len(rows), "a run archives none again"
    add(earliest, [picture_row("later")])
    add(earliest, [picture_row("original", seed=1)], replaced=["original"])
    assert earliest.delete(["jpeg"]) == 1
    assert earliest.compact() > 0
    assert earliest.verify() == []
    assert contents(earliest).keys() == (rows.keys() | {"later"}) - {"jpeg"}


def test_a_frozen_archive_is_salvaged(earliest: Archive, tmp_path: Path) -> None:
    rows = contents(earliest)
    shutil.rmtree(Path(earliest.url, "images/_delta_log"))
    new, done = salvage(earliest.url, tmp_path / "new")
    assert done.problems == [] and contents(new) == rows
    assert new.verify() == []
