"""What the promise is worth, measured: each command tries to break an archive one way and prints a Markdown table.

    python benchmarks/promise.py kills PICTURES [--kills 100]
    python benchmarks/promise.py flips PICTURES [--flips 10000]
    python benchmarks/promise.py fuzz [--minutes 10]
    python benchmarks/promise.py faults PICTURES
    python benchmarks/promise.py salvages [--minutes 5]
    python benchmarks/promise.py kinds
    python benchmarks/promise.py references FOLDER...

PICTURES is a folder; each command works in a temporary folder of its own (``--scratch`` sets where) and ends with
exit code 1 if a promise did not hold.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

# One thread each: what is tried here is right or wrong, and the machine has other work.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

sys.path.insert(1, str(Path(__file__).parents[1]))  # the tests make the smallest of everything

from promises import faults, flips, fuzz, kills, kinds, references, salvages  # noqa: E402

COMMANDS = {
    "kills": kills,
    "flips": flips,
    "fuzz": fuzz,
    "faults": faults,
    "salvages": salvages,
    "kinds": kinds,
    "references": references,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder to work in (default: the system's temporary one)")
    parser.add_argument("--seed", type=int, default=1)
    commands = parser.add_subparsers(required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_options(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="promise-") as folder:
        return 0 if options.run(options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
