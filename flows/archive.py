"""An archive read back: restore its pictures as files, verify every row; and its weekly care."""

import socket
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from compressor.errors import ArchiveError
from compressor.wording import number
from flows.keys import named
from flows.machine import worker_count
from flows.parameters import MaintainParameters, RestoreParameters, VerifyParameters
from flows.progress import on_progress
from flows.terminal import SAID_ELSEWHERE
from tasks.dashboard import announce, publish_state
from tasks.maintain import compact, vacuum
from tasks.restore import restore_pictures, verify_archive


@flow(name="restore", flow_run_name="restore {parameters.subject}", persist_result=False)
def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore pictures as files. Returns :class:`compressor.restoring.Restored` as JSON."""
    destination = Path(parameters.destination)
    done = restore_pictures(
        parameters.archive,
        destination,
        named(parameters.key, parameters.keys_from) or None,
        parameters.format.value,
        parameters.workers or worker_count(),
        on_progress("restoring"),
    )
    written, host = number(done["written"], "picture"), socket.gethostname()
    get_run_logger().info("%s written to %s on %s", written, destination.resolve(), host)
    _warn_of(done["problems"], "not restored")
    return done


@flow(name="verify", flow_run_name="verify {parameters.subject}", persist_result=False)
def verify(parameters: VerifyParameters) -> dict[str, Any]:
    """Check every row. Returns the number of pictures and ``problems``, each a key and a reason."""
    return _verified(parameters.archive)


@flow(name="maintain", flow_run_name="maintain {parameters.subject}", persist_result=False)
def maintain(parameters: MaintainParameters) -> dict[str, Any]:
    """Verify, compact and vacuum: a writer, so no other run may write at the same time.

    Returns
    -------
    ``pictures`` verified, ``files_fewer`` after compaction, files ``deleted`` by vacuum.

    Raises
    ------
    ArchiveError
        Something is damaged. Nothing is merged or deleted then: old files may be what repair needs.
    """
    checked = _verified(parameters.archive)
    if checked["problems"]:
        key, reason = checked["problems"][0]
        count = number(len(checked["problems"]), "problem")
        raise ArchiveError(
            f"{checked['archive']}: {count}, such as {key}: {reason}. Nothing was "
            "compacted or deleted; run 'latentpack repair' on it"
        )
    fewer = compact(parameters.archive)
    deleted = vacuum(parameters.archive, parameters.older_than)
    publish_state(parameters.archive, parameters.price_per_tb, checked["pictures"])
    return {"archive": checked["archive"], "pictures": checked["pictures"], "files_fewer": fewer, "deleted": deleted}


def _verified(archive: str) -> dict[str, Any]:
    found = verify_archive(archive, on_progress("verifying"))
    if found["problems"]:
        announce("archive.damaged", found["archive"], {"problems": len(found["problems"])})
    _warn_of(found["problems"], "that cannot be trusted")
    return found


def _warn_of(problems: list[tuple[str, str]], what: str) -> None:
    """Have the run's log name one of them; the command line says all by itself, and an artifact has them."""
    if problems:
        key, reason = problems[0]
        count = number(len(problems), "picture")
        get_run_logger().warning("%s %s, such as %s: %s", count, what, key, reason, extra={SAID_ELSEWHERE: True})
