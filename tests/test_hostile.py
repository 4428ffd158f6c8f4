"""What a crafted or half-finished archive holds: refused by name, whatever it is."""

import json
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import crc32c
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from compressor.archive import Archive
from compressor.artifact import dump, parse
from compressor.codec import load_codec
from compressor.errors import ArchiveError, CodecError, LatentpackError
from compressor.parquet import IMAGES, to_table
from compressor.picture_writing import encode_picture
from tests.codecs import smooth_pictures, tiny_artifact
from tests.rows import original_row, picture_row


def learned_row(archive: Archive, family: str = "v5", packer: str = "gzip"):
    codec = load_codec(tiny_artifact(family))
    archive.put_codec(tiny_artifact(family))
    [encoded] = codec.encode(smooth_pictures(1, 32, 32), 30, packer)
    fields = {name: getattr(encoded, name) for name in ("width", "height", "codec", "quality", "packer", "payload")}
    return replace(picture_row("a"), **fields, crc32c=crc32c.crc32c(encoded.payload))


@pytest.mark.parametrize(
    "lie",
    [
        {"width": 0}, {"height": -5}, {"width": 2**31 - 1, "height": 2**31 - 1}, {"width": 10**6, "height": 10**3},
        {"quality": -1}, {"quality": 2**15 - 1}, {"packer": "../../x"}, {"packer": ""}, {"codec": "original"},
        {"codec": "avif"}, {"codec": "../../../etc/passwd"}, {"codec": "a\0b"}, {"codec": ""}, {"width": 33},
    ],
)  # fmt: skip
def test_rows_that_lie_are_refused(archive, lie):
    row = learned_row(archive)
    assert archive.decode([row])[0].shape == (32, 32, 3)
    with pytest.raises((CodecError, ArchiveError)):
        archive.decode([replace(row, **lie)])


@pytest.mark.parametrize(("family", "packer"), [("v1", "int8-entropy"), ("v5", "entropy")])
def test_codecs_that_lie_are_refused_or_decode(archive, family, packer):
    parsed = parse(tiny_artifact(family))
    choose = random.Random(1)
    row = learned_row(archive, family, packer)
    for number in range(12):
        tensors, metadata = dict(parsed.tensors), json.loads(json.dumps(parsed.metadata))
        name = choose.choice(list(tensors))
        if number % 3 == 0:
            del tensors[name]
        elif number % 3 == 1:
            tensors[name] = np.resize(tensors[name], (3,))
        else:
            metadata["network"] = dict(metadata.get("network") or {}) | {"latents": choose.choice([-1, 0, "x", 10**12])}
        data = dump(metadata, tensors)
        codec = archive.put_codec(data)
        with suppress(LatentpackError):
            archive.decode([replace(row, codec=codec)])


@pytest.mark.parametrize(
    "options", [{"blocks": 10**6}, {"step_blocks": 20_000}, {"trunk": 10**9}, {"blocks": 255, "trunk": 255}]
)
def test_a_codec_that_would_take_hours_to_build_is_refused_at_once(options):
    parsed = parse(tiny_artifact("v5"))
    metadata = {**parsed.metadata, "network": {**parsed.metadata["network"], **options}}
    for more in ({}, {"nothing": np.zeros((0, 10**9), np.float32)}):
        with pytest.raises(CodecError, match="its arrays"):
            load_codec(dump(metadata, parsed.tensors | more))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [1] * 20_000, "strides": [1] * 20_000}, "its arrays allow"),
        ({"widths": [8, 8, 4], "strides": [32, 32, 32]}, "strides of 32768 together"),
        ({"widths": -1}, "not a sound"),
        ({"widths": None}, "not a sound"),
        ({"unheard_of": 1}, "needs a newer latentpack: TypeError: .*'unheard_of'"),
    ],
)
def test_options_that_no_writer_stores_are_refused(options, message):
    parsed = parse(tiny_artifact("autoencoder"))
    wide = {"wide": np.zeros(40, np.float32)}
    with pytest.raises(CodecError, match=message):
        load_codec(dump({**parsed.metadata, "network": options}, parsed.tensors | wide))


@pytest.mark.parametrize("value", [np.zeros(4, np.float32), np.ones(3, np.float32), np.full(4, np.nan, np.float32)])
def test_steps_that_no_writer_stores_are_refused(value):
    parsed = parse(tiny_artifact("autoencoder"))
    with pytest.raises(CodecError, match="its steps are not 4 numbers above 0"):
        load_codec(dump(parsed.metadata, parsed.tensors | {"step.0": value}))


def test_scales_that_would_blow_weights_up_are_refused():
    parsed = parse(tiny_artifact("v5", "int8"))
    tall = {"network.x": np.ones((10_000, 1), np.int8), "scale.x": np.ones((1, 10_000), np.float16)}
    with pytest.raises(CodecError, match="do not fit their scales"):
        load_codec(dump(parsed.metadata, parsed.tensors | tall))
    parsed = parse(tiny_artifact("v5", "int4"))
    packed = {
        name: {**one, "repeat": [10**9, *one["repeat"][1:]]}
        for name, one in parsed.metadata["weights"]["packed"].items()
    }
    with pytest.raises(CodecError, match="do not fit their scales"):
        load_codec(
            dump({**parsed.metadata, "weights": {**parsed.metadata["weights"], "packed": packed}}, parsed.tensors)
        )


def test_arrays_that_hold_nothing_allow_nothing():
    """A few bytes of a header each, and no limit to what they claim."""
    scale = {"scale.a": np.ones((1, 1), np.float16), "packed.a": np.zeros(0, np.uint8)}
    packed = {"packed": {"a": {"shape": [2**40, 0], "repeat": [2**40, 1]}}}
    with pytest.raises(CodecError, match="do not fit their scales"):
        load_codec(dump({"family": "v1", "network": {}, "weights": packed}, scale))
    nothing = {f"{number}": np.zeros(0, np.int8) for number in range(2000)}
    for options in ({"blocks": 300}, {"blocks": 100, "deep_blocks": 100, "step_blocks": 100}):
        with pytest.raises(CodecError, match="its arrays allow 250"):
            load_codec(dump({"family": "v5", "network": options}, nothing | {"wide": np.zeros(300, np.int8)}))


def test_no_codec_is_written_that_could_not_be_read_again():
    with pytest.raises(CodecError, match="shorten its card"):
        dump({"family": "v1", "card": {"note": "x" * 600_000}}, {})


def test_weights_that_no_float_holds_are_refused():
    parsed = parse(tiny_artifact("v2"))
    name = next(name for name in parsed.tensors if name.startswith("network."))
    vast = {name: np.full(parsed.tensors[name].shape, 1e300)}
    with pytest.raises(CodecError, match="not finite"):
        load_codec(dump(parsed.metadata, parsed.tensors | vast))


def test_a_row_of_pixels_counts_as_what_a_network_computes(archive):
    row = replace(learned_row(archive), width=1, height=2**20)
    with pytest.raises(CodecError, match="1 x 1048576 pixels"):
        archive.decode([row])
    codec = load_codec(tiny_artifact("v5"))
    assert codec.suits(1, 2**17) and not codec.suits(1, 2**18)


def test_a_table_of_a_newer_format_is_refused(archive):
    DeltaTable(f"{archive.url}/images").alter.set_table_properties({"delta.enableDeletionVectors": "true"})
    with pytest.raises(ArchiveError, match="which latentpack does not read"):
        Archive.open(archive.url)
    for _ in range(2):  # what was refused once is refused again
        with pytest.raises(ArchiveError, match="which latentpack does not read"):
            archive.refresh()


def test_a_file_of_another_program_that_was_refused_once_is_refused_again(archive):
    table = DeltaTable(f"{archive.url}/images")
    stranger = AddAction("strange.parquet", 1, {}, 0, True, "{}")
    table.create_write_transaction([stranger], "append", IMAGES.schema)
    for _ in range(2):
        with pytest.raises(ArchiveError, match="has no statistics in the log"):
            archive.refresh()


def test_a_creation_killed_while_it_wrote_its_marker_is_finished(archive):
    os.replace(f"{archive.url}/latentpack.json", f"{archive.url}/tmp-abcd")
    again = Archive.create(archive.url)
    again.commit([again.write_part([picture_row("a")])])
    assert again.vacuum(0) == 1 and not os.path.exists(f"{archive.url}/tmp-abcd")
    assert again.verify() == []


def test_no_file_of_an_erased_picture_is_left_where_its_page_was_damaged(archive, tmp_path):
    rows = [picture_row(key, seed) for seed, key in enumerate(("a", "secret", "z"))]
    archive.commit([archive.write_part(rows)])
    [part] = [path for path in Path(archive.url, "images").glob("*.parquet")]
    data = bytearray(part.read_bytes())
    at = data.index(rows[1].payload)
    data[at + 300] ^= 4
    part.write_bytes(data)
    assert Archive.open(archive.url).delete(["secret"]) == 1
    for path in Path(archive.url).rglob("*"):
        if path.is_file():
            found = path.read_bytes()
            assert rows[1].payload[:200] not in found and b"secret" not in found, path


def test_an_original_that_is_larger_than_its_row_says_is_not_decoded(archive):
    """Many rows of one pixel are decoded together, whatever they hold."""
    bomb = encode_picture(np.zeros((3000, 3000, 3), np.uint8), 3)
    archive.commit([archive.write_part([original_row("bomb.png", bomb, 1, 1), picture_row("a")])])
    [problem] = Archive.open(archive.url).verify()
    assert problem.key == "bomb.png" and "3000 x 3000 pixels, the limit is 1" in problem.reason


def test_text_that_is_no_utf8_is_damage_of_its_rows(archive):
    archive.commit([archive.write_part([picture_row("good.png")])])
    table = to_table([picture_row("bad.png")], IMAGES)
    broken = pa.array([b"jp\xff"], pa.binary()).view(pa.string())
    at = table.column_names.index("codec")
    part = archive.tables[0].write([table.set_column(at, table.schema.field(at), broken)])
    archive.commit([part])
    opened = Archive.open(archive.url)
    assert [problem.key for problem in opened.verify()] == ["bad.png"]
    assert opened.read("good.png").shape == (24, 32, 3)
    for read in (lambda: list(opened.scan()), opened.info, lambda: opened.read("bad.png")):
        with pytest.raises(ArchiveError):
            read()
