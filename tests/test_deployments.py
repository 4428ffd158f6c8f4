"""prefect.yaml: all of it deploys to a real server, and a process worker completes a run. Not the flows."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.archive import Archive
from compressor.images import decode_picture, encode_picture
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


def _ask(environment: dict[str, str], path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{environment['PREFECT_API_URL']}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_every_deployment_fits_its_flow_and_has_no_unset_placeholder():
    text = (ROOT / "prefect.yaml").read_text()
    assert "{{" not in text
    deployments = yaml.safe_load(text)["deployments"]
    flows = {one["entrypoint"].split(":")[1] for one in deployments}
    assert flows == set(MODELS), "a deployment for every flow"
    for one in deployments:
        MODELS[one["entrypoint"].split(":")[1]].model_validate(one["parameters"]["parameters"])
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    written = [one for one in deployments if one["entrypoint"].endswith((":pipeline", ":maintain"))]
    assert {one["work_pool"]["work_queue_name"] for one in written} == {"writers"}, "one writer an archive"


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
    while True:
        (found,) = _ask(environment, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        state = found["state_type"]
        if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") or time.monotonic() > end:
            return state
        time.sleep(0.5)
