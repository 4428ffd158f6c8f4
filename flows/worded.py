"""Flows that end in words: what Prefect shows as a run's state says what was done, or why it could not be."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from prefect import Flow, flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed, State
from prefect.utilities.hashing import file_hash

from compressor.errors import LatentpackError

P = TypeVar("P")
Result = dict[str, Any]


def worded_flow(name: str, run_name: str) -> Callable[[Callable[[P], tuple[Result, str]]], Flow[[P], Result]]:
    """A decorator: a function of ``parameters`` that returns its result and words for it becomes a Prefect flow.

    Called, the flow returns the result alone. A LatentpackError is raised to the caller as from any function, but
    Prefect sees a failed state with that message: its engine would log two tracebacks of what is nobody's bug. Only
    where the flow is to be retried is the error left to the engine, which retries what is raised and nothing else.
    """

    def decorate(function: Callable[[P], tuple[Result, str]]) -> Flow[[P], Result]:
        @functools.wraps(function)
        def ending(parameters: P) -> State[Any]:
            try:
                result, words = function(parameters)
            except LatentpackError as error:
                if _is_retried():
                    raise
                get_run_logger().debug("where it ended:", exc_info=error)
                return Failed(message=str(error), data=error)
            return Completed(message=words, data=result)

        version = file_hash(inspect.getsourcefile(function) or __file__)  # Prefect would take that of this file
        made = flow(name=name, flow_run_name=run_name, version=version, persist_result=False)(cast(Any, ending))
        return cast(Flow[[P], Result], made)

    return decorate


def _is_retried() -> bool:
    """Whether Prefect is to run this flow again if it fails now."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return False
    return context.flow_run.run_count <= (context.flow.retries or 0)
