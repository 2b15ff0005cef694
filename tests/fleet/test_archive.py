"""The agent as one file: what is in it, and that a bare Python runs it."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from aegis.fleet import agent
from aegis.fleet.archive import PACKAGE, agent_archive

SOURCES = sorted(Path(agent.__file__).parent.glob("*.py"))


def test_it_holds_the_whole_package() -> None:
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as archive:
        names = archive.namelist()
        assert names == ["__main__.py", *(f"{PACKAGE}/{source.name}" for source in SOURCES)]
        for source in SOURCES:
            assert archive.read(f"{PACKAGE}/{source.name}") == source.read_bytes()


def test_the_same_sources_give_the_same_bytes() -> None:
    assert agent_archive() == agent_archive()


def test_a_bare_python_runs_it_from_any_place(tmp_path: Path) -> None:
    folder = tmp_path / "a b'\n$(x)"
    folder.mkdir()
    (folder / "agent.pyz").write_bytes(agent_archive())
    (folder / "json.py").write_text("raise SystemExit('not this one')")
    command = [sys.executable, "-I", "-S", "agent.pyz", "--help"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Run the instances of one node." in done.stdout
    assert "aegis_agent" not in done.stdout
