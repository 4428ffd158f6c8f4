"""docs/format.md is enough to read an archive: what follows it alone finds the same integers and pixels."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import STANDARD
from compressor.codec import Codec, Encoded, load_codec
from compressor.families import FAMILIES
from compressor.hyperprior_codec import HyperpriorCodec
from tests.codecs import smooth_pictures, tiny_artifact
from tests.fixtures.make import ARCHIVES, HERE

READER = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "read_without_latentpack.py"))
SIZES = [(32, 32), (50, 7), (1, 1), (70, 130)]
Row = dict[str, Any]


def same(codec: Codec, encoded: Encoded, row: Row, archive: Path) -> None:
    [ours] = codec.decode([encoded])
    theirs = READER["decoded"](row, archive)
    assert theirs.shape == ours.shape and theirs.dtype == np.uint8
    difference = np.abs(theirs.astype(int) - ours)
    assert difference.max() <= 2 and (difference > 1).mean() < 0.001  # as between machines
    if isinstance(codec, HyperpriorCodec):
        z, r = codec.symbols([encoded])
        _, their_z, their_r = READER["network"](archive / "codecs" / f"{codec.id}.safetensors").latents(row)
        assert np.array_equal(their_z, z[0]) and np.array_equal(their_r, r[0])


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@pytest.mark.parametrize("family", [*FAMILIES, "context"])
def test_every_family_and_packer_is_read_by_the_page_alone(tmp_path: Path, family: str, weights: str | None) -> None:
    data = tiny_artifact(family, weights)
    (tmp_path / "codecs").mkdir()
    (tmp_path / "codecs" / f"{identify(data)}.safetensors").write_bytes(data)
    codec = load_codec(data)
    for packer in codec.packers:
        for number, size in enumerate(SIZES):
            quality = codec.qualities[(9 + 17 * number) % 64] if codec.qualities else -1
            [encoded] = codec.encode(smooth_pictures(1, *size, seed=number), quality, packer)
            same(codec, encoded, vars(encoded), tmp_path)


@pytest.mark.parametrize("name", STANDARD)
def test_standard_formats_are_read_by_the_page_alone(name: str, tmp_path: Path) -> None:
    [encoded] = STANDARD[name].encode(smooth_pictures(1, 41, 80), 60)
    same(STANDARD[name], encoded, vars(encoded), tmp_path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_frozen_archives_are_read_by_the_page_alone(name: str) -> None:
    archive = HERE / name / "archive"
    opened = Archive.open(str(archive))
    for file in opened.files():
        for row in pq.read_table(file).to_pylist():
            encoded = Encoded(*(row[field] for field in Encoded.__dataclass_fields__))
            if row["codec"] != "original":
                colour = {**row, "channels": 3}  # the mean of the planes is not the codec's
                same(opened.codec(row["codec"]), replace(encoded, channels=3), colour, archive)
                if row["channels"] == 1:
                    theirs, ours = READER["decoded"](row, archive), opened.read(row["key"]).astype(int)
                    assert (theirs == theirs[:, :, :1]).all() and np.abs(theirs - ours).max() <= 2
