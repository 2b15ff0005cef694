"""What a deployment comes to on its nodes, before anything is moved."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError
from aegis.fleet.staging import fetch
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.staging.download import BEGUN

if TYPE_CHECKING:
    from pathlib import Path


def entry(model: str = "org/m", **keys: Any) -> ModelEntry:
    return ModelEntry(model=model, **keys)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose `hf` writes down how it was called, and fails on `bad`."""
    program = tmp_path / "venv" / "bin" / "hf"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s|" "$@" "$HF_HOME" "$HF_TOKEN" >> "{tmp_path}/calls"; echo >> "{tmp_path}/calls"\n'
        'case "$2" in *bad*) echo first >&2; echo "404: no such model" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    return tmp_path / "venv"


def fetched(venv: Path | str, *entries: ModelEntry, token: str | None = None, **keys: Any) -> list[str]:
    said: list[str] = []
    deployment = Deployment(models=entries, venv=str(venv), hf_home="/hf", **keys)
    fetch(deployment, {"PATH": os.defpath}, token, said.append)
    return said


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_only_what_asks_for_it_is_downloaded(venv: Path, tmp_path: Path) -> None:
    for name, begun in (("there", False), ("cut off", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        if begun:
            (tmp_path / name / BEGUN).touch()
    said = fetched(
        venv,
        entry("no"),
        entry("org/yes $(x)", download_weights=True),
        entry("simulated", download_weights=True, engine="sim"),
        entry("placed", download_weights=True, model_source=str(tmp_path / "new")),
        entry("there", download_weights=True, model_source=str(tmp_path / "there")),
        entry("cut off", download_weights=True, model_source=str(tmp_path / "cut off")),
        token="t0k",
    )
    assert said == ["downloading org/yes $(x)", "downloading placed", "downloading cut off"]
    assert calls(tmp_path) == [
        "download|org/yes $(x)|/hf|t0k|",
        f"download|placed|--local-dir|{tmp_path / 'new'}|/hf|t0k|",
        f"download|cut off|--local-dir|{tmp_path / 'cut off'}|/hf|t0k|",
    ]


def test_a_failed_download_has_the_last_word(venv: Path) -> None:
    with pytest.raises(AegisError, match="org/bad cannot be downloaded: 404: no such model"):
        fetched(venv, entry("org/bad", download_weights=True))


@pytest.mark.parametrize("broken", ["missing", "not executable"])
def test_no_program_to_download_with(venv: Path, broken: str) -> None:
    program = venv / "bin" / "hf"
    if broken == "missing":
        program.unlink()
    else:
        program.chmod(0o644)
    with pytest.raises(AegisError, match="cannot be run") as caught:
        fetched(venv, entry(download_weights=True))
    assert caught.value.hint
