"""`aegis platform`: the profiles that there are, and one of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aegis.spec.document import parse_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

NAMES = ["aurora", "frontier", "generic-pbs", "generic-slurm", "killarney", "local", "perlmutter", "polaris"]


def test_list(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("platform", "list")
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["NAME", "SCHEDULER", "DEVICES/NODE", "MEMORY", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == NAMES
    assert rows[0].split()[:7] == ["aurora", "pbs", "12", "x", "tile", "64", "GiB"]
    assert (outcome.code, outcome.err) == (0, "")


def test_list_as_json(aegis: Callable[..., Outcome]) -> None:
    listed = json.loads(aegis("platform", "list", "--json").out)
    assert [platform["name"] for platform in listed] == NAMES
    assert listed[0]["node"]["devices"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_a_profile(
    aegis: Callable[..., Outcome], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = aegis("platform", "show", name)
    monkeypatch.setenv("AEGIS_PLATFORM_DIR", str(tmp_path))
    (tmp_path / f"{name}.yaml").write_text(outcome.out)
    assert aegis("platform", "show", name).out == outcome.out
    assert json.loads(aegis("platform", "show", name, "--json").out) == parse_document(outcome.out, "x").value


def test_ones_own_profile_is_listed_and_shown(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_PLATFORM_DIR", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(
        'extends: polaris\ndescription: "My\\ttwo\\nlines"\nnode: {devices: 2}\n'
    )
    (row,) = [row for row in aegis("platform", "list").out.splitlines() if row.startswith("mine ")]
    assert "2 x " in row
    assert row.endswith("My\\ttwo\\nlines")
    assert "devices: 2\n" in aegis("platform", "show", "mine").out
    assert "devices: 2\n" in aegis("platform", "show", str(tmp_path / "mine.yaml")).out


def test_this_machine_is_shown_without_a_name(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_PLATFORM_DIR", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("hostnames: ['*']\n")
    assert aegis("platform", "show").out.startswith("name: mine\n")


def test_an_unknown_name(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("platform", "show", "auora")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: NAME: unknown platform `auora` (did you mean `aurora`?)\n"


def test_a_broken_profile_is_named(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_PLATFORM_DIR", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("scheduler: [\n")
    for command in (["list"], ["show", "mine"]):
        outcome = aegis("platform", *command)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: {tmp_path}/mine.yaml:")
    assert aegis("platform", "show", "aurora").code == 0
