"""One tree of pictures and other files wherever sources are: folders, archives, memory, a bucket."""

import tarfile

import boto3
import fsspec
import pytest

from compressor.sources import Source

NAMES = ["00000/00000.png", "00000/00001.PNG", "00000-b.jpeg", "00000.png", "01000/x[1].webp", "01000/deep/y z.tif"]
NAMES.append("é.jpg")
OTHERS = ["readme.txt", ".hidden.png", ".cache/z.png", "00000/.DS_Store", "Thumbs.db"]


@pytest.fixture
def tree(tmp_path):
    for name in NAMES + OTHERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture(scope="module")
def bucket(s3_server):
    client = boto3.client("s3")
    client.create_bucket(Bucket="pictures")
    client.create_bucket(Bucket="hollow")
    for name in NAMES + OTHERS:
        client.put_object(Bucket="pictures", Key="ffhq/" + name, Body=name.encode())
    client.put_object(Bucket="pictures", Key="ffhq/00000/", Body=b"")  # what consoles leave for a folder
    client.put_object(Bucket="pictures", Key="documents/a.txt", Body=b"text")
    return client


@pytest.fixture(params=["local", "file", "s3", "memory", "zip", "tar"])
def anywhere(request, tmp_path):
    """The same files in every kind of storage, as a URL without a slash at its end."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return "s3://pictures/ffhq"
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        for name in NAMES + OTHERS:
            memory.pipe(f"/ffhq/{name}", name.encode())
        return "memory://ffhq"
    tree = request.getfixturevalue("tree")
    if request.param == "zip":
        import zipfile

        with zipfile.ZipFile(tree / "all.zip", "w") as file:
            for name in NAMES + OTHERS:
                file.writestr("ffhq/" + name, name)
        return f"zip://ffhq::{tree}/all.zip"
    if request.param == "tar":
        with tarfile.open(tree / "all.tar", "w") as file:
            for name in NAMES + OTHERS:
                file.add(tree / name, "ffhq/" + name)
        return f"tar://ffhq::{tree}/all.tar"
    return str(tree) if request.param == "local" else f"file://{tree}"


def keys(url):
    return [file.key for file in Source.open(url).files()]
