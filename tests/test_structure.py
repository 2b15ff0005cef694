"""The shape of the code: who imports whom, what light commands load, what no file may say."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import aegis
from aegis.fleet.agent.processes import SHIM
from aegis.fleet.archive import agent_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aegis"
FILES = sorted(SOURCE.rglob("*.py"))

# Small helpers that any part may use, and that use nothing but each other.
BASE = {"archive", "counts", "cpulist", "decoding", "errors", "files", "page", "processes", "step", "version"}

# The data path: part -> the parts that it may import besides BASE. A new part needs a line here.
MAY_IMPORT: dict[str, set[str]] = {
    "spec": set(),
    "placement": {"spec"},
    "engines": {"placement", "spec"},
    "planner": {"placement", "spec"},
    "preflight": {"engines", "placement", "spec"},
    "runs": {"spec"},
    "schedulers": {"placement", "runs", "spec"},
    "staging": {"runs", "spec"},
    "registry": set(),
    "fleet": {
        *("engines", "placement", "preflight", "registry", "runs", "schedulers", "spec", "staging"),
    },
    "client": {"fleet", "preflight", "runs", "schedulers", "spec"},
    "api": {"registry", "runs", "spec"},
    "gateway": {"api", "registry", "runs", "spec"},
    "bench": {"api", "registry", "runs", "spec"},
    "mapper": {"api", "registry", "runs", "spec"},
}
ANYTHING = {
    "cli",
    "__main__",
    "version",
}  # the command line, and the list of public names, may import every part

PURE = {"engines", "placement", "planner", "spec"}
NETWORK = {
    "aiohttp",
    "asyncio",
    "ftplib",
    "http",
    "requests",
    "socket",
    "socketserver",
    "ssl",
    "urllib.request",
}
SERVER = SOURCE / "engines" / "simulator"  # an engine of our own: it does serve

# Travel without the rest of Aegis, under another name: their modules import each other relatively, and nothing else of ours.
AGENT = SOURCE / "fleet" / "agent"
STAGER = SOURCE / "staging" / "node"
TRAVELLERS = {AGENT: "aegis.fleet.agent", STAGER: "aegis.staging.node"}

HEAVY = {"asyncio", "aiohttp", "rich", "numpy", "importlib.metadata"}

UNSPEAKABLE = re.compile(
    r"--(extra-)?index-url[ =]\S|https?://\S+/simple\b"  # where packages come from is for each machine to say
    r"|/[U]sers/\w|/[r]oot/\w"  # somebody's machine
)


def part_of(path: Path) -> str:
    """Return the part a file belongs to: a package or a module right below aegis."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "version" if first == "__init__" else first


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of every import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = TRAVELLERS.get(path.parent)
            assert not node.level or (inside and node.level == 1), f"{path}: a relative import"
            module = f"{inside}.{node.module or ''}".rstrip(".") if node.level else node.module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    """Return the parts of Aegis that a file imports; `aegis.__version__` belongs to the part `version`."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("aegis.")}
    return {
        name if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists() else "version" for name in names
    }


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_point_down_the_data_path(path: Path) -> None:
    part = part_of(path)
    if part in ANYTHING:
        return
    allowed = BASE if part in BASE else MAY_IMPORT[part] | BASE | {part}
    assert imported_parts(path) <= allowed


def test_only_fleet_joins_engines_registry_and_staging() -> None:
    joined = {"engines", "registry", "staging"}
    assert [part for part, below in MAY_IMPORT.items() if len((below | {part}) & joined) > 1] == ["fleet"]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if part_of(path) in PURE and SERVER not in path.parents],
    ids=named,
)
def test_pure_parts_know_no_network(path: Path) -> None:
    used = {
        module
        for name in imports(path)
        for module in NETWORK
        if name == module or name.startswith(f"{module}.")
    }
    assert not used


@pytest.mark.parametrize(
    "path", [path for each in TRAVELLERS for path in sorted(each.rglob("*.py"))], ids=named
)
def test_what_travels_is_of_the_standard_library_for_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    absolute = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert {name.split(".")[0] for name in absolute} <= sys.stdlib_module_names


def test_the_agent_becomes_one_file_that_a_bare_python_runs(tmp_path: Path) -> None:
    file = tmp_path / "agent.pyz"
    file.write_bytes(agent_archive())
    done = subprocess.run([sys.executable, "-I", "-S", file, "--help"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_shim_is_for_any_python() -> None:
    ast.parse(SHIM, feature_version=(3, 6))


@pytest.mark.parametrize("line", ["--help", "--version", "list", "platform list", "status", "submit --help"])
def test_light_commands_load_nothing_heavy(line: str) -> None:
    program = (
        "import json, sys\n"
        "from aegis.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *line.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & HEAVY


def test_the_package_itself_loads_no_part_of_it() -> None:
    program = "import sys, aegis; print(*(name for name in sys.modules if name.startswith('aegis')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["aegis"]


def test_public_names_are_sorted_and_there() -> None:
    assert aegis.__all__ == sorted(aegis.__all__)
    for name in aegis.__all__:
        getattr(importlib.import_module("aegis"), name)


def test_no_file_names_a_package_registry_or_a_path_of_somebodys_machine() -> None:
    found = []
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        hidden = inside[0].startswith(".") and inside[0] != ".ci"
        if hidden or "__pycache__" in inside or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path}: {match[0]}" for match in UNSPEAKABLE.finditer(text)]
    assert not found
