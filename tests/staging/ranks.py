"""The processes of an MPI program, for tests that end one of them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def ranks_of(launcher: int) -> list[int]:
    """Return the processes of the MPI program below a launcher."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below = [launcher]
    for parent in below:
        below += [pid for pid, its in parents.items() if its == parent]
    found = []
    for pid in below:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").resolve().name == "bcast":
                found.append(pid)
    return sorted(found)
