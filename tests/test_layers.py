"""Imports point one way: flows, tasks, compressor. And the command line starts without what it does not need yet."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor
from compressor.archive import Archive
from tests.rows import picture_row

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "compressor": {"prefect", "prefect_dask", "dask", "distributed", "argparse", "typer", "tasks", "flows"},
    "tasks": {"flows", "dask", "distributed", "prefect_dask", "argparse", "typer"},
    "flows": {"tests"},
}


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in set(imported(path)) & FORBIDDEN[package]
    }
    assert not wrong


def layers() -> dict[str, int]:
    """Each module's row in the table of compressor/README.md."""
    lines = [line for line in (ROOT / "compressor" / "README.md").read_text().splitlines() if line.startswith("| ")]
    names = [(name, row) for row, line in enumerate(lines) for name in re.findall(r"`([\w.]+)`", line)]
    assert len(dict(names)) == len(names)
    return dict(names)


def test_each_module_of_the_library_needs_only_its_own_row_and_those_above() -> None:
    row_of = layers()
    folder = ROOT / "compressor"
    modules = {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for path in folder.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "experiments"
    }
    assert row_of.keys() == {*modules, "experiments"}
    wrong = set()
    for module, path in modules.items():
        for node in ast.parse(path.read_text()).body:  # what a function imports, it imports late in order to be no need
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "compressor":
                within = node.module.removeprefix("compressor").removeprefix(".")
                for name in node.names:
                    needed = within if within in row_of else f"{within}.{name.name}".removeprefix(".")
                    if row_of[needed.split(".")[0] if needed.startswith("experiments") else needed] > row_of[module]:
                        wrong.add(f"{module} imports {needed}")
    assert not wrong


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["info", "/nonexistent"], ["list", "{archive}"]])
def test_the_command_line_starts_without_heavy_imports(arguments: list[str], tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    archive.commit([archive.write_part([picture_row("a.png")])])
    arguments = [argument.format(archive=archive.url) for argument in arguments]
    code = (
        "import sys; from flows.cli import run; run(sys.argv[1:]);"
        "print(*sorted({'torch', 'prefect', 'distributed', 'imagecodecs', 'matplotlib', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == ""
    assert ("a.png\n" in done.stdout) == ("list" in arguments)


def test_a_network_is_built_for_its_shapes_without_a_heavy_import() -> None:
    """As for each codec that is loaded. Many operators of the device "meta" import sympy, which takes a second."""
    code = (
        "import sys, torch; from compressor.families import FAMILIES; torch.device('meta').__enter__();"
        "print(*(FAMILIES[f'v{number}'].build() is None for number in range(1, 7)), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) == {"False"}


def test_public_names_are_loaded_when_they_are_named() -> None:
    code = (
        "import sys, compressor; before = set(sys.modules);"
        "from compressor import Archive, ArchiveError, Source, load_codec;"
        "print(*(name for name in ('numpy', 'compressor.archive') if name in before), Archive.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["compressor.archive"]
    for name in compressor._MODULE_OF:
        assert getattr(compressor, name).__name__ == name and name in dir(compressor)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = compressor.nothing
