"""prefect.yaml and the automations: all of it on a real server, and a process worker completes a run. Not the flows."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from compressor.archive import Archive
from compressor.codec import artifact_bytes
from compressor.errors import CodecError
from compressor.images import decode_picture
from compressor.picture_writing import encode_picture
from compressor.samples import PHOTOGRAPHS, tiles
from flows import parameters as models
from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
MODELS = {
    "pipeline": models.PipelineParameters,
    "train_flow": models.TrainParameters,
    "maintain": models.MaintainParameters,
    "verify": models.VerifyParameters,
    "repair": models.RepairParameters,
    "restore": models.RestoreParameters,
    "benchmark": models.BenchmarkParameters,
    "experiments": models.ExperimentsParameters,
}


@pytest.fixture(scope="session")
def deployment_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a plain server on loopback, with its schedules and limits at work."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "LATENTPACK_HOME": str(home / "latentpack"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for_server(server, environment["PREFECT_API_URL"], home / "server.log")
            yield environment
        finally:
            _end(server)


def _wait_for_server(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the Prefect server did not start: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and its children with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _prefect(environment: dict[str, str], *arguments: str) -> str:
    result = subprocess.run([*PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _ask(environment: dict[str, str], path: str, body: Any) -> Any:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{environment['PREFECT_API_URL']}{path}", data, headers)
    for left in reversed(range(10)):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            # Prefect's answer while another writer holds its SQLite: nothing was done, ask again.
            if error.code != 503 or not left:
                raise
            time.sleep(0.5)


def test_every_deployment_fits_its_flow_and_has_no_unset_placeholder():
    text = (ROOT / "prefect.yaml").read_text()
    assert "{{" not in text
    deployments = yaml.safe_load(text)["deployments"]
    # Modules, not files: prefect.yaml is all that a site without the repository needs.
    flows = {one["name"]: one["entrypoint"].removeprefix("flows.deployed.") for one in deployments}
    assert set(flows.values()) == set(MODELS), "a deployment for every flow"
    for one in deployments:
        MODELS[flows[one["name"]]].model_validate(one["parameters"]["parameters"])
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    queue = {one["name"]: one["work_pool"].get("work_queue_name") for one in deployments}
    written = [name for name, flow in flows.items() if flow in ("pipeline", "maintain")]
    assert {queue.pop(name) for name in written} == {"writers"}, "one writer an archive"
    assert queue.pop("repair") == "repair", "damage pauses the writers' queue, and is what it is for"
    assert set(queue.values()) == {None}


@pytest.mark.parametrize(
    ("model", "field", "accepted", "refused"),
    [
        (models.PipelineParameters, "archive", "s3://bucket/a b", " /srv/a"),
        (models.PipelineParameters, "archive", "/srv/a", "/srv/a\n"),
        (models.PipelineParameters, "archive", "s3://bucket:9000/a", "s3://me:secret@bucket/a"),
        (models.RestoreParameters, "destination", "/srv/out", "gs://bucket/out"),
        (models.RestoreParameters, "destination", "/srv/s3:/out", "s3:/bucket/out"),
        (models.RestoreParameters, "destination", "s3://bucket/out", "s3://me:secret@bucket/out"),
        (models.BenchmarkParameters, "report", "s3://bucket/report", "gs://bucket/report"),
        (models.TrainParameters, "out", "codec.safetensors", "https://host/codec.safetensors"),
        (models.DemoParameters, "folder", "demo", "s3://bucket/demo"),
        (models.RestoreParameters, "keys_from", "keys.txt", "s3://bucket/keys.txt"),
    ],
)
def test_what_a_flow_would_refuse_at_night_the_form_refuses_at_once(
    model: Any, field: str, accepted: str, refused: str
) -> None:
    schema = model.model_json_schema()["properties"][field]
    (pattern,) = [one["pattern"] for one in schema.get("anyOf", [schema]) if "pattern" in one]
    assert re.search(pattern, accepted) and not re.search(pattern, refused)
    needed = {name: "x" for name, one in model.model_fields.items() if one.is_required()}
    assert getattr(model(**needed | {field: accepted}), field) == accepted
    with pytest.raises(ValidationError):
        model(**needed | {field: refused})


def test_a_form_asks_in_order_whatever_the_database_does_with_names() -> None:
    for model in (models.PipelineParameters, models.TrainParameters, models.RestoreParameters):
        properties = model.model_json_schema()["properties"]
        assert sorted(properties, key=lambda name: properties[name]["position"]) == list(model.model_fields)
    assert list(models.TrainParameters.model_fields)[:2] == ["source", "family"]


def test_a_quality_and_a_target_do_not_go_together_on_a_server_either() -> None:
    given = {"source": "in", "archive": "out", "quality": 5}
    assert models.PipelineParameters(**given, target_psnr=34.0).quality == 5, "a form sends defaults"
    with pytest.raises(ValidationError, match="does not go with a target PSNR"):
        models.PipelineParameters(**given, target_psnr=40)


def test_a_deployed_run_reads_no_standard_input() -> None:
    """It would wait for it for ever: the form refuses it, and so does the flow."""
    field = models.RestoreParameters.model_json_schema()["properties"]["keys_from"]
    (pattern,) = [one["pattern"] for one in field["anyOf"] if "pattern" in one]
    assert "standard input" not in field["description"]
    for name, accepted in (("-", False), ("keys.txt", True), ("-keys", True), ("a-", True)):
        assert bool(re.search(pattern, name)) is accepted
        if accepted:
            models.RestoreParameters(archive="a", destination="b", keys_from=name)
    with pytest.raises(ValidationError, match="only the command line has a standard input.*: name a file"):
        models.RestoreParameters(archive="a", destination="b", keys_from="-")


@pytest.mark.parametrize("archive", ["archive ", " s3://bucket/archive"])
def test_a_space_that_a_form_does_not_show_makes_no_second_archive(archive: str) -> None:
    with pytest.raises(ValidationError, match="begins or ends with a space"):
        models.PipelineParameters(source="pictures", archive=archive)


def test_a_form_has_no_shell_to_expand_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.safetensors").write_bytes(b"a codec")
    assert models.RestoreParameters(archive="a", destination="~/out").destination == str(tmp_path / "out")
    assert artifact_bytes("~/mine.safetensors") == b"a codec"
    with pytest.raises(CodecError):
        artifact_bytes("~nobody-of-this-name/mine.safetensors")


@pytest.mark.parametrize(
    "model",
    [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, models.Parameters)],
    ids=lambda model: model.__name__,
)
def test_every_field_of_a_form_explains_itself(model: Any) -> None:
    schema = model.model_json_schema()
    for form in [schema, *schema.get("$defs", {}).values()]:
        assert form.get("description"), form
        unexplained = [name for name, field in form.get("properties", {}).items() if not field.get("description")]
        assert not unexplained


@pytest.mark.server
def test_deploys_and_a_process_worker_completes_a_run(deployment_server: dict[str, str], tmp_path: Path):
    import skimage

    source, archive = tmp_path / "pictures", tmp_path / "archive"
    source.mkdir()
    photograph = decode_picture((Path(skimage.__file__).parent / "data" / PHOTOGRAPHS[0]).read_bytes())
    for number, tile in enumerate(tiles(photograph.pixels)[:4]):
        (source / f"{number}.png").write_bytes(encode_picture(tile, 3, "png"))

    _prefect(deployment_server, "work-pool", "create", "latentpack", "--type", "process")
    _prefect(deployment_server, "work-queue", "create", "writers", "--pool", "latentpack", "--limit", "1")
    _prefect(deployment_server, "deploy", "--all")
    deployed = {one["name"]: one for one in _ask(deployment_server, "/deployments/filter", {})}
    named = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert set(deployed) == {one["name"] for one in named}
    nightly = deployed["archive-nightly"]
    assert nightly["schedules"][0]["active"]
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert nightly["global_concurrency_limit"]["limit"] == 1

    parameters = {"parameters": {"source": str(source), "archive": str(archive), "codec": "jpegxl"}}
    run = _ask(deployment_server, f"/deployments/{nightly['id']}/create_flow_run", {"parameters": parameters})
    command = [*PREFECT, "worker", "start", "--pool", "latentpack", "--type", "process", "--run-once"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=deployment_server, stdout=log, stderr=log, start_new_session=True
        )
        try:
            state = _wait_for_end(deployment_server, run["id"])
        finally:
            _end(worker)
    assert state == "COMPLETED", (tmp_path / "worker.log").read_text()[-3000:]
    assert len(Archive.open(str(archive))) == 4


def _wait_for_end(environment: dict[str, str], run: str, seconds: float = 120) -> str:
    end = time.monotonic() + seconds
    state = "unknown"
    while True:
        with suppress(TimeoutError):  # a busy server may leave one question of many open
            (found,) = _ask(environment, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            state = found["state_type"]
        if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") or time.monotonic() > end:
            return state
        time.sleep(0.5)


def _tell(environment: dict[str, str], event: str, resource: str, **more: Any) -> None:
    """Emit an event, as a run does."""
    about = {"prefect.resource.id": resource, "archive": "s3://bucket/archive"}
    occurred = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event, "resource": about}
    _ask(environment, "/events", [{**occurred, **more}])


def _becomes(condition: Callable[[], bool], seconds: float = 90) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="session")
def automated(deployment_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A server with infra/automations.yaml, whose patience is shortened."""
    file = tmp_path_factory.mktemp("automations") / "automations.yaml"
    file.write_text((ROOT / "infra" / "automations.yaml").read_text().replace("within: 180", "within: 10"))
    _prefect(deployment_server, "automation", "create", "--from-file", str(file))
    return deployment_server


@pytest.mark.server
def test_a_run_without_heartbeat_is_marked_as_crashed(automated: dict[str, str]) -> None:
    flow = _ask(automated, "/flows/", {"name": "silent"})["id"]
    runs = [_ask(automated, "/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"] for _ in range(2)]
    for run in runs:
        _tell(automated, "prefect.flow-run.heartbeat", f"prefect.flow-run.{run}")
    _ask(automated, f"/flow_runs/{runs[1]}/set_state", {"state": {"type": "COMPLETED"}})
    assert _wait_for_end(automated, runs[0], 60) == "CRASHED"
    assert _wait_for_end(automated, runs[1], 0) == "COMPLETED"


@pytest.mark.server
def test_damage_stops_writers_and_no_others(automated: dict[str, str]) -> None:
    _ask(automated, "/work_pools/", {"name": "other", "type": "process"})
    queues = {
        name: _ask(automated, "/work_pools/other/queues", {"name": name})["id"] for name in ("writers", "readers")
    }

    def paused(name: str) -> bool:
        url = f"{automated['PREFECT_API_URL']}/work_queues/{queues[name]}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bool(json.load(answer)["is_paused"])

    for name in ("readers", "writers"):
        related = {"prefect.resource.id": f"prefect.work-queue.{queues[name]}", "prefect.resource.role": "work-queue"}
        related |= {"prefect.resource.name": name}
        _tell(automated, "latentpack.archive.damaged", "latentpack.archive.a", related=[related])
    assert _becomes(lambda: paused("writers")) and not paused("readers")


@pytest.mark.server
def test_notifications_arrive_in_words(deployment_server: dict[str, str], tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        code = (
            "import sys; from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook\n"
            "words = {'subject': '{{subject}}', 'body': '{{body}}'}\n"
            "print(Webhook(name='ear', url=sys.argv[1], json_data=words).save('ear'))"
        )
        url = f"http://127.0.0.1:{server.server_port}/"
        made = subprocess.run(
            [sys.executable, "-c", code, url], env=deployment_server, capture_output=True, text=True, check=True
        )
        file = tmp_path / "notifications.yaml"
        text = (ROOT / "infra" / "notifications.yaml").read_text()
        file.write_text(text.replace("BLOCK_ID", made.stdout.strip()))
        _prefect(deployment_server, "automation", "create", "--from-file", str(file))
        told = {"pictures.quarantined": {"pictures": 3}, "mirror.refused": {"reason": "the source is empty"}}
        for event, payload in told.items():
            _tell(deployment_server, f"latentpack.{event}", "latentpack.archive.a", payload=payload)
        # A worker that was there, and says no more: the server finds out by itself
        _ask(deployment_server, "/work_pools/", {"name": "left", "type": "process"})
        alive = {"name": "worker", "heartbeat_interval_seconds": 1}
        _ask(deployment_server, "/work_pools/left/workers/heartbeat", alive)
        gone = "no worker is left in the pool left"
        assert _becomes(lambda: len(heard) >= 3 and any(one["subject"] == gone for one in heard))
        server.shutdown()
    subjects = {one["subject"]: one["body"] for one in heard}
    assert subjects["3 pictures could not be archived"].startswith("s3://bucket/archive: ")
    assert "s3://bucket/archive: the source is empty" in subjects.values()
