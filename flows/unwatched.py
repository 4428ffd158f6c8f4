"""Restore, verify and repair without Prefect: what the command line does where nobody could watch a flow."""

from dataclasses import asdict
from typing import Any

from compressor.archive import Archive
from compressor.limits import Limits
from compressor.restoring import restore as restore_pictures
from compressor.verifying import in_figures
from flows.keys import named
from flows.machine import cores, worker_count
from flows.parameters import RepairParameters, RestoreParameters, VerifyParameters
from flows.progress import on_progress


def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """As :func:`flows.archive.restore`."""
    archive = Archive.open(parameters.archive)
    keys = named(parameters.key, parameters.keys_from) or None
    done = restore_pictures(
        archive,
        parameters.destination,
        keys,
        parameters.format,
        parameters.workers or worker_count(),
        on_progress("restoring"),
        overwrite=parameters.overwrite,
    )
    return {"archive": archive.url, **asdict(done)}


def verify(parameters: VerifyParameters) -> dict[str, Any]:
    """As :func:`flows.archive.verify`."""
    archive = Archive.open(parameters.archive)
    found = archive.verify(on_progress("verifying"), parameters.workers or worker_count())
    return {"archive": archive.url, "pictures": len(archive), **in_figures(found)}


def repair(parameters: RepairParameters) -> dict[str, Any]:
    """Mend an archive. Returns :class:`compressor.repairing.Repaired` as JSON, and ``whole``: nothing is missing."""
    from compressor.choosing import check_codec, put_codec
    from compressor.encoding_again import AgainOptions
    from compressor.repairing import repair as mend
    from compressor.sources import Source
    from tasks.threads import pin_threads

    archive = Archive.open(parameters.archive)
    source = Source.open(parameters.source) if parameters.source else None
    options = None
    if parameters.codec:
        check_codec(parameters.codec, parameters.archive)
    if source:
        pin_threads(cores())
        options = AgainOptions(
            put_codec(archive, parameters.codec)[0] if parameters.codec else None,
            parameters.target_psnr,
            parameters.quality,
            parameters.resize,
            Limits(parameters.max_bytes, parameters.max_pixels),
            parameters.keep_metadata,
        )
    at_hand = [parameters.codec] if parameters.codec else []
    workers = parameters.workers or worker_count()
    done = mend(archive, source, options, parameters.drop, at_hand, on_progress("checking"), workers)
    return {"archive": archive.url, **asdict(done), "whole": done.is_whole}
