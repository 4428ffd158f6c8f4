"""The flows that prefect.yaml deploys, by the names that its entrypoints use.

An entrypoint that is a file would be loaded as a module named after the file alone (``pipeline``), which Dask's workers
cannot import. Flows that come from here have the names of their real modules.
"""

import importlib
from typing import Any

_MODULES = {
    "benchmark": "flows.benchmark",
    "experiments": "flows.experiments",
    "maintain": "flows.archive",
    "pipeline": "flows.pipeline",
    "repair": "flows.archive",
    "restore": "flows.archive",
    "train_flow": "flows.train",
    "verify": "flows.archive",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"there is no flow {name!r}: choose one of {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)
