"""An archive read back: restore its pictures as files, verify every row."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.parameters import RestoreParameters, VerifyParameters
from flows.progress import on_progress
from tasks.restore import restore_pictures, verify_archive
from tasks.threads import cores


@flow(name="restore", flow_run_name="restore {parameters.archive}", persist_result=False)
def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore pictures as files. Returns :class:`compressor.restoring.Restored` as JSON."""
    return restore_pictures(
        parameters.archive,
        Path(parameters.destination),
        parameters.key,
        parameters.format.value,
        parameters.workers or cores(),
        on_progress("restoring"),
    )


@flow(name="verify", flow_run_name="verify {parameters.archive}", persist_result=False)
def verify(parameters: VerifyParameters) -> dict[str, Any]:
    """Check every row. Returns the number of pictures and ``problems``, each a key and a reason."""
    return verify_archive(parameters.archive, on_progress("verifying"))
