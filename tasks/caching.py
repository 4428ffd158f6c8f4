"""Keys under which stages remember their results, and where these lie.

A key covers all that a result depends on: the stage and its version, the batch's files, the configuration. A record
found under a key is only as good as the file it points at, so callers use :func:`fresh`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefect import Task

from tasks.home import home


def stage_key(stage: str, version: int, content: str, configuration: dict[str, Any]) -> str:
    """Cache key of a stage: ``content`` is a digest of its input, ``configuration`` is JSON-able."""
    text = json.dumps([stage, version, content, configuration], sort_keys=True, default=str)
    return f"{stage}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


class Record(Protocol):
    """What a cached stage returns, as a dictionary: small, and able to tell whether the file it points at is good."""

    def exists(self) -> bool: ...


def is_artifact(path: str, id: str) -> bool:
    """Whether the codec ``id`` lies at ``path``."""
    from compressor.artifact import identify

    try:
        return identify(Path(path).read_bytes()) == id
    except OSError:
        return False


R = TypeVar("R", bound=Record)


def cached(task: Task[..., dict[str, Any]]) -> Task[..., dict[str, Any]]:
    """``task`` with its results kept as JSON below :func:`home`."""
    folder = home() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return task.with_options(persist_result=True, result_storage=folder, result_serializer="json")


def fresh(task: Task[..., dict[str, Any]], kind: type[R], **arguments: Any) -> R:
    """Call a cached task here and now; do it again where it points at a file that has vanished or lacks something."""
    kept = cached(task)
    record = kind(**kept(**arguments))
    return record if record.exists() else kind(**kept.with_options(refresh_cache=True)(**arguments))
