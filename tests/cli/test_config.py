"""`aegis config`: what a file comes to, and what is said of a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.spec.document import parse_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Outcome

DEPLOYMENTS = Path(__file__).parents[1] / "fixtures" / "deployments"
MALFORMED = DEPLOYMENTS / "malformed"


@pytest.mark.parametrize("file", sorted(MALFORMED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_malformed_file_gets_its_report(
    aegis: Callable[..., Outcome], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(MALFORMED)
    outcome = aegis("config", "show", "--config", file.name)
    assert outcome.err == file.with_suffix(".txt").read_text(encoding="utf-8")
    assert (outcome.code, outcome.out) == (2, "")


def test_every_report_has_its_file() -> None:
    stems = [sorted(file.stem for file in MALFORMED.glob(kind)) for kind in ("*.yaml", "*.txt")]
    assert stems[0] == stems[1]
    assert len(stems[0]) >= 12


@pytest.mark.parametrize("name", ["single", "several"])
@pytest.mark.parametrize("origin", [[], ["--origin"]])
def test_the_output_is_a_deployment_file_that_means_the_same(
    aegis: Callable[..., Outcome], name: str, origin: list[str], tmp_path: Path
) -> None:
    first = aegis("config", "show", "--config", str(DEPLOYMENTS / f"{name}.yaml"), *origin)
    assert (first.code, first.err) == (0, "")
    again = tmp_path / "again.yaml"
    again.write_text(first.out)
    second = aegis("config", "show", "--config", str(again))
    assert parse_document(first.out, "x").value == parse_document(second.out, "x").value


def test_origins_are_shown_beside_the_values(
    aegis: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEPLOYMENTS)
    monkeypatch.setenv("AEGIS_ACCOUNT", "Other")
    out = aegis("config", "show", "--config", "single.yaml", "--origin", "--instances", "4").out.splitlines()
    assert "account: Other  # AEGIS_ACCOUNT" in out
    assert 'walltime: "01:00:00"  # single.yaml:7' in out
    assert "queue: null  # default" in out
    assert "    instances: 4  # --instances" in out


def test_a_token_of_the_file_is_warned_of_and_not_shown(
    aegis: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("model: m\nhf_token: hf_secret\n")
    for form in ([], ["--json"], ["--origin"]):
        outcome = aegis("config", "show", "--config", str(file), *form)
        assert outcome.code == 0
        assert "hf_secret" not in outcome.out + outcome.err
        assert f"{file}:2: a token in a file" in outcome.err


def test_a_hostile_file_name_is_no_trouble(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "a\nmodel: evil #$(x)'.yaml"
    file.write_text("model: m\n")
    outcome = aegis("config", "show", "--config", str(file), "--origin")
    assert parse_document(outcome.out, "x").value["models"][0]["model"] == "m"
    file.write_text("bogus: m\n")
    assert aegis("config", "show", "--config", str(file)).code == 2


@pytest.mark.parametrize("name", ["nowhere.yaml", "nowhere/f.yaml"])
def test_a_missing_file_is_a_configuration_error(aegis: Callable[..., Outcome], name: str) -> None:
    outcome = aegis("config", "show", "--config", name)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {name}: cannot be read: No such file")


def test_the_schema_is_json(aegis: Callable[..., Outcome]) -> None:
    schema = json.loads(aegis("config", "schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"model", "models", "walltime", "hf_token"} <= schema["properties"].keys()
