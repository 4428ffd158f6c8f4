"""What an earlier release wrote is read for ever: the frozen archive in tests/fixtures decodes to what it did then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compressor.archive import Archive
from compressor.codec import Encoded
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.images import decode_picture
from tests.fixtures.make import FOLDER, symbols_hash

EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    copy = tmp_path_factory.mktemp("frozen") / "archive"
    shutil.copytree(FOLDER / "archive", copy)
    return Archive.open(str(copy))


@pytest.mark.parametrize("key", sorted(EXPECTED))
def test_frozen_payloads_decode_to_the_same_pictures(frozen: Archive, key: str) -> None:
    expected = decode_picture((FOLDER / EXPECTED[key]["pixels"]).read_bytes()).pixels
    # A network's last rounding may fall the other way on another machine; nothing else may differ.
    assert np.abs(frozen.read(key).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("key", sorted(key for key, value in EXPECTED.items() if "symbols" in value))
def test_frozen_payloads_hold_the_same_symbols(frozen: Archive, key: str) -> None:
    row = frozen.read_row(key)
    codec = frozen.codec(row.codec)
    assert isinstance(codec, HyperpriorCodec)
    encoded = Encoded(row.payload, row.width, row.height, row.channels, row.codec, row.quality, row.packer)
    assert symbols_hash(codec, encoded) == EXPECTED[key]["symbols"]


def test_the_frozen_archive_is_whole(frozen: Archive) -> None:
    assert sorted(frozen.keys()) == sorted(EXPECTED)
    assert frozen.verify() == []


def test_fixtures_stay_small() -> None:
    assert sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()) < 1_500_000
