"""infra/terraform: its policies are enough for real work and for no more, on an S3 server that enforces them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import boto3
import hcl2
import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from compressor.archive import Archive
from compressor.errors import ArchiveError, SourceError
from compressor.parquet import QuarantineRow, Row
from compressor.picture_writing import encode_picture
from compressor.repairing import repair
from compressor.sources import Source
from tests.conftest import free_port
from tests.rows import face_key, picture_row

ROOT = Path(__file__).parent.parent
TERRAFORM = ROOT / "infra" / "terraform"
ROLES = {
    "reader": ["archive_reader"],
    "writer": ["archive_writer", "source_reader", "destination_writer"],
    "maintainer": ["archive_maintainer"],
}
KEYS = {"reader": ["key_reader"], "writer": ["key_user"], "maintainer": ["key_user"]}  # where a KMS key is named
ARNS = {name: f"arn:aws:s3:::{name}" for name in ("archive", "source", "destination")}
KEY = "arn:aws:kms:us-east-1:123456789012:key/1"


def _policy(name: str) -> dict[str, Any]:
    text = (TERRAFORM / "policies" / f"{name}.json").read_text()
    return json.loads(
        Template(text).substitute(ARNS, key=KEY, provider_arn="arn", provider="host", namespace="n", account="a")
    )


@dataclass
class Server:
    """An S3 server with the buckets ``source``, ``archive`` and ``destination``, and a user for each role."""

    url: str
    log: Path
    keys: dict[str, tuple[str, str]]

    def environment(self, role: str) -> dict[str, str]:
        key, secret = self.keys[role]
        return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": self.url}

    def archive(self, role: str) -> Archive:
        return Archive.open("s3://archive/faces", self.environment(role))

    def source(self, role: str, bucket: str = "source") -> Source:
        key, secret = self.keys[role]
        return Source.open(f"s3://{bucket}/a", {"key": key, "secret": secret, "endpoint_url": self.url})

    def asked(self, role: str) -> list[tuple[str, str, bool]]:
        """Action, resource and whether it was permitted."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [(action, resource, ok) for key, action, resource, ok in lines if key == self.keys[role][0]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("s3") / "asked"
    log.touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.enforcing_s3", str(port), str(log)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended at its start"
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ALLOW_HTTP", "true")
            yield Server(url, log, _set_up(url))
    finally:
        process.terminate()
        process.wait(10)


def _set_up(url: str) -> dict[str, tuple[str, str]]:
    admin = {"endpoint_url": url, "aws_access_key_id": "test", "aws_secret_access_key": "test"}
    s3, iam = boto3.client("s3", **admin), boto3.client("iam", **admin)
    for bucket in ARNS:
        s3.create_bucket(Bucket=bucket)
    s3.put_bucket_policy(Bucket="archive", Policy=json.dumps(_policy("bucket")))
    stored = json.loads(s3.get_bucket_policy(Bucket="archive")["Policy"])
    assert stored == _policy("bucket")
    # moto answers every condition with "denied", also to those who come by TLS: the rest of this module is without it
    s3.delete_bucket_policy(Bucket="archive")
    picture = encode_picture(np.full((16, 16, 3), 90, np.uint8), 3, "png")
    for name in ("one.png", "two.png"):
        s3.put_object(Bucket="source", Key=f"a/{name}", Body=picture)
    keys = {}
    for role, policies in ROLES.items():
        iam.create_user(UserName=role)
        for name in policies:
            iam.put_user_policy(UserName=role, PolicyName=name, PolicyDocument=json.dumps(_policy(name)))
        made = iam.create_access_key(UserName=role)["AccessKey"]
        keys[role] = made["AccessKeyId"], made["SecretAccessKey"]
    begin = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(begin).close()
    return keys


def _rows(count: int, seed: int = 0) -> list[Row]:
    return [picture_row(face_key(number), seed) for number in range(count)]


def _restore(server: Server, role: str, archive: str, patch: pytest.MonkeyPatch) -> None:
    """Twice, since what is there already is read."""
    for name, value in server.environment(role).items():
        patch.setenv(name, value)
    for _ in range(2):
        assert Archive.open(archive).restore("s3://destination/pictures").written == 2


def test_each_role_can_do_its_work_and_needs_every_action_that_it_has(server: Server, monkeypatch: pytest.MonkeyPatch):
    # The writer: reads pictures, adds rows, replaces one, quarantines.
    source = server.source("writer")
    assert all(isinstance(data, bytes) for data in source.read([file.path for file in source.files()]))
    archive = Archive.create("s3://archive/faces", server.environment("writer"))
    archive.commit([archive.write_part(_rows(40))], batch_id="1")
    archive.commit([archive.write_part(_rows(10, seed=1))], [face_key(n) for n in range(10)], batch_id="2")
    archive.quarantine([QuarantineRow.now("bad.png", bytes(8), "corrupt", "no picture", "run")])
    assert archive.clear_quarantine(["bad.png"]) == 1
    # It repairs, too: what a row no longer is leaves the table, and its file stays until the maintainer vacuums.
    damaged = Archive.create("s3://archive/damaged", server.environment("writer"))
    damaged.commit([damaged.write_part(_rows(3))])
    [part] = damaged.tables[0].parts
    data = bytearray(damaged._store.get(f"images/{part.path}"))
    data[data.index(damaged.read_row(face_key(1)).payload) + 9] ^= 1
    damaged._store.put(f"images/{part.path}", bytes(data))
    assert len(repair(damaged, drop=True).taken_out) == 1
    # What it writes elsewhere: restored pictures, as reports and codecs by the same means.
    small = Archive.create("s3://archive/small", server.environment("writer"))
    small.commit([small.write_part(_rows(2))])
    _restore(server, "writer", small.url, monkeypatch)
    # A log that is older than its retention is cut off by whoever commits: after a week, the writer.
    for number in range(4):
        write_deltalake(
            "s3://archive/log",
            pa.table({"n": [number]}),
            mode="append",
            storage_options=server.environment("writer"),
            configuration={"delta.checkpointInterval": "2", "delta.logRetentionDuration": "interval 0 seconds"},
        )
    # The reader: everything that only looks.
    reader = server.archive("reader")
    assert len(list(reader.keys())) == 40 and reader.read(face_key(1)).shape == (24, 32, 3)
    assert reader.verify() == [] and reader.info().pictures == 40
    # The maintainer: erases, compacts, vacuums.
    maintainer = server.archive("maintainer")
    assert maintainer.delete([face_key(3)]) == 1
    maintainer.compact()
    maintainer.vacuum(0)
    assert len(server.archive("reader")) == 39

    for role, policies in ROLES.items():
        asked = server.asked(role)
        assert all(permitted for _, _, permitted in asked), role
        granted = {(action, resource) for policy in policies for action, resource in _granted(_policy(policy))}
        unused = {
            (action, resource)
            for action, resource in granted
            if not any(did == action and _matches(resource, what) for did, what, _ in asked)
        }
        # An upload in parts is for objects of more than 100 MB, which this test does not write.
        unused = {(action, resource) for action, resource in unused if action != "s3:AbortMultipartUpload"}
        assert not unused, f"{role} has rights that it does not use"


def test_restoring_into_a_bucket_takes_three_rights_there_and_no_other(server: Server, monkeypatch: pytest.MonkeyPatch):
    archive = Archive.create("s3://archive/restored", server.environment("writer"))
    archive.commit([archive.write_part(_rows(2))])
    _restore(server, "writer", archive.url, monkeypatch)
    asked = {action for action, where, ok in server.asked("writer") if ok and ":::destination" in where}
    assert asked == {action for action, _ in _granted(_policy("destination_writer"))}
    for role in ("reader", "maintainer"):
        with pytest.raises(ArchiveError, match="check the credentials"):
            _restore(server, role, archive.url, monkeypatch)
    guide = (ROOT / "docs" / "operations.md").read_text()
    [line] = re.findall(r"^- \*\*Other files in a bucket\*\*.*$", guide, re.M)
    assert set(re.findall(r"s3:\w+", line)) == asked


def _granted(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for statement in policy["Statement"]:
        actions, resources = (
            [one] if isinstance(one, str) else one for one in (statement["Action"], statement["Resource"])
        )
        yield from ((action, resource) for action in actions for resource in resources)


def _matches(pattern: str, resource: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), resource) is not None


def test_nobody_can_do_more(server: Server):
    Archive.open_or_create("s3://archive/faces", server.environment("writer"))
    with pytest.raises(ArchiveError, match=r"(?i)denied|forbidden|permission"):
        server.archive("reader").commit([server.archive("reader").write_part(_rows(1))])
    with pytest.raises(PermissionError):
        server.archive("writer")._store.delete(["latentpack.json"])
    for role in ("reader", "maintainer"):
        with pytest.raises(SourceError, match=r"(?i)denied|forbidden|permission"):
            list(server.source(role).files())
    # The source is never written, whatever the code does
    s3 = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.keys["writer"][0],
        aws_secret_access_key=server.keys["writer"][1],
    )
    for act in (s3.put_object, s3.delete_object):
        with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
            act(Bucket="source", Key="a/one.png")


def test_the_compose_files_user_may_do_what_writer_and_maintainer_may():
    """Its jobs are all one user, of the two policies that set_up_s3.sh names."""
    script = (ROOT / "infra" / "set_up_s3.sh").read_text()
    [names] = re.findall(r"^for policy in (.+); do$", script, re.M)
    may = [one for name in names.split() for one in _granted(_policy(name))]
    roles = {*ROLES["writer"], *ROLES["maintainer"]} - {"destination_writer"}  # it restores beside its archives
    needed = [one for name in roles for one in _granted(_policy(name))]
    for action, resource in needed:
        assert any(action == allowed and _matches(where, resource) for allowed, where in may), (action, resource)
    assert set(may) <= set(needed)


def test_no_policy_is_wider_than_s3_objects_of_its_bucket():
    for name in {policy for policies in ROLES.values() for policy in policies}:
        for action, resource in _granted(_policy(name)):
            assert re.fullmatch(r"s3:(?:Get|Put|Delete)Object|s3:ListBucket|s3:AbortMultipartUpload", action), name
            assert resource.startswith(ARNS[name.partition("_")[0]]), name
    [tls] = _policy("bucket")["Statement"]
    assert (tls["Effect"], tls["Principal"], tls["Action"]) == ("Deny", "*", "s3:*")
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    [trust] = _policy("trust")["Statement"]
    assert set(trust["Condition"]) == {"StringEquals"}, "one service account, not any of the cluster"


def test_who_has_a_keys_use_has_it_by_way_of_s3_and_who_writes_may_encrypt():
    for role, (name,) in KEYS.items():
        [statement] = _policy(name)["Statement"]
        assert statement["Resource"] == KEY and statement["Condition"] == {"StringLike": {"kms:ViaService": "s3.*"}}
        puts = any(action == "s3:PutObject" for policy in ROLES[role] for action, _ in _granted(_policy(policy)))
        actions = {action for action, _ in _granted(_policy(name))}
        assert actions == {"kms:Decrypt"} | ({"kms:GenerateDataKey"} if puts else set()), role


def test_operations_guide_lists_the_actions_of_the_policies():
    guide = (ROOT / "docs" / "operations.md").read_text()
    for role, policies in ROLES.items():
        [row] = re.findall(rf"^\| {role} \|.*$", guide, re.M)
        actions = {action for policy in policies for action, _ in _granted(_policy(policy))}
        assert set(re.findall(r"s3:\w+", row)) == actions, role


# ---- Terraform


def _terraform() -> dict[str, Any]:
    merged: dict[str, list[Any]] = {}
    for path in sorted(TERRAFORM.glob("*.tf")):
        with path.open() as file:
            for kind, blocks in hcl2.load(file).items():
                merged.setdefault(kind, []).extend(blocks)
    return merged


def _resources(kind: str) -> list[dict[str, Any]]:
    return [
        body
        for block in _terraform()["resource"]
        for name, bodies in block.items()
        if name.strip('"') == kind
        for body in bodies.values()
    ]


def test_terraform_makes_a_closed_versioned_encrypted_bucket_that_forgets():
    [blocked] = _resources("aws_s3_bucket_public_access_block")
    switches = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert all(blocked[name] is True for name in switches)
    [versioning] = _resources("aws_s3_bucket_versioning")
    assert versioning["versioning_configuration"][0]["status"].strip('"') == "Enabled"
    [encryption] = _resources("aws_s3_bucket_server_side_encryption_configuration")
    assert "AES256" in json.dumps(encryption)
    [lifecycle] = _resources("aws_s3_bucket_lifecycle_configuration")
    rules = {rule["id"].strip('"'): rule for rule in lifecycle["rule"]}
    forget = rules["forget-what-was-deleted"]
    assert "erasure_days" in str(forget["noncurrent_version_expiration"][0]["noncurrent_days"])
    assert rules["abort-unfinished-uploads"]["abort_incomplete_multipart_upload"][0]["days_after_initiation"] == 1
    assert all(rule["status"].strip('"') == "Enabled" for rule in rules.values())


def test_terraform_uses_every_policy_and_declares_every_variable():
    text = "\n".join(path.read_text() for path in sorted(TERRAFORM.glob("*.tf")))
    declared = {name.strip('"') for block in _terraform()["variable"] for name in block if not name.startswith("__")}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
    roles = re.search(r"roles = \{(.*?)\n  \}", text, re.S)
    assert roles
    roles_policies = {role: ROLES[role] + KEYS[role] for role in ROLES}
    for role, policies in roles_policies.items():
        line = next(line for line in roles[1].splitlines() if line.strip().startswith(role))
        assert re.findall(r'"(\w+)"', line)[1:] == policies or re.findall(r'"(\w+_\w+)"', line) == policies, role
    written = {path.stem for path in (TERRAFORM / "policies").glob("*.json")}
    assert written == {policy for policies in roles_policies.values() for policy in policies} | {"bucket", "trust"}
