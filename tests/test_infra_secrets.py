"""Credentials are nowhere but in the environment: not in output, logs, artifacts, Prefect's database or the archive."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import boto3
import numpy as np
import pytest

from compressor.addresses import has_password, shown
from compressor.archive import Archive
from compressor.errors import LatentpackError
from compressor.picture_writing import encode_picture
from compressor.sources import Source
from flows import cli, parameters
from flows.parameters import PipelineParameters

KEY, SECRET, TOKEN, API = "AKIAKEYOFTESTS", "Secr3tKeyOf/Tests+1", "T0kenOfTests", "pnu_ApiKeyOfTests"
PASSWORD = "Passw0rdOf/Tests"


def _latentpack(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], env=kept | environment, capture_output=True, timeout=120
    )


class _Database:
    """What Prefect's database held while a command ran: it is gone with the command.

    Parameters
    ----------
    folder
        The command's temporary files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.seen: dict[str, bytes] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "_Database":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            for path in self.folder.glob("latentpack-*/*"):
                with suppress(OSError):  # gone in this moment
                    self.seen[path.name] = path.read_bytes() or self.seen.get(path.name, b"")


def test_a_run_leaves_no_credential_anywhere(s3_server: str, own_server: dict[str, str], tmp_path: Path):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="no-secrets")
    for number in range(3):
        data = encode_picture(np.full((16, 16, 3), 60 * number, np.uint8), 3, "png")
        s3.put_object(Bucket="no-secrets", Key=f"pictures/{number}.png", Body=data)
    s3.put_object(Bucket="no-secrets", Key="pictures/bad.png", Body=b"no picture")
    with _Database(tmp_path / "tmp") as live:
        ran = _latentpack(
            "run", "s3://no-secrets/pictures", "s3://no-secrets/archive", "--codec", "jpegxl", "--verbose",
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_SESSION_TOKEN=TOKEN,
            PREFECT_API_KEY=API,
            PREFECT_LOGGING_LEVEL="DEBUG",
            LATENTPACK_HOME=own_server["LATENTPACK_HOME"],
            PREFECT_HOME=own_server["PREFECT_HOME"],
            TMPDIR=str(live.folder),
        )  # fmt: skip
    assert ran.returncode == 1, ran.stderr.decode()[-2000:]  # one picture is quarantined
    kept = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} | live.seen
    for entry in s3.list_objects_v2(Bucket="no-secrets")["Contents"]:
        kept[entry["Key"]] = s3.get_object(Bucket="no-secrets", Key=entry["Key"])["Body"].read()
    kept["output"] = ran.stdout + ran.stderr
    database = b"".join(data for name, data in kept.items() if "prefect.db" in name)
    assert b"s3://no-secrets/pictures" in database, "the run is in Prefect's database, so that it was looked at"
    assert any(name.endswith(".parquet") for name in kept) and len(kept["output"]) > 1000
    # The key's id names who asks, and is no secret; but nothing has a reason to keep it either.
    for secret in (KEY, SECRET, TOKEN, API):
        assert [name for name, data in kept.items() if secret.encode() in data] == [], secret


def test_a_store_that_refuses_is_named_without_the_credentials(s3_server: str):
    told = _latentpack(
        "info", "s3://no-such-bucket/archive", "--debug",
        AWS_ACCESS_KEY_ID=KEY,
        AWS_SECRET_ACCESS_KEY=SECRET,
    )  # fmt: skip
    output = (told.stdout + told.stderr).decode()
    assert told.returncode != 0 and "s3://no-such-bucket/archive" in output and "Traceback" in output
    assert SECRET not in output and KEY not in output


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{PASSWORD}@bucket/pictures",
        f"ftp://user:{PASSWORD}@127.0.0.1/pictures",
        f"simplecache::sftp://user:{PASSWORD}@127.0.0.1:22/pictures",
    ],
)
def test_an_address_with_a_password_is_refused_without_repeating_it(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    archive = str(tmp_path / "archive")
    for command in (["run", url, archive], ["run", archive, url], ["benchmark", url], ["info", url], ["verify", url],
                    ["restore", url, archive], ["delete", url, "--key", "a"], ["train", url]):  # fmt: skip
        assert cli.run(command) == 2, command
        output = "".join(capfd.readouterr())
        assert "password" in output and PASSWORD not in output, command
    with pytest.raises(ValueError, match="password") as refused:
        PipelineParameters(source=url, archive="archive")
    assert PASSWORD not in str(refused.value)
    if url.startswith("s3://"):
        for opened in (Source.open, Archive.open, Archive.create):
            with pytest.raises(LatentpackError, match="password") as error:
                opened(url)
            assert PASSWORD not in str(error.value)


def test_prefect_can_refuse_such_a_parameter_before_it_stores_it():
    import jsonschema

    schema = PipelineParameters.model_json_schema()
    good = {"source": "s3://bucket/dir/a@2x", "archive": "/srv/me@home:x/archive"}
    jsonschema.validate(good, schema)
    for name in good:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | {name: f"s3://key:{PASSWORD}@bucket/a"}, schema)


def test_no_form_takes_a_password_anywhere():
    """But as the name of a picture, or a pattern of names, which may be anything."""
    import jsonschema

    secret = f"s3://key:{PASSWORD}@bucket/a"
    kinds = [
        one for one in vars(parameters).values() if isinstance(one, type) and issubclass(one, parameters.Parameters)
    ]
    needed = {"source": "a", "archive": "b", "destination": "c"}
    tried = 0
    for kind in kinds:
        base = {name: value for name, value in needed.items() if name in kind.model_fields}
        schema = kind.model_json_schema()
        for name in set(kind.model_fields) - {"key", "pattern"}:
            for value in (secret, [secret]):
                with pytest.raises(ValueError):
                    kind(**base | {name: value})
                tried += 1
                try:
                    jsonschema.validate(base | {name: value}, schema)
                except jsonschema.ValidationError:
                    continue
                assert "local path" in str(_refusal(kind, base | {name: value})), f"{kind.__name__}.{name} is stored"
    assert tried > 100


def _refusal(kind: type, given: dict[str, object]) -> Exception:
    with pytest.raises(ValueError) as refused:
        kind(**given)
    return refused.value


def test_names_of_runs_leave_queries_out():
    assert PipelineParameters(source="https://host/a?sig=b", archive="c").subject == "https://host/a"
    assert parameters.VerifyParameters(archive="s3://bucket/a").subject == "s3://bucket/a"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("http://user@host/x?sig=abc", "http://host/x"),
        ('no way to "http://host/x?a=b&c=d"', 'no way to "http://host/x"'),
        ('no way to "http://host/x?a="b"&c=d" (yet)', 'no way to "http://host/x" (yet)'),
        ("s3://bucket/dir/a@2x.png", "s3://bucket/dir/a@2x.png"),
        ("http://host:8080/a@2x.png", "http://host:8080/a@2x.png"),
        ("cannot read ftp://u:p@h/x: denied", "cannot read ftp://h/x: denied"),
    ],
)
def test_what_is_shown_of_an_address(url: str, safe: str):
    assert shown(url) == safe
    assert has_password(url) == (":sec" in url or ":p@" in url)
