"""Flows that end in words: what Prefect shows as a run's state says what was done, or why it could not be."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from prefect import Flow, flow, get_run_logger
from prefect.states import Completed, Failed, State

from compressor.errors import LatentpackError

P = TypeVar("P")
Result = dict[str, Any]


def worded_flow(name: str, run_name: str) -> Callable[[Callable[[P], tuple[Result, str]]], Flow[[P], Result]]:
    """A decorator: a function of ``parameters`` that returns its result and words for it becomes a Prefect flow.

    Called, the flow returns the result alone. A LatentpackError is raised to the caller as from any function, but
    Prefect sees a failed state with that message: its engine would log two tracebacks of what is nobody's bug.
    """

    def decorate(function: Callable[[P], tuple[Result, str]]) -> Flow[[P], Result]:
        @functools.wraps(function)
        def ending(parameters: P) -> State[Any]:
            try:
                result, words = function(parameters)
            except LatentpackError as error:
                get_run_logger().debug("where it ended:", exc_info=error)
                return Failed(message=str(error), data=error)
            return Completed(message=words, data=result)

        made = flow(name=name, flow_run_name=run_name, persist_result=False)(cast(Any, ending))
        return cast(Flow[[P], Result], made)

    return decorate
