"""`gateway_keys` is looked at before anything starts: here, and at the far end of ssh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.cli.gateway_wish import check_gateway_keys
from aegis.errors import DeploymentError
from aegis.gateway.keyfile import add_key
from aegis.schedulers.transport import Here
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Platform
from aegis.spec.resolve import Resolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Outcome

HOSTILE = ["a b", "a\nb", "$(touch X)", "`touch X`", ";touch X", "'", '"', "-c", "--", "ä", "*"]


def said_of(
    keys: str, folder: Path, *, here: bool = True, gateways: int | None = 1
) -> list[tuple[str, str, str | None]]:
    """Return what is refused of a deployment in a folder: where, what, and what helps."""
    deployment = Deployment(
        models=(ModelEntry(model="m"),), gateways=gateways, gateway_keys=keys, work_dir=str(folder)
    )
    resolved = Resolved(deployment, Platform(name="p"), None, {"gateway_keys": "d.yaml:4"}, ())
    try:
        check_gateway_keys(resolved, Here(os.environ), here=here)
    except DeploymentError as error:
        return [(each.where, each.message, each.hint) for each in error.problems]
    return []


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_of_a_good_file_is_fine(tmp_path: Path, name: str, here: bool) -> None:
    add_key(tmp_path / name, "alice")
    assert said_of(name, tmp_path, here=here) == []
    assert said_of(str(tmp_path / name), Path("/"), here=here) == []
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_missing_or_open_to_others_is_refused(tmp_path: Path, name: str, here: bool) -> None:
    ((where, message, hint),) = said_of(name, tmp_path, here=here)
    assert where == "d.yaml:4"
    assert repr(str(tmp_path / name)) in message
    assert "aegis gateway keys add" in str(hint)
    add_key(tmp_path / name, "alice")
    (tmp_path / name).chmod(0o640)
    ((where, message, hint),) = said_of(name, tmp_path, here=here)
    assert "others may read these keys" in message
    assert str(hint).startswith("chmod 600 -- ")
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("here", [True, False])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, here: bool) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "."):
        ((_, message, _),) = said_of(name, tmp_path, here=here)
        assert "is no file" in message or "Is a directory" in message


@pytest.mark.parametrize("here", [True, False])
def test_every_wrong_line_is_told(tmp_path: Path, here: bool) -> None:
    file = tmp_path / "keys"
    add_key(file, "alice")
    file.write_text(file.read_text() + "secret-in-clear\n" + file.read_text())
    found = said_of("keys", tmp_path, here=here)
    assert [message.split(": ")[1] for _, message, _ in found] == [f"{file}:2", f"{file}:3"]


def test_a_home_and_a_null_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    add_key(tmp_path / "keys", "alice")
    for here in (True, False):
        assert said_of("~/keys", Path("/"), here=here) == []
        assert said_of("a\0b", tmp_path, here=here)


def test_without_a_gateway_nobody_looks(tmp_path: Path) -> None:
    assert said_of("missing", tmp_path, gateways=0) == []


def test_launch_and_submit_refuse_before_they_start(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text(
        "model: m\nengine: sim\nplatform: local\nlog_dir: logs\ngateways: 1\ngateway_keys: missing\n"
    )
    for command in ("launch", "submit"):
        said = aegis(command, "--config", "d.yaml")
        assert said.code == 2
        assert said.out == ""
        assert said.err.startswith("error: d.yaml:6: `gateway_keys`: the keys in ")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d.yaml"]


def test_more_gateways_than_nodes_are_refused_before_anything_starts(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text("model: m\nengine: sim\nplatform: local\nlog_dir: logs\ngateways: 2\n")
    for command in (("launch",), ("submit",), ("submit", "--dry-run")):
        said = aegis(*command, "--config", "d.yaml")
        assert said.code == 2
        assert said.err.startswith("error: d.yaml:5: 2 gateways on 1 node: a node has one at most")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d.yaml"]
