"""`aegis metrics --prometheus` against a real registry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from aegis.registry.store import Store
from tests.registry.conftest import Clock, Site, push, report, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Outcome


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path))


@pytest.fixture
def site() -> Iterator[Site]:
    store, clock = Store(), Clock()
    with running(store, clock) as made:
        made.client().push(push("n1", report("m-0", model="m"), report("$(x)\n", model="; rm", port=8001)))
        yield made


def instances(text: str) -> list[str]:
    return [each["labels"]["instance"] for each in json.loads(text) if each["labels"]["aegis"] == "engine"]


def test_a_file_and_stdout(aegis: Callable[..., Outcome], site: Site, tmp_path: Path) -> None:
    file = tmp_path / "aegis targets.json"
    outcome = aegis("metrics", "--registry-url", site.url, "--prometheus", str(file))
    assert (outcome.code, outcome.out, outcome.err) == (0, "", f"3 targets in {file}\n")
    assert instances(file.read_text()) == ["$(x)\n", "m-0"]
    assert os.listdir(tmp_path) == [file.name]  # noqa: PTH208 - no temporary file
    assert aegis("metrics", "--registry-url", site.url, "--prometheus", "-").out == file.read_text()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--prometheus", "-"], 2, "nothing is named"),
        (["x", "--registry-port", "1", "--prometheus", "-"], 2, "two ways"),
        (["x", "--registry-port", "1"], 2, "--registry-port goes with --prometheus"),
        (["x", "--prometheus", "-", "--json"], 2, "goes with neither"),
        (["--registry-port", "1", "--prometheus", "-"], 3, "does not answer"),
        (["--prometheus", "-", "nosuch"], 4, "`nosuch`"),
    ],
)
def test_what_is_refused(
    aegis: Callable[..., Outcome], own_state: None, args: list[str], code: int, said: str
) -> None:
    outcome = aegis("metrics", *args)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err


def test_a_folder_that_is_not_there(aegis: Callable[..., Outcome], site: Site, tmp_path: Path) -> None:
    file = tmp_path / "no" / "targets.json"
    outcome = aegis("metrics", "--registry-url", site.url, "--prometheus", str(file))
    assert outcome.code == 1
    assert f"{file} cannot be written: No such file or directory" in outcome.err


def test_watched_until_ctrl_c(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    command = [sys.executable, "-m", "aegis", "metrics", "--registry-url", site.url]
    process = subprocess.Popen(
        [*command, "--prometheus", str(file), "--watch", "0.1"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        wait_until(file.exists)
        site.client().push(push("n2", report("m-1", model="m")))
        wait_until(lambda: "m-1" in instances(file.read_text()))
        file.unlink()
        file.mkdir()  # cannot be written for a while
        site.client().push(push("n3", report("m-2", model="m")))
        line = process.stderr.readline() + process.stderr.readline() + process.stderr.readline()
        assert "cannot be written" in line
        file.rmdir()
        wait_until(lambda: file.exists() and "m-2" in instances(file.read_text()))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    first, second, _ = line.splitlines()
    assert first == f"3 targets in {file}"
    assert second.endswith(" 4 targets")
    assert said.endswith(" 5 targets\n")
