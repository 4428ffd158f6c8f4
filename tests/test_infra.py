"""infra: each file is valid by the schema that its tool publishes, and keeps what infra/README.md promises of it."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import prefect.server.api.collections_data as collections
import pytest
import yaml
from prefect.utilities.templating import apply_values

from flows.dispatch import KEPT_BYTES

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
KUSTOMIZATIONS = ["base", "overlays/gpu", "overlays/external-database", "overlays/aws-role", "overlays/dask-operator"]
KUBERNETES = "1.34"
SECRET = re.compile(r"(PASSWORD|SECRET|AUTH_STRING|TOKEN|ACCESS_KEY|ROOT_USER)(?!.*_(FILE|NAME|KEY)$)")


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)


# ---- images


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path):
    linted = _run(BIN / "hadolint", INFRA / "Dockerfile")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    bad = tmp_path / "Dockerfile"
    bad.write_text(re.sub(r"python:\S+ AS wheel", "python AS wheel", (INFRA / "Dockerfile").read_text()))
    assert _run(BIN / "hadolint", bad).returncode == 1, "the check itself works"


def test_images_are_pinned_unprivileged_and_of_two_builds_of_one_torch():
    instructions = _instructions()
    stages = [words for name, words in instructions if name == "FROM"]
    names = {words.split(" AS ")[1] for words in stages}
    outside = {words.split(" AS ")[0] for words in stages} - names
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image) for image in outside), outside
    assert {"cpu", "gpu"} <= names and stages[-1].endswith(" AS cpu"), "cpu is what is built where no target is named"
    assert [words for name, words in instructions if name == "USER"] == ["10001:10001"]
    assert any(name == "HEALTHCHECK" for name, _ in instructions)
    installs = [words for name, words in instructions if name == "RUN" and "pip install" in words]
    assert all("--constraint /tmp/constraints.txt" in words or "==" in words for words in installs)
    assert sum("whl/cpu" in words for words in installs) == 1
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.M)


def test_the_build_context_holds_what_is_copied_and_no_more():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = {
        source
        for name, words in _instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    }
    assert {source.removeprefix("./") for source in copied} == kept
    assert all((ROOT / path).exists() for path in kept)


def test_images_and_wheel_are_named_by_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    files = [path for path in INFRA.rglob("*") if path.name == "Dockerfile" or path.suffix in (".yaml", ".json")]
    named = re.compile(r"(?:latentpack:|newTag: |latentpack-)(\d[\w.]*)")
    found = {
        (path.name, tag)
        for path in [*files, ROOT / "docs" / "operations.md"]
        for tag in named.findall(path.read_text())
    }
    assert {tag for _, tag in found} == {version}, found
    assert {name for name, _ in found} > {"Dockerfile", "compose.yaml", "job_template.json", "kustomization.yaml"}


@pytest.mark.parametrize("script", sorted(INFRA.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path):
    assert script.stat().st_mode & 0o111
    assert _run("sh", "-n", script).returncode == 0


def test_the_entrypoint_reads_secrets_from_files_and_keeps_arguments(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("admin:a b$c")
    code = "import os, sys; print(os.environ['PREFECT_API_AUTH_STRING'], sys.argv[1:], 'F' in os.environ)"
    told = subprocess.run(
        [INFRA / "entrypoint.sh", sys.executable, "-c", code, "one two"],
        env={"PATH": "/usr/bin:/bin", "PREFECT_API_AUTH_STRING_FILE": str(secret)},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "admin:a b$c ['one two'] False\n", told.stderr
    missing = subprocess.run(
        [INFRA / "entrypoint.sh", "true"],
        env={"PATH": "/usr/bin:/bin", "PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "none")},
        capture_output=True,
    )
    assert missing.returncode != 0, "a service must not start without its secret"


def test_secrets_are_made_once_and_differ(tmp_path: Path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        script = shutil.copy(INFRA / "make_secrets.sh", tmp_path / name)
        assert _run("sh", script).returncode == 0
        made.append({path.name: path.read_text() for path in (tmp_path / name / "secrets").iterdir()})
        assert _run("sh", script).returncode == 0
        assert {path.name: path.read_text() for path in (tmp_path / name / "secrets").iterdir()} == made[-1]
    assert (tmp_path / "one" / "secrets").stat().st_mode & 0o777 == 0o700
    assert made[0].keys() == set(_compose()["secrets"]) and all(made[0][name] != made[1][name] for name in made[0])
    assert "/infra/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# ---- compose


def _compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def test_compose_takes_the_file_as_valid(tmp_path: Path):
    good = _run(BIN / "docker-compose", "--file", INFRA / "compose.yaml", "--profile", "gpu", "config", "--quiet")
    assert good.returncode == 0, good.stderr
    bad = tmp_path / "compose.yaml"
    bad.write_text((INFRA / "compose.yaml").read_text().replace("healthcheck:", "healthchek:"))
    assert _run(BIN / "docker-compose", "--file", bad, "config", "--quiet").returncode != 0, "the check itself works"


def test_compose_listens_on_loopback_holds_no_credential_and_limits_everything():
    compose = _compose()
    services = compose["services"]
    assert set(services) == {
        "postgres", "prefect", "scheduler", "dask", "dask-gpu", "s3", "s3-init", "init", "worker",
    }  # fmt: skip
    for name, one in services.items():
        assert ":" in one["image"] and not one["image"].endswith(":latest"), name
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
        assert one["cap_drop"] == ["ALL"] and one["security_opt"] == ["no-new-privileges:true"], name
        limits = one["deploy"]["resources"]["limits"]
        assert {"cpus", "memory"} <= set(limits), name
        if one["image"].startswith("latentpack:"):
            assert one["read_only"] is True, name
        assert not [variable for variable in one.get("environment", {}) if SECRET.search(variable)], name
        assert set(one.get("secrets", [])) <= set(compose["secrets"]), name
        files = [value for value in one.get("environment", {}).values() if value.startswith("/run/secrets/")]
        assert {value.rsplit("/", 1)[1] for value in files} == set(one.get("secrets", [])), name
    # What runs for long says whether it is well: by its own check, or by the image's, which asks HEALTH_URL
    for name, one in services.items():
        assert name in ("init", "s3-init") or "healthcheck" in one or "HEALTH_URL" in one["environment"], name
    assert all(set(one) == {"file"} for one in compose["secrets"].values())
    assert "postgresql" in services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_DRIVER"]
    done = {"condition": "service_completed_successfully"}
    assert services["worker"]["depends_on"] == {"init": done, "s3-init": done}
    assert services["dask"]["depends_on"]["s3-init"] == services["dask-gpu"]["depends_on"]["s3-init"] == done


MC = """#!/bin/sh
echo "$@" >> "$TOLD"
case "$*" in
    "admin user add store") cat > "$TOLD.user" ;;
    "admin user info store "*) cat "$TOLD.has" ;;
    "admin policy create store "*) cp "$6" "$TOLD.$5.json" ;;
esac
"""


def test_only_one_step_is_root_of_the_s3_server_and_jobs_are_its_user(tmp_path: Path):
    services = _compose()["services"]
    root = {name for name, one in services.items() if any("s3_root" in secret for secret in one.get("secrets", []))}
    assert root == {"s3", "s3-init"}
    step = services["s3-init"]
    mounts = {one["source"]: one["target"] for one in step["configs"]}
    files = {name: one["file"] for name, one in _compose()["configs"].items()}
    assert {target: INFRA / files[name] for name, target in mounts.items()} == {
        target: INFRA / Path(target).relative_to("/infra") for target in mounts.values()
    }, "files lie as they do here"
    assert step["entrypoint"][1] in mounts.values() and step["image"] == services["s3"]["image"]

    # The step itself, with a client that writes down what it is told
    client = tmp_path / "bin" / "mc"
    client.parent.mkdir()
    client.write_text(MC)
    client.chmod(0o755)
    environment = {"PATH": f"{client.parent}:/usr/bin:/bin", "TOLD": str(tmp_path / "told"), "TMPDIR": str(tmp_path)}
    for name, value in step["environment"].items():
        secret = tmp_path / value.rsplit("/", 1)[1]
        secret.write_text(f"value-of-{secret.name}")
        environment[name] = str(secret)
    attached = []
    for has in ("", "PolicyName: source_reader,archive_maintainer"):
        (tmp_path / "told").unlink(missing_ok=True)
        (tmp_path / "told.has").write_text(has)
        subprocess.run([INFRA / "set_up_s3.sh"], env=environment, check=True, cwd="/")
        told = (tmp_path / "told").read_text()
        assert "password" not in told, "what is on a command line, others see"
        assert "mb --ignore-existing store/pictures store/latentpack\n" in told
        attached.append(re.findall(r"policy attach store (\w+) --user value-of-s3_user\n", told))
    assert attached == [["source_reader", "archive_maintainer"], []], "twice would be an error"
    assert (tmp_path / "told.user").read_text() == "value-of-s3_user\nvalue-of-s3_password\n"
    for policy, bucket in (("source_reader", "pictures"), ("archive_maintainer", "latentpack")):
        template = (INFRA / "terraform" / "policies" / f"{policy}.json").read_text()
        made = (tmp_path / f"told.{policy}.json").read_text()
        arn = f"arn:aws:s3:::{bucket}"
        assert json.loads(made) == json.loads(re.sub(r"\$\{\w+\}", arn, template))


# ---- Kubernetes


def _built(name: str) -> list[dict[str, Any]]:
    made = _run(BIN / "kubectl", "kustomize", INFRA / "kubernetes" / name)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def _as_the_operator_makes_it(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Scheduler, service and one worker, by the Dask operator's own functions."""
    from dask_kubernetes.operator.controller import controller as operator  # seconds, for each process that collects

    name, spec = cluster["metadata"]["name"], cluster["spec"]
    of_scheduler = {}, spec["scheduler"]["metadata"]["labels"]
    of_worker = {}, spec["worker"]["metadata"]["labels"]
    made = [
        operator.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], *of_scheduler),
        operator.build_scheduler_service_spec(name, spec["scheduler"]["service"], *of_scheduler),
        operator.build_worker_deployment_spec(
            f"{name}-default", "latentpack", name, "0", spec["worker"]["spec"], *of_worker
        ),
    ]
    for one in made:
        one["metadata"] = {**one["metadata"], "namespace": "latentpack"}
    return made


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[dict[str, Any]]]:
    """What each kustomization makes, and what the Dask operator makes of that."""
    built = {}
    for name in KUSTOMIZATIONS:
        resources = _built(name)
        built[name] = [one for one in resources if not one["apiVersion"].startswith("kubernetes.dask.org/")]
        for one in resources:
            if one["kind"] == "DaskCluster":
                built[name] += _as_the_operator_makes_it(one)
    return built


def _job(template: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The Job that Prefect's worker makes of the template where a deployment says nothing."""
    variables = template["variables"]["properties"]
    values = {name: field["default"] for name, field in variables.items() if "default" in field}
    values |= {"name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {}, **given}
    job = apply_values(template["job_configuration"], values, remove_notset=True)["job_manifest"]
    for container in job["spec"]["template"]["spec"]["containers"]:  # the worker turns the mapping into a list, too
        container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    return job


def _template() -> dict[str, Any]:
    return json.loads((INFRA / "kubernetes" / "base" / "job_template.json").read_text())


def _pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod template of each workload, its claims among the volumes."""
    for one in documents:
        if "template" in one.get("spec", {}):
            claims = [claim["metadata"] for claim in one["spec"].get("volumeClaimTemplates", [])]
            one["spec"]["template"]["spec"].setdefault("volumes", []).extend(claims)
            yield one["metadata"].get("name", "job"), one["spec"]["template"]


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_manifests_are_valid_by_the_published_schemas(manifests: dict[str, list[dict[str, Any]]], name: str):
    assert len(manifests[name]) > 15
    for one in manifests[name]:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
        if one["kind"] not in ("Namespace",):
            assert one["metadata"]["namespace"] == "latentpack", one["metadata"]["name"]
        assert one["kind"] != "Secret", "secrets are made by a person, not by a file"


def test_a_misspelt_field_is_refused(manifests: dict[str, list[dict[str, Any]]]):
    bad = json.loads(json.dumps(next(one for one in manifests["base"] if one["kind"] == "Deployment")))
    bad["spec"]["template"]["spec"]["containers"][0]["resorces"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, KUBERNETES, strict=True)


def _closed(schema: Any) -> Any:
    """A schema under which a field that it does not name is a mistake, as for ``kubectl --validate=strict``."""
    if isinstance(schema, dict):
        closed = {key: _closed(value) for key, value in schema.items()}
        return {"additionalProperties": False, **closed} if isinstance(schema.get("properties"), dict) else closed
    return [_closed(one) for one in schema] if isinstance(schema, list) else schema


def test_dask_clusters_are_valid_by_the_operators_schemas():
    package = find_spec("dask_kubernetes")
    assert package and package.origin
    folder = Path(package.origin).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"
    schemas = {}
    for path in folder.glob("*.yaml"):
        published = yaml.safe_load(path.read_text())["spec"]
        schemas[published["names"]["kind"]] = _closed(published["versions"][0]["schema"]["openAPIV3Schema"])
    resources = {one["kind"]: one for one in _built("overlays/dask-operator") if one["kind"].startswith("Dask")}
    assert set(resources) == {"DaskCluster", "DaskAutoscaler"}
    for kind, one in resources.items():
        jsonschema.validate({"spec": one["spec"]}, schemas[kind])
    bad = copy.deepcopy(resources["DaskCluster"])
    bad["spec"]["worker"]["spec"]["containers"][0]["resorces"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resorces"):
        jsonschema.validate({"spec": bad["spec"]}, schemas["DaskCluster"])
    assert resources["DaskAutoscaler"]["spec"]["cluster"] == resources["DaskCluster"]["metadata"]["name"]


def test_the_operators_cluster_takes_the_place_of_the_bases(manifests: dict[str, list[dict[str, Any]]]):
    base, kept = manifests["base"], manifests["overlays/dask-operator"]
    services = {one["metadata"]["name"]: one["spec"] for one in kept if one["kind"] == "Service"}
    assert services.keys() == {one["metadata"]["name"] for one in base if one["kind"] == "Service"}
    ports = {port["name"]: port["port"] for port in services["dask-scheduler"]["ports"]}
    assert ports["http-dashboard"] == 8787, "the name by which the operator looks for the scheduler's web API"
    pods = dict(_pods(copy.deepcopy(kept)))
    assert {"dask-scheduler", "dask-default-worker-0"} < set(pods) and "dask-worker" not in pods
    assert not [one for one in kept if one["kind"] == "HorizontalPodAutoscaler"]
    labels = pods["dask-scheduler"]["metadata"]["labels"]
    assert services["dask-scheduler"]["selector"].items() <= labels.items()
    (worker,) = pods["dask-default-worker-0"]["spec"]["containers"]
    assert worker["args"][-2:] == ["--name", "$(DASK_WORKER_NAME)"], "the operator retires workers by their names"
    assert "DASK_WORKER_NAME" in {entry["name"] for entry in worker["env"]}


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_pods_are_unprivileged_limited_and_probed(manifests: dict[str, list[dict[str, Any]]], name: str):
    pods = dict(_pods(copy.deepcopy([*manifests[name], _job(_template())])))
    assert len(pods) >= 5
    for pod, template in pods.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, pod
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert spec["automountServiceAccountToken"] is (pod == "prefect-worker"), pod
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], pod
            assert security["capabilities"] == {"drop": ["ALL"]}, pod
            assert re.search(r":[\w.-]+$", container["image"]) and not container["image"].endswith(":latest"), pod
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), pod
            assert "memory" in container["resources"]["limits"], pod
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, pod
            assert not [
                entry["name"]
                for entry in container.get("env", [])
                if SECRET.search(entry["name"]) and "value" in entry and not entry["value"].startswith("/run/secrets/")
            ], pod
        if pod != "job":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(spec["containers"][0]), pod


@pytest.mark.parametrize("name", ["overlays/gpu", "overlays/dask-operator"])
def test_selectors_and_network_policies_name_pods_that_exist(manifests: dict[str, list[dict[str, Any]]], name: str):
    documents = manifests[name]
    labels = [template["metadata"]["labels"] for _, template in _pods([*documents, _job(_template())])]

    def finds(selector: dict[str, Any]) -> bool:
        wanted = selector.get("matchLabels", {}).items()
        expressions = selector.get("matchExpressions", [])
        return any(
            wanted <= one.items() and all(one.get(rule["key"]) in rule["values"] for rule in expressions)
            for one in labels
        )

    policies = [one["spec"] for one in documents if one["kind"] == "NetworkPolicy"]
    assert any(not spec["podSelector"] and "ingress" not in spec and "egress" not in spec for spec in policies)
    for spec in policies:
        peers = [peer for rule in spec.get("ingress", []) for peer in rule["from"]]
        peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
        selectors = [spec["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
        assert all(finds(selector) for selector in selectors), spec
    for one in documents:
        if one["kind"] == "Service":
            assert finds({"matchLabels": one["spec"]["selector"]}), one["metadata"]["name"]


def test_gpu_workers_are_counted_by_themselves_and_declare_their_gpu(manifests: dict[str, list[dict[str, Any]]]):
    documents = manifests["overlays/gpu"]
    workloads = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "Deployment"}
    cpu, gpu = workloads["dask-worker"], workloads["dask-worker-gpu"]
    chosen = cpu["selector"]["matchLabels"].items()
    assert not chosen <= gpu["template"]["metadata"]["labels"].items(), "each Deployment counts its own pods"
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1" and container["image"] == "latentpack:0.1.0-gpu"
    assert "GPU=1" in container["args"]
    assert gpu["strategy"] == {"type": "Recreate"}, "an upgrade must not wait for a GPU that the old pod has"


def test_the_worker_may_make_jobs_and_nothing_else(manifests: dict[str, list[dict[str, Any]]]):
    kinds = {one["kind"] for one in manifests["base"]}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"}
    (role,) = [one for one in manifests["base"] if one["kind"] == "Role"]
    rights = {(group, kind, verb) for r in role["rules"] for group in r["apiGroups"] for kind in r["resources"]
              for verb in r["verbs"]}  # fmt: skip
    assert not [right for right in rights if "*" in right]
    changes = {right for right in rights if right[2] not in ("get", "list", "watch")}
    assert changes == {("batch", "jobs", "create"), ("batch", "jobs", "delete")}
    bound = [one["subjects"][0]["name"] for one in manifests["base"] if one["kind"] == "RoleBinding"]
    assert bound == ["latentpack-worker"], "runs have no rights in Kubernetes"


def test_the_job_template_is_one_that_prefects_worker_takes():
    template = _template()
    (metadata,) = Path(collections.__path__[0]).rglob("aggregate-worker-metadata.json")
    worker = json.loads(metadata.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    assert set(template["job_configuration"]) <= set(worker["job_configuration"])
    named = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert named == set(template["variables"]["properties"])
    kubernetes_validate.validate(_job(template), KUBERNETES, strict=True)


def test_what_runs_leave_may_lie_on_a_claim():
    claim = {"name": "kept", "persistentVolumeClaim": {"claimName": "latentpack"}}
    job = _job(_template(), kept=claim)
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]["spec"]
    assert claim in pod["volumes"]
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "kept"]
    deployments = yaml.safe_load((INFRA.parent / "prefect.yaml").read_text())["deployments"]
    given = [deployment["parameters"]["parameters"] for deployment in deployments]
    left = [one[name] for one in given for name in ("out", "report", "destination") if name in one]
    assert len(left) > 3 and all(path.startswith(f"{mount['mountPath']}/") for path in left)


def test_components_go_together(tmp_path: Path):
    shutil.copytree(INFRA / "kubernetes", tmp_path / "kubernetes")
    site = tmp_path / "kubernetes" / "site"
    site.mkdir()
    (example,) = re.findall(r"```yaml\n(.+?)```", (INFRA / "README.md").read_text(), re.S)
    (site / "kustomization.yaml").write_text(example)
    documents = _built(site)
    names = {one["metadata"]["name"] for one in documents if one["kind"] in ("Deployment", "StatefulSet")}
    assert "dask-worker-gpu" in names and "postgres" not in names
    assert any("annotations" in one["metadata"] for one in documents if one["kind"] == "ServiceAccount")


def test_only_maintenance_takes_the_keys_that_delete():
    def keys_of(job: dict[str, Any]) -> list[str]:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]

    given, accounts = {}, {}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        job = _job(_template(), **deployment["work_pool"]["job_variables"])
        given[deployment["name"]] = keys_of(job)
        accounts[deployment["name"]] = job["spec"]["template"]["spec"]["serviceAccountName"]
    assert given.pop("maintain-weekly") == ["latentpack-s3-maintenance"]
    assert set(map(tuple, given.values())) == {("latentpack-s3",)}
    # The accounts are those that Terraform lets take the roles: who restores, trains or reports is the writer.
    text = (INFRA / "terraform" / "main.tf").read_text()
    roles = dict(re.findall(r'^ +(\w+) += \{ account = "([\w-]+)"', text, re.M))
    assert accounts.pop("maintain-weekly") == roles["maintainer"]
    assert set(accounts.values()) == {roles["writer"]}


def test_the_server_reaches_whom_it_notifies_and_no_instances_credentials(manifests: dict[str, list[dict[str, Any]]]):
    for name in KUSTOMIZATIONS:
        policies = {one["metadata"]["name"]: one["spec"] for one in manifests[name] if one["kind"] == "NetworkPolicy"}
        ports = {rule["port"] for egress in policies["prefect"]["egress"] for rule in egress["ports"]}
        assert ports == {5432, 443, 587}, name
        blocks = [peer["ipBlock"] for spec in policies.values() for egress in spec.get("egress", [])
                  for peer in egress.get("to", []) if "ipBlock" in peer]  # fmt: skip
        dns = {"cidr": "169.254.20.10/32"}
        assert blocks.count(dns) == 1 and len(blocks) == 5, name
        kept_out = {"0.0.0.0/0": ["169.254.0.0/16"], "::/0": ["fe80::/10", "fd00:ec2::/32"]}
        assert all(block["except"] == kept_out[block["cidr"]] for block in blocks if block != dns), name


def test_workers_in_containers_keep_memory_as_those_that_a_run_starts_itself():
    (environment,) = [words for name, words in _instructions() if name == "ENV" and "MALLOC" in words]
    told = dict(word.split("=", 1) for word in environment.split())
    assert told["MALLOC_TRIM_THRESHOLD_"] == told["MALLOC_MMAP_THRESHOLD_"] == str(KEPT_BYTES)


def test_overlays_change_what_they_say(manifests: dict[str, list[dict[str, Any]]]):
    names = {one["metadata"]["name"] for one in manifests["overlays/external-database"] if one["kind"] != "Deployment"}
    assert "postgres" not in names
    roles = {
        one["metadata"]["name"]: one["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rsplit("-", 1)[1]
        for one in manifests["overlays/aws-role"]
        if one["kind"] == "ServiceAccount" and "annotations" in one["metadata"]
    }
    assert roles == {"latentpack-runs": "writer", "latentpack-maintenance": "maintainer"}
    for name, template in _pods([*manifests["overlays/aws-role"], _job(_template())]):
        for container in template["spec"]["containers"]:
            secrets = [source["secretRef"] for source in container.get("envFrom", []) if "secretRef" in source]
            assert all(secret["optional"] for secret in secrets), (
                f"{name} starts without the secret that a role replaces"
            )
