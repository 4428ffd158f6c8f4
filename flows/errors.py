"""How a flow ends that did its work and found what needs a look. Other errors are in ``compressor/errors.py``."""

from typing import Any

from compressor.errors import LatentpackError


class EndedUnwell(LatentpackError):
    """What a flow found or did needs a look, so that Prefect is to show it as failed; ``result`` is what it did."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)
