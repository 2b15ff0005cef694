"""The recordings of a real PBS, as what a transport would have returned."""

from __future__ import annotations

from pathlib import Path

from aegis.schedulers.transport import Done

FOLDER = Path(__file__).parents[1] / "fixtures" / "pbs"
SERVER = "aurora-pbs-0001.hostmgmt.cm.lab.test"


def recorded(name: str) -> Done:
    """Return what a command answered, decoded as a transport does."""

    def read(suffix: str) -> str:
        file = FOLDER / f"{name}.{suffix}"
        return file.read_bytes().decode("utf-8", errors="replace") if file.exists() else ""

    return Done(int(read("rc") or 0), read("out"), read("err"))


def json_recordings() -> list[str]:
    """Return the names of all answers in JSON to questions about jobs."""
    found = []
    for file in sorted(FOLDER.rglob("*.out")):
        name = str(file.relative_to(FOLDER)).removesuffix(".out")
        text = file.read_bytes().lstrip()
        if b'"timestamp"' in text and text.startswith(b"{") and "_Q_" not in name and "_B_" not in name:
            found.append(name)
    return [name for name in found if not name.rpartition("/")[2].startswith(("pbsnodes", "err_pbsnodes"))]
