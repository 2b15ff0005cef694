"""`aegis cleanup`: vec-inf's words, a question before anything is gone, and nothing without a filter."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.jobs_site import RUNNING, Site, command_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

ENDED: dict[str, Any] = {"state": "SHUTDOWN", "accounted": True}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    command_line(made, monkeypatch)
    made.job("slurm://1", **ENDED, models=["Llama-3-8B"])
    made.job("slurm://2", **ENDED, models=["Llama-3-8B"])
    made.job("slurm://3", RUNNING, models=["Llama-3-8B"])
    monkeypatch.setenv("AEGIS_LOG_DIR", str(made.logs))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return made


def left(site: Site) -> list[str]:
    return sorted(path.name for path in site.logs.glob("*/*"))


ALL = ["Llama-3-8B.1", "Llama-3-8B.2", "Llama-3-8B.3"]


def test_a_dry_run(aegis: Callable[..., Outcome], site: Site) -> None:
    said = aegis("cleanup", "--model-family", "Llama-3", "--dry-run")
    family = site.logs / "Llama-3"
    assert said.out.splitlines() == [
        "Dry run: 2 directories would be deleted:",
        f"  - {family / ALL[0]}",
        f"  - {family / ALL[1]}",
    ]
    assert said.err == f"kept: {family / ALL[2]}: slurm://3 is LAUNCHING\n"
    assert left(site) == ALL
    assert (
        aegis("cleanup", "--job-id", "9", "--dry-run").out == "Dry run: no matching log directories found.\n"
    )


def test_deleting(aegis: Callable[..., Outcome], site: Site) -> None:
    assert aegis("cleanup", "--before-job-id", "2", "--yes").out == "Deleted 1 log directory(ies).\n"
    assert left(site) == ALL[1:]
    assert (
        aegis("cleanup", "--all", "--yes", "--log-dir", str(site.logs)).out
        == "Deleted 1 log directory(ies).\n"
    )
    assert left(site) == ALL[2:]
    said = aegis("cleanup", "--all", "--yes")
    assert (said.code, said.out) == (0, "No matching log directories were deleted.\n")


def test_nothing_goes_without_a_filter(aegis: Callable[..., Outcome], site: Site) -> None:
    for args in ((), ("--yes",), ("--dry-run",), ("--log-dir", str(site.logs), "--yes")):
        said = aegis("cleanup", *args)
        assert said.code == 2
        assert "no filter is given" in said.err
    assert left(site) == ALL


def test_nothing_goes_unasked(aegis: Callable[..., Outcome], site: Site) -> None:
    said = aegis("cleanup", "--all")
    assert said.code == 2
    assert "no terminal to ask on" in said.err
    assert left(site) == ALL


@pytest.mark.parametrize(("answer", "left_over"), [("y\n", 1), ("n\n", 3), ("\n", 3)])
def test_the_question(
    aegis: Callable[..., Outcome], site: Site, monkeypatch: pytest.MonkeyPatch, answer: str, left_over: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    said = aegis("cleanup", "--all")
    assert said.code == (0 if left_over == 1 else 6)
    assert str(site.logs / "Llama-3" / ALL[0]) in said.err
    assert len(left(site)) == left_over


@pytest.mark.parametrize("root", ["/", "/proc", "home"])
def test_a_root_that_is_none(aegis: Callable[..., Outcome], site: Site, root: str) -> None:
    log_dir = str(site.folder.parent) if root == "home" else root
    said = aegis("cleanup", "--all", "--yes", "--log-dir", log_dir)
    assert said.out == "No matching log directories were deleted.\n"
    assert left(site) == ALL


def test_no_root(aegis: Callable[..., Outcome], site: Site) -> None:
    assert aegis("cleanup", "--all", "--log-dir", str(site.folder / "none")).code == 4
