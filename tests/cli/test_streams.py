"""The command line where a stream is closed, full or read by nobody: no traceback, and an exit code that is true."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PLATFORMS = ("platform", "list")


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which `aegis` is the real command."""
    environ = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    function = f'aegis() {{ {sys.executable} -P -m aegis "$@"; }}'
    return subprocess.run(
        ["bash", "-c", f"{function}\n{line}"],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("aegis status >&-", 0, "no jobs\n"),
        ("aegis platform list >&-", 0, ""),
        ("aegis status 2>&-", 0, ""),
        ("aegis status x 2>&-", 4, ""),
        ("aegis status x >&- 2>&-", 4, ""),
        ("aegis platform list >/dev/full", 1, "error: No space left on device\n"),
        ("aegis cleanup --before-job-id 1 --log-dir . <&-", 0, ""),
        ('aegis list | head -n 1 >/dev/null; exit "${PIPESTATUS[0]}"', 0, ""),
    ],
)
def test_a_stream_that_is_not_there(tmp_path: Path, line: str, code: int, said: str) -> None:
    done = shell(tmp_path, line)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    "line", ["platform list", "status --json", "list --json", "config schema", "--version"]
)
def test_output_ends_with_one_newline(tmp_path: Path, line: str) -> None:
    done = shell(tmp_path, f"aegis {line}")
    assert done.returncode == 0
    assert done.stdout.rstrip("\n") + "\n" == done.stdout
