"""Restore and verify without Prefect: what the command line does where nobody could watch a flow."""

from pathlib import Path
from typing import Any

from compressor.archive import Archive
from compressor.restoring import restore as restore_pictures
from flows.parameters import RestoreParameters, VerifyParameters
from flows.progress import on_progress
from tasks.threads import cores


def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """As :func:`flows.archive.restore`."""
    archive = Archive.open(parameters.archive)
    destination, workers = Path(parameters.destination), parameters.workers or cores()
    return restore_pictures(
        archive, destination, parameters.key, parameters.format.value, workers, on_progress("restoring")
    ).to_dict()


def verify(parameters: VerifyParameters) -> dict[str, Any]:
    """As :func:`flows.archive.verify`."""
    archive = Archive.open(parameters.archive)
    problems = [(problem.key, problem.reason) for problem in archive.verify(on_progress("verifying"))]
    return {"archive": archive.url, "pictures": len(archive), "problems": problems}
