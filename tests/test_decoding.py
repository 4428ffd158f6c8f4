"""Rows to pixels, by codecs that the archive carries or from the file that was kept, and what verify says of damage."""

import os
from dataclasses import replace

import crc32c
import numpy as np
import pytest

from compressor import limits
from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.codec import ORIGINAL
from compressor.decoding import decode, grey_planes
from compressor.errors import ArchiveError, CodecError
from compressor.images import decode_picture
from compressor.limits import Limits
from compressor.picture_writing import encode_picture
from tests.codecs import smooth_pictures, tiny_artifact, tiny_codec
from tests.rows import add, original_row, picture_row


def test_an_archive_carries_its_codec(archive):
    codec, data = tiny_codec("v5"), tiny_artifact("v5")
    pixels = smooth_pictures(2, 32, 48)
    assert [archive.put_codec(data), archive.put_codec(data)] == [codec.id] * 2
    rows = []
    for number, one in enumerate(codec.encode(pixels, 3)):
        row = replace(picture_row(f"{number}"), **{name: getattr(one, name) for name in one.__dataclass_fields__})
        rows.append(original_row(row.key, row.payload, 48, 32))
        rows[-1] = replace(row, crc32c=rows[-1].crc32c)
    add(archive, [*rows, picture_row("jpeg")])
    again = Archive.open(archive.url)
    expected = codec.decode(codec.encode(pixels, 3))
    assert np.array_equal(again.read("1"), expected[1])
    assert [picture.shape for picture in again.decode([again.read_row(key) for key in ("1", "jpeg", "0")])] == [
        (32, 48, 3),
        (24, 32, 3),
        (32, 48, 3),
    ]
    assert again.verify() == []
    assert again.info().codec_bytes == len(data)
    with pytest.raises(ArchiveError, match="'unheard-of' is not in its codecs folder"):
        again.codec("unheard-of")
    os.rename(f"{archive.url}/codecs/{codec.id}.safetensors", f"{archive.url}/codecs/other.safetensors")
    with pytest.raises(ArchiveError, match="damaged or renamed"):
        again.codec("other")


def test_originals_come_back_as_they_were(archive):
    [pixels] = smooth_pictures(1, 20, 30)
    png = encode_picture(pixels, 3, "png")
    add(archive, [original_row("o.png", png, 30, 20)])
    assert np.array_equal(archive.read("o.png"), pixels)
    assert archive.read_row("o.png").payload == png
    assert archive.info().exact == 1


def test_an_original_reads_back_whatever_limits_it_was_archived_under(archive, monkeypatch):
    pixels = np.zeros((40, 50, 3), np.uint8)
    add(archive, [original_row("a.png", encode_picture(pixels, 3), 50, 40)])
    monkeypatch.setattr(decode_picture, "__defaults__", (Limits(max_pixels=100),))
    monkeypatch.setattr(Limits, "max_pixels", 100)
    assert (archive.read("a.png") == pixels).all()


@pytest.mark.parametrize("name", STANDARD)
def test_a_row_that_lies_of_its_size_is_damaged_and_lacks_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_can_have", lambda size: False)
    codec = STANDARD[name]
    [encoded] = codec.encode(smooth_pictures(1), 50 if codec.qualities else -1)
    row = replace(picture_row("a"), codec=name, payload=encoded.payload, crc32c=crc32c.crc32c(encoded.payload))
    lying = replace(row, width=2**31 - 1, height=1000)
    cut = encoded.payload[:9]
    for bad in (lying, replace(row, payload=cut, crc32c=crc32c.crc32c(cut))):
        with pytest.raises(CodecError, match="pixels, its row says|file that can be read"):
            decode([bad], lambda id: codec)


def test_grey_is_the_rounded_mean_of_three_planes() -> None:
    pixels = np.array([[[0, 0, 1], [0, 1, 1], [255, 255, 255]]], np.uint8)
    assert grey_planes(pixels)[0].tolist() == [[0, 0, 0], [1, 1, 1], [255, 255, 255]]


def test_verify_names_every_bad_picture(archive):
    [pixels] = smooth_pictures(1, 20, 30)
    good = [picture_row(f"good-{seed}", seed) for seed in range(5)]
    bad = [
        replace(picture_row("checksum", 9), crc32c=1),
        original_row("size", encode_picture(pixels, 3), 31, 20),
        original_row("garbage", b"no picture at all", 30, 20),
        replace(picture_row("codec", 9), codec="lost"),
    ]
    add(archive, good + bad)
    progress = []
    problems = {problem.key: problem.reason for problem in archive.verify(lambda *step: progress.append(step))}
    assert progress == [(9, 9)]
    assert set(problems) == {"checksum", "size", "garbage", "codecs/lost.safetensors"}
    assert "stored crc32c 0x00000001, computed 0x" in problems["checksum"]
    assert "stored as 31x20, decodes to 30x20" in problems["size"]
    assert "1 sound picture cannot be read without it" in problems["codecs/lost.safetensors"]
    with pytest.raises(CodecError, match="crc32c"):
        archive.read("checksum")
    assert ORIGINAL in archive.info().codecs


def test_verify_reports_damaged_and_missing_files(archive):
    add(archive, [picture_row(f"a{seed}", seed) for seed in range(3)])
    add(archive, [picture_row("b")])
    parts = archive._images.parts
    path = f"{archive.url}/images/{parts[0].path}"
    payload = picture_row("", 1).payload
    with open(path, "rb+") as file:
        file.seek(file.read().index(payload) + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.unlink(f"{archive.url}/images/{parts[1].path}")
    problems = {problem.key for problem in Archive.open(archive.url).verify()}
    assert problems == {"a1", parts[1].path}  # its neighbours in the page have checksums of their own
