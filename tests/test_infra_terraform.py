"""infra/terraform against the schemas of the AWS provider, and by Terraform itself where it is installed.

The provider comes from a registry, and planning with it needs an account. Its schemas alone are in
fixtures/terraform, in the format of ``terraform providers schema -json``: of version 6.25.0, for the types in use, read
from the classes that CDK for Terraform publishes of them (npm: @cdktf/provider-aws 21.22.1).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2
import pytest

ROOT = Path(__file__).parent.parent
TERRAFORM = ROOT / "infra" / "terraform"
SCHEMAS = Path(__file__).parent / "fixtures" / "terraform" / "aws-6.25.0.json"
META = {"__is_block__", "count", "depends_on", "for_each", "lifecycle", "provider"}  # of every resource
QUOTE = '"'
POLICIES = ("archive_maintainer", "archive_reader", "archive_writer", "source_reader")
KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
CLUSTER = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/id/ABC"

needs_terraform = pytest.mark.skipif(not shutil.which("terraform"), reason="needs terraform")


def _misuses(body: dict[str, Any], block: dict[str, Any]) -> Iterator[str]:
    """Names in a resource's body that its schema does not know or let be set, and those that it lacks."""
    attributes, blocks = block["attributes"], block.get("block_types", {})
    for name, value in body.items():
        if name in blocks:
            for inner in value:
                yield from (f"{name}.{misuse}" for misuse in _misuses(inner, blocks[name]["block"]))
        elif name not in META and not {"required", "optional"} & attributes.get(name, {}).keys():
            yield name
    needed = [name for name, one in attributes.items() if one.get("required")]
    needed += [name for name, one in blocks.items() if one.get("min_items")]
    yield from (f"no {name}" for name in needed if name not in body)


def _found(text: str) -> list[str]:
    [provider] = json.loads(SCHEMAS.read_text())["provider_schemas"].values()
    return [
        f"{kind.strip(QUOTE)}: {misuse}"
        for block in hcl2.loads(text)["resource"]
        for kind, named in block.items()
        for body in named.values()
        for misuse in _misuses(body, provider["resource_schemas"][kind.strip(QUOTE)]["block"])
    ]


def test_every_argument_is_one_that_the_provider_knows():
    assert _found((TERRAFORM / "main.tf").read_text()) == []


WRONG = [
    ("restrict_public_buckets = true", "restrict_public_bucket = true", "aws_s3_bucket_public_access_block"),
    ("sse_algorithm     =", "algorithm =", "aws_s3_bucket_server_side_encryption_configuration"),
    ("policy_arn =", "arn =", "aws_iam_role_policy_attachment"),
    ("versioning_configuration {", "versioning {", "aws_s3_bucket_versioning"),
    ("tags   = var.tags", "arn = var.tags", "aws_s3_bucket"),
]


@pytest.mark.parametrize(("right", "wrong", "kind"), WRONG)
def test_an_argument_that_the_provider_does_not_know_is_found(right: str, wrong: str, kind: str):
    text = (TERRAFORM / "main.tf").read_text()
    assert text.count(right) == 1
    found = _found(text.replace(right, wrong))
    assert found and all(one.startswith(f"{kind}: ") for one in found)


# ---- Terraform itself


@dataclass
class Terraform:
    """A copy of infra/terraform, and Terraform with a provider of the schemas."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["terraform", *command], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def plan(self, **variables: str) -> dict[str, Any]:
        given = [f"-var={name}={value}" for name, value in variables.items()]
        done = self("plan", "-input=false", "-no-color", "-out=planned", *given)
        if done.returncode:
            raise ValueError(done.stderr)
        return dict(json.loads(self("show", "-json", "planned").stdout))


@pytest.fixture
def terraform(tmp_path: Path) -> Terraform:
    provider = tmp_path / "terraform-provider-aws"
    command = shlex.join([sys.executable, "-m", "tests.terraform_provider", str(SCHEMAS)])
    provider.write_text(f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {command}\n")
    provider.chmod(0o755)
    settings = tmp_path / "settings.tfrc"
    settings.write_text(f'provider_installation {{\n  dev_overrides {{\n    "hashicorp/aws" = "{tmp_path}"\n  }}\n}}\n')
    folder = tmp_path / "terraform"
    shutil.copytree(TERRAFORM, folder, ignore=shutil.ignore_patterns(".terraform*"))
    environment = os.environ | {"HOME": str(tmp_path), "TF_CLI_CONFIG_FILE": str(settings), "CHECKPOINT_DISABLE": "1"}
    return Terraform(folder, environment)


@needs_terraform
def test_terraform_finds_it_valid_and_well_formatted(terraform: Terraform):
    done = terraform("validate", "-json")
    assert json.loads(done.stdout)["error_count"] == 0, done.stdout
    assert terraform("fmt", "-check", "-diff").stdout == ""


@needs_terraform
@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("restrict_public_buckets", "restrict_public_bucket", "Unsupported argument"),
        ("aws_s3_bucket.archive.arn", "aws_s3_bucket.archive.urn", "Unsupported attribute"),
        ("days_after_initiation = 1", "days_after_initiation = []", "number required"),
    ],
)
def test_terraform_refuses_what_the_provider_would(terraform: Terraform, right: str, wrong: str, says: str):
    main = terraform.folder / "main.tf"
    main.write_text(main.read_text().replace(right, wrong))
    done = terraform("validate", "-json")
    assert done.returncode == 1
    assert says in done.stdout


@needs_terraform
def test_plan_makes_a_bucket_its_policies_and_roles_for_service_accounts(terraform: Terraform):
    plan = terraform.plan(archive_bucket="faces", source_bucket="pictures", oidc_provider_arn=CLUSTER)
    made = {one["address"]: one["change"]["after"] for one in plan["resource_changes"]}
    policies = {name for name in made if name.startswith("aws_iam_policy.")}
    assert policies == {f'aws_iam_policy.grant["{name}"]' for name in POLICIES}
    for policy in policies:
        json.loads(made[policy]["policy"])
        bucket = "pictures" if "source" in policy else "faces"
        assert {arn.partition("/")[0] for arn in re.findall(r"arn:[^\"]+", made[policy]["policy"])} == {
            f"arn:aws:s3:::{bucket}"
        }
    accounts = {}
    for role in ("reader", "writer", "maintainer"):
        [statement] = json.loads(made[f'aws_iam_role.role["{role}"]']["assume_role_policy"])["Statement"]
        assert statement["Principal"] == {"Federated": CLUSTER}
        accounts[role] = statement["Condition"]["StringEquals"]["oidc.example.com/id/ABC:sub"]
    assert accounts["writer"] == "system:serviceaccount:latentpack:latentpack-runs"
    assert len(set(accounts.values())) == len(accounts)
    [[encrypted]] = [
        one["apply_server_side_encryption_by_default"]
        for one in made["aws_s3_bucket_server_side_encryption_configuration.archive"]["rule"]
    ]
    assert encrypted == {"sse_algorithm": "AES256", "kms_master_key_id": None}
    rules = {one["id"]: one for one in made["aws_s3_bucket_lifecycle_configuration.archive"]["rule"]}
    assert rules["forget-what-was-deleted"]["noncurrent_version_expiration"][0]["noncurrent_days"] == 14
    assert plan["planned_values"]["outputs"]["archive"]["value"] == "s3://faces"


@needs_terraform
def test_runs_and_nobody_else_may_write_to_a_destination_that_is_named(terraform: Terraform):
    plan = terraform.plan(
        archive_bucket="faces", source_bucket="pictures", destination_bucket="restored", oidc_provider_arn=CLUSTER
    )
    made = {one["address"]: one["change"]["after"] for one in plan["resource_changes"]}
    policy = made['aws_iam_policy.grant["destination_writer"]']["policy"]
    assert set(re.findall(r"arn:[^\"]+", policy)) == {"arn:aws:s3:::restored", "arn:aws:s3:::restored/*"}
    attached = [name for name in made if name.startswith("aws_iam_role_policy_attachment") and "destination" in name]
    assert attached == ['aws_iam_role_policy_attachment.grant["writer-destination_writer"]']
    assert not [name for name in made if name.startswith("aws_s3") and "restored" in json.dumps(made[name])]


@needs_terraform
def test_a_key_that_is_named_encrypts_the_bucket_and_every_role_may_use_it(terraform: Terraform):
    plan = terraform.plan(archive_bucket="faces", source_bucket="pictures", kms_key_arn=KEY, oidc_provider_arn=CLUSTER)
    made = {one["address"]: one["change"]["after"] for one in plan["resource_changes"]}
    [rule] = made["aws_s3_bucket_server_side_encryption_configuration.archive"]["rule"]
    assert rule["apply_server_side_encryption_by_default"] == [{"sse_algorithm": "aws:kms", "kms_master_key_id": KEY}]
    assert rule["bucket_key_enabled"] is True
    for policy in ("key_reader", "key_user"):
        assert set(re.findall(r"arn:[^\"]+", made[f'aws_iam_policy.grant["{policy}"]']["policy"])) == {KEY}
    attached = {
        name.split('"')[1] for name in made if name.startswith("aws_iam_role_policy_attachment") and "key" in name
    }
    assert attached == {"reader-key_reader", "writer-key_user", "maintainer-key_user"}


@needs_terraform
def test_roles_of_a_bucket_of_the_longest_name_have_names_that_aws_takes(terraform: Terraform):
    plan = terraform.plan(archive_bucket="a" * 63, source_bucket="pictures", oidc_provider_arn=CLUSTER)
    names = [one["change"]["after"]["name"] for one in plan["resource_changes"] if one["type"] == "aws_iam_role"]
    assert len(set(names)) == 3 and all(len(name) <= 64 for name in names)


@needs_terraform
def test_plan_without_a_cluster_makes_no_roles(terraform: Terraform):
    plan = terraform.plan(archive_bucket="faces", source_bucket="pictures")
    kinds = [one["type"] for one in plan["resource_changes"]]
    assert "aws_iam_role" not in kinds and "aws_iam_role_policy_attachment" not in kinds
    assert kinds.count("aws_iam_policy") == len(POLICIES)


@needs_terraform
@pytest.mark.parametrize(("variable", "value"), [
    ("erasure_days", "0"), ("archive_bucket", "Not_A_Bucket"),
    ("source_bucket", "s3://pictures"), ("destination_bucket", "restored/pictures"),
    ("kms_key_arn", "arn:aws:kms:eu-west-1:123456789012:alias/archive"),
])  # fmt: skip
def test_a_bad_variable_is_refused_before_anything_is_made(terraform: Terraform, variable: str, value: str):
    given = {"archive_bucket": "faces", "source_bucket": "pictures", variable: value}
    with pytest.raises(ValueError, match="Invalid value for variable"):
        terraform.plan(**given)
