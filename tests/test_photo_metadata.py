"""What files say beside their pictures is kept where that is asked for, stays with its row, and comes back in files."""

import io
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pillow_heif
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from skimage.data import chelsea

from compressor.archive import Archive
from compressor.encoding import EncodeOptions, encode_batch
from compressor.encoding_again import AgainOptions
from compressor.images import decode_picture
from compressor.metrics import psnr
from compressor.parquet import IMAGES, RangeFile, Row, encode, read_metadata, to_table
from compressor.photo_metadata import MOST_BYTES, kept_exif, kept_xmp, taken
from compressor.picture_writing import encode_picture
from compressor.repairing import repair
from compressor.salvaging import salvage
from compressor.sources import Source
from tests.codecs import smooth_pictures
from tests.fixtures.make import HERE
from tests.pictures import FORMATS, adobe_exif, file_of
from tests.rows import add, contents, picture_row

UPRIGHT = Image.fromarray(smooth_pictures(1, 24, 32)[0])
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="caf\xc3\xa9"/></x:xmpmeta>'
XMP_UPRIGHT = XMP.replace(b'"6"', b'"1"')
TAKEN = "2026-05-01T12:34:56"


def exif_of(orientation: int = 6, time: str = "2026:05:01 12:34:56", offset: str = "+02:00") -> bytes:
    exif = Image.Exif()
    exif[271], exif[274], exif[306] = "Maker", orientation, "2026:11:27 00:00:00"
    exif.get_ifd(0x8769).update({36867: time, 36881: offset, 37500: b"maker's own \x00\xff"})
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def block_of(order: str, orientation: int, thumbnail: bytes) -> bytes:
    """An EXIF block as cameras lay it out: the picture's directory, the thumbnail's, the thumbnail, a last word."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    first = struct.pack(order + "HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 26)
    start = 26 + 2 + 2 * 12 + 4
    second = struct.pack(order + "H2HII2HIII", 2, 0x201, 4, 1, start, 0x202, 4, 1, len(thumbnail), 0)
    return head + first + second + thumbnail + b"last word"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_is_kept_upright_and_without_its_thumbnail(order: str) -> None:
    thumbnail = b"\xff\xd8" + b"small picture" + b"\xff\xd9"
    block = block_of(order, 8, thumbnail)
    kept = kept_exif(b"Exif\0\0" + block)
    assert kept == kept_exif(block) and kept is not None
    assert len(kept) == len(block) and b"small picture" not in kept and kept.endswith(b"last word")
    for data, (orientation, thumbnails) in ((block, (8, 2)), (kept, (1, 0))):
        read = Image.Exif()
        read.load(data)
        assert (read[274], len(read.get_ifd(ExifTags.IFD.IFD1))) == (orientation, thumbnails)
    assert kept_exif(kept) == kept


def test_what_is_no_thumbnail_is_not_overwritten() -> None:
    block = bytearray(block_of("<", 1, b"\xff\xd8 picture"))
    at = block.index(struct.pack("<HHI", 0x201, 4, 1)) + 8
    struct.pack_into("<I", block, at, 8)  # the picture's own directory
    kept = kept_exif(bytes(block))
    assert kept is not None and kept[8:22] == block[8:22] and b"\xff\xd8 picture" in kept


@pytest.mark.filterwarnings("ignore")  # Pillow has much to say of broken blocks
@given(data=st.data())
def test_any_bytes_are_kept_whole_or_not_at_all(data: Any) -> None:
    block = bytearray(data.draw(st.sampled_from([exif_of(), block_of(">", 3, b"\xff\xd8thumb"), b"II*\0"])))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(block) - 1), st.integers(0, 255)), max_size=6)):
        block[at] = value
    block = block[: data.draw(st.integers(0, len(block)))]
    kept = kept_exif(bytes(block))
    assert kept is None or len(kept) == len(block.removeprefix(b"Exif\0\0"))
    when = taken(bytes(block))
    assert when is None or len(when) in (19, 25)


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_broken_behind_the_first_directory_costs_nothing_before_it(order: str) -> None:
    block = block_of(order, 8, b"\xff\xd8")[:22]
    for after in (struct.pack(order + "I", 60_000), b"", b"\0\0"):
        kept = kept_exif(block + after)
        assert kept is not None and len(kept) == len(block + after)
        read = Image.Exif()
        read.load(kept)
        assert read[274] == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_restored_photograph_in_adobe_rgb_says_that_it_is_srgb(archive: Archive, tmp_path: Path, order: str) -> None:
    pixels = np.ascontiguousarray(chelsea()[100:164, 100:196])
    data = file_of(Image.fromarray(pixels), "jpeg", quality=98, subsampling=0, exif=adobe_exif(order=order))
    assert np.abs(decode_picture(data).pixels.astype(int) - pixels).max() > 5, "it is converted"
    archive.append({"a": data}, "webp", target_psnr=45.0, keep_metadata=True)
    archive.restore(tmp_path, format="jpeg")
    restored = decode_picture((tmp_path / "a.jpg").read_bytes()).pixels
    assert psnr(restored, archive.read("a")) > 50


def test_what_takes_long_to_read_is_not_read() -> None:
    """Of a long array each number would become an object, of a compressed packet megabytes."""
    many = Image.Exif()
    many[271] = "Maker"
    many.get_ifd(0x8769).update({36867: "2026:05:01 12:34:56", 37396: tuple(range(40_000))})
    assert len(many.tobytes()) > MOST_BYTES and taken(many.tobytes()) is None
    for format in ("png", "tiff"):
        picture = decode_picture(file_of(UPRIGHT, format, exif=many.tobytes()), metadata=True)
        assert picture.exif is None and picture.extras == {"EXIF"}
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", " " * 2**20, zip=True)
    picture = decode_picture(file_of(UPRIGHT, "png", pnginfo=text), metadata=True)
    assert picture.xmp is None and picture.extras == {"XMP"}


def test_a_tiff_tells_of_itself_also_without_a_camera(archive: Archive) -> None:
    settings = {"artist": "A. Painter", "copyright": "hers", "software": "a scanner"}
    data = file_of(UPRIGHT, "tiff", tiffinfo={306: "2026:05:01 12:34:56"}, **settings)
    archive.append({"a": data}, "webp", keep_metadata=True)
    row, read = archive.read_row("a"), Image.Exif()
    read.load(row.exif or b"")
    assert (read[315], read[33432], row.taken) == ("A. Painter", "hers", TAKEN)
    assert decode_picture(data).extras == {"EXIF"}
    archive.append({"b": file_of(UPRIGHT, "tiff")}, "webp", keep_metadata=True)
    assert archive.read_row("b").exif is None


@pytest.mark.parametrize(("kind", "value"), [(2, "text"), (4, 7), (1, XMP), (7, XMP)])
def test_xmp_of_a_tiff_is_kept_if_its_type_is_one_of_bytes(archive: Archive, kind: int, value: Any) -> None:
    tags = ImageFileDirectory_v2()
    tags.tagtype[700] = kind
    tags[700] = value
    archive.append({"a": file_of(UPRIGHT, "tiff", tiffinfo=tags)}, "webp", keep_metadata=True)
    assert archive.read_row("a").xmp == (XMP_UPRIGHT if value == XMP else None)


def test_xmp_in_another_kind_of_text_is_left_out() -> None:
    for compressed in (False, True):
        text = PngInfo()
        text.add_text("XML:com.adobe.xmp", XMP.decode(), zip=compressed)
        picture = decode_picture(file_of(UPRIGHT, "png", pnginfo=text), metadata=True)
        assert picture.xmp is None and picture.extras == {"XMP"}


def test_what_no_jpeg_could_hold_is_not_kept() -> None:
    assert kept_exif(block_of("<", 1, bytes(MOST_BYTES))) is None and kept_xmp(b"x" * (MOST_BYTES + 1)) is None
    assert kept_exif(b"no EXIF") is None and kept_exif(b"II*\0") is None and kept_xmp(b" \0") is None


@pytest.mark.parametrize(
    ("time", "offset", "expected"),
    [
        ("2026:05:01 12:34:56", "+02:00", f"{TAKEN}+02:00"),
        ("2026:05:01 12:34:56\0", "", TAKEN),
        ("2026:05:01 12:34:56", "later", TAKEN),
        ("0000:00:00 00:00:00", "", "2026-11-27T00:00:00"),  # a clock that was never set: the file's own time
        ("    :  :     :  :  ", "", "2026-11-27T00:00:00"),
        ("2026:13:01 12:34:56", "", "2026-11-27T00:00:00"),
        ("2026:02:31 12:34:56", "", "2026-11-27T00:00:00"),
        ("2026:05:01 12:34:56", "+99:99", TAKEN),
    ],
)
def test_when_a_picture_was_taken(time: str, offset: str, expected: str) -> None:
    assert taken(exif_of(time=time, offset=offset)) == expected


def photograph(format: str) -> bytes:
    """A picture that lies on its side, with EXIF and XMP, in a format that holds both."""
    settings = dict(FORMATS[format])
    if format == "png":
        settings["pnginfo"] = PngInfo()
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    elif format != "tiff":
        settings["xmp"] = XMP
    return file_of(UPRIGHT.transpose(Image.Transpose.ROTATE_90), format, exif=exif_of(), **settings)


HOLDING = ("jpeg", "png", "webp", "avif", "heic", "tiff")


def exif_in(block: bytes | None) -> tuple[Any, ...]:
    read = Image.Exif()
    read.load(block or b"")
    own = read.get_ifd(0x8769)
    return read.get(274, 1), read.get(271), own.get(36867), own.get(37500), read.get_ifd(0x8825).get(1)


TOLD = (1, "Maker", "2026:05:01 12:34:56", b"maker's own \x00\xff", "N")


def told_by(format: str) -> tuple[Any, ...]:
    """Makers' notes of a TIFF may point to places of the file."""
    return tuple(None if format == "tiff" and value == TOLD[3] else value for value in TOLD)


@pytest.mark.parametrize("format", HOLDING)
def test_what_a_file_says_is_stored_beside_its_picture_and_restored_with_it(
    archive: Archive, tmp_path: Path, format: str
) -> None:
    archive.append({"a": photograph(format), "b": photograph(format)}, "webp", keep_metadata=True)
    row = archive.read_row("a")
    assert (row.width, row.height, row.taken) == (32, 24, f"{TAKEN}+02:00")
    assert exif_in(row.exif) == told_by(format) and row.xmp == (None if format == "tiff" else XMP_UPRIGHT)
    assert archive.verify() == []
    for written, name in (("png", "a.png"), ("jpeg", "a.jpg"), ("webp", "a.webp")):
        assert archive.restore(tmp_path / written, ["a"], written).problems == []
        data = (tmp_path / written / name).read_bytes()
        picture = decode_picture(data, metadata=True)
        assert picture.pixels.shape == (24, 32, 3), "and is not turned again"
        assert exif_in(picture.exif) == told_by(format) and picture.xmp == row.xmp
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.getexif().get_ifd(0x8769)[36867] == "2026:05:01 12:34:56"
            told = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
            assert told == row.xmp
    for written in ("tiff", "bmp", "avif"):
        assert archive.restore(tmp_path / written, ["a"], written).problems == []


def test_many_items_of_a_heic_are_not_copied() -> None:
    """They may all be the same bytes, and take the memory of as many files."""
    for count, expected in ((1, TOLD), (12, None)):
        heic = pillow_heif.from_pillow(UPRIGHT)
        heic.info["metadata"] = [{"type": "mime", "content_type": "text/plain", "data": b"a"} for _ in range(count)]
        file = io.BytesIO()
        heic.save(file, exif=exif_of(1))
        exif = decode_picture(file.getvalue(), metadata=True).exif
        assert (exif and exif_in(exif)) == expected


def test_it_is_not_stored_unasked(archive: Archive) -> None:
    archive.append({"a": photograph("jpeg")}, "webp")
    row = archive.read_row("a")
    assert (row.taken, row.exif, row.xmp) == (None, None, None)
    assert "exif" not in columns_of_files(archive)[0], "nor costs a byte"


def columns_of_files(archive: Archive) -> list[set[str]]:
    return [set(duckdb.read_parquet(file).columns) for file in archive.files()]


def test_a_file_that_keeps_its_bytes_is_found_by_its_time_alone(archive: Archive) -> None:
    translucent = file_of(Image.new("RGBA", (32, 24), (9, 9, 9, 90)), "png", exif=exif_of())
    archive.append({"a": translucent}, "webp", keep_metadata=True)
    row = archive.read_row("a")
    assert (row.codec, row.payload, row.taken) == ("original", translucent, f"{TAKEN}+02:00")
    assert (row.exif, row.xmp) == (None, None)


@pytest.fixture
def mixed(archive: Archive) -> Archive:
    """Some files with metadata, some without, one of both after a deletion."""
    add(archive, [picture_row("a", 1), picture_row("z", 2)])
    archive.append({f"p{n}": photograph("jpeg") for n in range(3)}, "webp", keep_metadata=True)
    archive.append({"plain": UPRIGHT_PNG}, "webp", keep_metadata=True)
    add(archive, [picture_row("b", 3)])
    return archive


UPRIGHT_PNG = file_of(UPRIGHT)
WITH = {"p0", "p1", "p2"}


def with_exif(rows: dict[str, Row]) -> set[str]:
    told = {key for key, row in rows.items() if row.exif is not None}
    for key in told:
        assert (rows[key].taken, rows[key].xmp) == (f"{TAKEN}+02:00", XMP_UPRIGHT) and exif_in(rows[key].exif) == TOLD
    return told


def test_it_stays_with_its_row_whatever_is_done_with_the_files(mixed: Archive, tmp_path: Path) -> None:
    assert len({frozenset(names) for names in columns_of_files(mixed)}) == 2
    assert with_exif(contents(mixed)) == WITH and len(contents(mixed)) == 7
    assert [row.taken for rows in mixed.scan(["taken"]) for row in rows].count(None) == 4
    assert mixed.delete(["p1"]) == 1
    assert with_exif(contents(mixed)) == WITH - {"p1"}
    mixed.append({"p2": UPRIGHT_PNG}, "webp", keep_metadata=True)
    assert with_exif(contents(mixed)) == {"p0"}
    assert mixed.compact() > 0 and len(mixed.files()) == 1
    assert with_exif(contents(mixed)) == {"p0"} and mixed.verify() == []
    mixed.delete(["p0"])
    gone = Path(mixed.files()[0]).read_bytes()
    assert b"Maker" not in gone and with_exif(contents(mixed)) == set()


def test_other_programs_find_pictures_by_their_time(mixed: Archive) -> None:
    table = DeltaTable(f"{mixed.url}/images").to_pyarrow_table()
    assert table.num_rows == 7 and table["taken"].null_count == 4
    found = duckdb.read_parquet(mixed.files(), union_by_name=True).query(
        "images", "select key, taken::timestamptz as at from images where taken >= '2026-05' order by key"
    )
    assert [key for key, _ in found.fetchall()] == ["p0", "p1", "p2"]
    rows = duckdb.read_parquet(mixed.files(), union_by_name=True).query(
        "images", "select * from images where key = 'p1'"
    )
    [pixels] = mixed.decode(rows)
    assert np.array_equal(pixels, mixed.read("p1"))


def test_salvage_brings_it(mixed: Archive, tmp_path: Path) -> None:
    shutil.rmtree(Path(mixed.url) / "images" / "_delta_log")
    new, done = salvage(mixed.url, str(tmp_path / "new"))
    assert done.problems == [] and with_exif(contents(new)) == WITH


def test_a_picture_that_is_encoded_again_has_it_where_the_archive_has(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(photograph("jpeg"))
    source = Source.open(str(folder))
    archive = Archive.create(str(tmp_path / "archive"))
    archive.take_metadata()
    options = EncodeOptions("webp", 30, keep_metadata=True)
    archive.commit(encode_batch(source, list(source.files()), archive, options, "run").parts)
    payload = archive.read_row("1.jpg").payload
    [path] = archive.files()
    data = bytearray(Path(path).read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 1
    Path(path).write_bytes(data)
    done = repair(Archive.open(archive.url), source, AgainOptions("webp", 30))
    assert done.is_whole and done.regained
    rows = contents(Archive.open(archive.url))
    assert with_exif(rows) == rows.keys() == {"0.jpg", "1.jpg", "2.jpg"}


@pytest.mark.parametrize("told", [False, True])
def test_a_picture_of_a_file_without_it_gets_none_unless_the_repair_is_told(tmp_path: Path, told: bool) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(photograph("jpeg"))
    source = Source.open(str(folder))
    archive, files = Archive.create(str(tmp_path / "archive")), list(source.files())
    archive.take_metadata()
    for some, kept in ((files[:2], True), (files[2:], False)):
        options = EncodeOptions("webp", 30, keep_metadata=kept)
        archive.commit(encode_batch(source, some, archive, options, "run").parts)
    for part, key in zip(archive.tables[0].parts, ("1.jpg", "3.jpg"), strict=True):
        path, payload = Path(archive.url) / "images" / part.path, archive.read_row(key).payload
        data = bytearray(path.read_bytes())
        data[data.rindex(payload) + len(payload) // 2] ^= 1
        path.write_bytes(data)
    done = repair(Archive.open(archive.url), source, AgainOptions("webp", 30, keep_metadata=told))
    assert done.is_whole and {"1.jpg", "3.jpg"} <= set(done.regained)
    rows = contents(Archive.open(archive.url))
    assert with_exif(rows) & {"0.jpg", "1.jpg", "3.jpg"} == (
        {"0.jpg", "1.jpg", "3.jpg"} if told else {"0.jpg", "1.jpg"}
    )


def test_metadata_end_a_row_group_as_payloads_do() -> None:
    rows = [replace(picture_row(f"{n}"), exif=bytes(2**20), xmp=bytes(2**20)) for n in range(9)]
    data, _, _ = encode([to_table(rows, IMAGES)], IMAGES)
    groups = read_metadata(RangeFile(lambda spans: [data[start:end] for start, end in spans], len(data)))
    assert [groups.row_group(at).num_rows for at in range(groups.num_row_groups)] == [3, 3, 3]


def test_a_damaged_file_with_it_is_put_right(mixed: Archive) -> None:
    """By encoding its rows again, which gives the same bytes only with the same columns."""
    [path] = [file for file, names in zip(mixed.files(), columns_of_files(mixed), strict=True) if "exif" in names]
    whole = Path(path).read_bytes()
    damaged = bytearray(whole)
    damaged[2] ^= 1  # of the magic number, which nothing else would notice
    Path(path).write_bytes(damaged)
    opened = Archive.open(mixed.url)
    assert opened.verify() != []
    assert repair(opened).is_whole and Path(path).read_bytes() == whole


def test_an_archive_of_an_earlier_version_learns_of_the_columns(tmp_path: Path) -> None:
    shutil.copytree(HERE / "format-1-parts" / "archive", tmp_path / "earlier")
    earlier = Archive.open(str(tmp_path / "earlier"))
    other = Archive.open(earlier.url)
    before = len(earlier)
    earlier.append({"a": photograph("jpeg")}, "webp", keep_metadata=True)
    earlier.take_metadata()
    assert DeltaTable(f"{earlier.url}/images").to_pyarrow_table()["taken"].null_count == before
    assert earlier.verify() == [] and exif_in(earlier.read_row("a").exif) == TOLD
    add(other, [picture_row("b")])  # it opened the archive before
    other.append({"c": photograph("png")}, "webp", keep_metadata=True)
    opened = Archive.open(earlier.url)
    assert opened.verify() == [] and with_exif({key: opened.read_row(key) for key in "ac"}) == {"a", "c"}


def test_columns_that_two_add_at_once_are_added_once(tmp_path: Path) -> None:
    shutil.copytree(HERE / "format-1-parts" / "archive", tmp_path / "earlier")
    first, second = (Archive.open(str(tmp_path / "earlier")) for _ in range(2))
    log = second.tables[0].log
    refresh, log.refresh = (
        log.refresh,
        lambda anew=False: refresh(anew) if anew else None,
    )  # the first look is of before
    first.take_metadata()
    log.add_columns()
    names = [field.name for field in DeltaTable(f"{first.url}/images").schema().fields]
    assert names.count("exif") == 1 and Archive.open(first.url).verify() == []


def test_a_crafted_block_is_left_out_of_a_file_that_cannot_hold_it(archive: Archive, tmp_path: Path) -> None:
    long = bytes(2**17)
    add(archive, [replace(picture_row("a"), exif=long, xmp=long, taken="whenever"), picture_row("b")])
    for format in ("png", "jpeg", "webp"):
        assert archive.restore(tmp_path / format, format=format).problems == []
        assert len(list((tmp_path / format).iterdir())) == 2
    assert encode_picture(archive.read("a"), 3, "jpeg", 35.0, long, long) == encode_picture(
        archive.read("a"), 3, "jpeg", 35.0
    )
