"""What a source lists: globs, order, each file once; what it leaves out is counted or told."""

import itertools
import os
import re
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import listing
from compressor.sources import Source
from tests.trees import NAMES, keys
from tests.trees import anywhere as anywhere
from tests.trees import bucket as bucket
from tests.trees import tree as tree


def test_a_glob_is_told_only_of_names_that_it_asks_for(tree):
    os.symlink(tree / "gone", tree / "broken.png")
    os.symlink("/", tree / "elsewhere")
    for pattern, passed_over in (("0*.png", []), ("*.png", ["broken.png"]), ("e*/*.png", ["elsewhere"])):
        source = Source.open(f"{tree}/{pattern}")
        list(source.files())
        assert [skipped.name for skipped in source.skipped] == passed_over, pattern


def test_a_link_to_what_is_not_listed_without_it_is_passed_over(tree):
    """To a hidden folder, as git-sync and Kubernetes make them, or to one that the pattern does not ask for."""
    (tree / ".store" / "2024").mkdir(parents=True)
    os.symlink(tree / ".store" / "2024", tree / "2024")
    os.symlink(tree / "00000", tree / "zeros")
    for pattern, passed_over in (("", ["2024"]), ("/z*/*", ["zeros"]), ("/*/*", ["2024"])):
        source = Source.open(f"{tree}{pattern}")
        list(source.files())
        assert [skipped.name for skipped in source.skipped] == passed_over, pattern
        assert all("not followed" in skipped.reason for skipped in source.skipped)


def test_globs_everywhere(anywhere):
    if "::" in anywhere:
        pytest.skip("a glob inside a chained URL is spelled otherwise")
    assert keys(anywhere + "/**/*.png") == ["00000.png", "00000/00000.png"]
    assert keys(anywhere + "/*.png") == ["00000.png"]
    assert keys(anywhere + "/0*/*") == ["00000/00000.png", "00000/00001.PNG", "01000/x[1].webp"]
    assert keys(anywhere + "/00000/0000[01].*") == ["00000.png", "00001.PNG"]
    assert keys(anywhere + "/nothing-*.png") == []


def test_nothing_is_lost_silently(tree):
    os.symlink(tree, tree / "00000" / "loop")
    os.symlink("/", tree / "away")
    (tree / ".hidden.png").write_bytes(b"hidden")
    (tree / "00000" / ".png").write_bytes(b"hidden")
    (tree / ".thumbnails").mkdir(exist_ok=True)
    os.symlink(tree / "00000.png", tree / "link.png")
    os.symlink(tree / "gone", tree / "broken.png")
    os.symlink(tree / "itself.png", tree / "itself.png")
    os.mkfifo(tree / "pipe.png")
    (Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.png"))).write_bytes(b"latin-1")
    (tree / "two\nlines.png").write_bytes(b"newline")
    source = Source.open(str(tree))
    files = {file.key: file.path for file in source.files()}
    assert sorted(files) == sorted([*NAMES, "link.png", "two\nlines.png"])
    assert source.read([files["two\nlines.png"]]) == [b"newline"]
    reasons = dict(source.skipped)
    assert set(reasons) == {"away", "broken.png", "pipe.png", "caf\\udce9.png"}
    assert "UTF-8" in reasons["caf\\udce9.png"] and "link to a folder" in reasons["away"]
    ignored = dict(source.ignored)
    assert {"00000/loop", "itself.png", ".hidden.png", "00000/.png", ".thumbnails/"} <= set(ignored)
    assert len(ignored) == source.ignored_count and "hidden" in ignored[".hidden.png"]


def test_folder_names_with_wildcards(tmp_path):
    (tmp_path / "a[1]*").mkdir()
    (tmp_path / "a[1]*" / "b.png").write_bytes(b"x")
    assert keys(str(tmp_path / "a[1]*")) == ["b.png"]


@given(st.sets(st.text("ab-./é", min_size=1, max_size=6), max_size=12), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_local_order_is_the_order_of_whole_keys(tmp_path_factory, names, held):
    root = tmp_path_factory.mktemp("order")
    for name in names:
        name = "/".join("x" + part.strip(".") for part in name.split("/")) + "z.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "NAMES_HELD", held)  # many passes over each directory
        found = keys(str(root))
    assert found == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))


def test_bucket_of_several_pages(bucket, monkeypatch):
    monkeypatch.setattr(listing, "KEYS_A_PAGE", 3)
    assert keys("s3://pictures/ffhq") == sorted(NAMES)
    files = Source.open("s3://pictures/ffhq").files()
    assert [file.key for file in itertools.islice(files, 2)] == sorted(NAMES)[:2]


def test_brackets_may_be_part_of_a_remote_folder_s_name():

    fsspec.filesystem("memory").pipe("/brackets/photos [2020]/a.png", b"a")
    assert keys("memory://brackets/photos [2020]") == ["a.png"]


def test_files_of_other_extensions_are_counted_everywhere(anywhere):
    source = Source.open(anywhere)
    for _ in range(2):
        list(source.files())
    assert source.unlisted == {".txt": 1, ".db": 1, "none": 1}


def test_a_web_server_s_other_files_are_counted_too(tree):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tree)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = Source.open(f"http://127.0.0.1:{server.server_port}")
        assert "00000.png" in [file.key for file in source.files()]
        assert source.unlisted == {".txt": 1, ".db": 1, "none": 1}
    finally:
        server.shutdown()
        server.server_close()


def test_every_file_is_counted_once_and_no_more_extensions_than_memory_has_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "NAMES_HELD", 2)  # many passes over the directory
    names = [f"{number}.x{number}" for number in range(150)] + [f"{number}.jpg_{number}" for number in range(150)]
    listed = [f"{number}.png" for number in range(7)]
    for name in [*names, "b.png ", "c", f"d.{'e' * 50}", *listed]:
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.x1")
    source = Source.open(str(tmp_path))
    assert [file.key for file in source.files()] == listed
    assert source.unlisted.total() == 303 and len(source.unlisted) <= 102
    assert sum(count for name, count in source.unlisted.items() if listing.is_like_picture(name)) == 151
    source = Source.open(f"{tmp_path}/*.x1")
    assert list(source.files()) == [] and source.unlisted == {".x1": 1}


@pytest.mark.parametrize(
    ("extension", "like"),
    [(".jpg_large", True), (".png ", True), (".tif~", True), (".dng!", True), (".jpgs", False), (".txt", False)],
)
def test_extensions_that_are_nearly_a_picture_s(extension, like):
    assert listing.is_like_picture(extension) is like and not listing.is_picture("a" + extension)


def test_pictures_that_are_not_read_are_listed_and_the_documentation_says_which(tmp_path):
    wanted = sorted(f"a{extension}" for extension in listing.PICTURE_EXTENSIONS)
    assert {"a.dng", "a.cr2", "a.psd", "a.tga", "a.ppm", "a.ico", "a.heic", "a.jxl"} <= set(wanted)
    for name in wanted:
        (tmp_path / name).write_bytes(b"")
    assert keys(str(tmp_path)) == wanted
    told = re.findall(r"\.[a-z0-9]+", (Path(__file__).parents[1] / "docs" / "operations.md").read_text())
    assert set(told) >= listing.PICTURE_EXTENSIONS


def test_a_tar_of_the_folder_itself_is_listed_as_the_folder(tmp_path):
    for name in ("b.png", "a/c.png", "-.png", ".hidden.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    with tarfile.open(tmp_path / "dot.tar", "w") as file:
        file.add(tmp_path / "in", ".")
    source = Source.open(f"tar://::{tmp_path}/dot.tar")
    files = list(source.files())
    assert [file.key for file in files] == ["-.png", "a/c.png", "b.png"]
    assert source.read([file.path for file in files]) == [b"-.png", b"a/c.png", b"b.png"]
    assert [name for name, _ in source.ignored] == [".hidden.png"] and source.unlisted == {".txt": 1}
    assert [file.key for file in Source.open(f"tar://*.png::{tmp_path}/dot.tar").files()] == ["-.png", "b.png"]


def test_a_tar_that_names_some_files_from_the_dot_is_in_order_and_names_each_once(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "mixed.tar", "w") as file:
        for name in ("./a.png", "b.png", "./c.png", "d/e.png", "./d/f.png", "./b.png"):
            file.add(tmp_path / "x.png", name)
    source = Source.open(f"tar://::{tmp_path}/mixed.tar")
    assert [file.key for file in source.files()] == ["a.png", "b.png", "c.png", "d/e.png", "d/f.png"]
    assert [name for name, _ in source.skipped] == ["b.png"]


def test_the_globs_advised_for_the_last_of_many_folders_keep_its_name(bucket):
    bucket.create_bucket(Bucket="dated")
    for month in ("2026-10", "2026-11", "2026/11", "2027/11"):
        bucket.put_object(Bucket="dated", Key=f"{month}/0001.png", Body=b"x")
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    advised = re.findall("`'s3://bucket/(2026[^']*)'`", text)
    assert len(advised) == 2
    found = [keys(f"s3://dated/{glob}") for glob in advised]
    assert found == [["2026-11/0001.png"], ["2026/11/0001.png"]]
    assert keys("s3://dated/2026-11/") == ["0001.png"], "which is why"
