from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError, ConfigError
from aegis.fleet.order import Weights
from aegis.fleet.weights import download, find_weights, path_of
from aegis.spec.deployment import Deployment, ModelEntry

if TYPE_CHECKING:
    from pathlib import Path


def entry(model: str = "org/m", **keys: Any) -> ModelEntry:
    return ModelEntry(model=model, **keys)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache entry with one broken and two complete snapshots."""
    root = tmp_path / "models--org--m"
    for name in ("aaa", "bbb", "ccc"):
        (root / "snapshots" / name).mkdir(parents=True)
        if name != "ccc":
            (root / "snapshots" / name / "config.json").write_text("{}")
    (root / "refs").mkdir()
    return root


def test_a_name_of_the_hub_stays() -> None:
    assert find_weights(entry(), skip_staging=False) == Weights("org/m", local=False)


def test_a_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's $(x)"
    folder.mkdir()
    assert find_weights(entry(str(folder)), skip_staging=False) == Weights(str(folder), local=True)
    source = entry(model_source=str(folder))
    assert find_weights(source, skip_staging=False) == Weights(str(folder), local=True)
    assert find_weights(source, skip_staging=True) == Weights("org/m", local=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights(entry("~/it's $(x)"), skip_staging=False).path == str(folder)


def test_a_relative_directory_cannot_become_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "-x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_weights(entry("./-x"), skip_staging=False) == Weights(str(tmp_path / "-x"), local=True)
    found = find_weights(entry(model_source="-x"), skip_staging=False)
    assert found == Weights(str(tmp_path / "-x"), local=True)


@pytest.mark.parametrize("path", ["/no/such", "./no", "~nobody-of-that-name/m", "/no\nsuch", "/a\0b"])
def test_a_missing_directory_is_told(path: str) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        find_weights(entry(path), skip_staging=False)
    with pytest.raises(ConfigError, match="model_source of org/m is not there"):
        find_weights(entry(model_source=path), skip_staging=False)


def test_the_simulated_engine_needs_no_weights() -> None:
    assert not find_weights(entry(engine="sim", model_source="/no/such"), skip_staging=False).local
    assert find_weights(entry("/no/such", engine="sim"), skip_staging=False).path == "/no/such"


def test_a_cache_entry_gives_the_snapshot_it_points_to(cache: Path) -> None:
    (cache / "refs" / "main").write_text("aaa\n")
    found = find_weights(entry(model_source=str(cache)), skip_staging=False)
    assert found == Weights(str(cache / "snapshots" / "aaa"), local=True)


@pytest.mark.parametrize("main", [None, "ccc", "gone", "../../.."])
def test_a_cache_entry_that_points_nowhere_gives_a_complete_one(cache: Path, main: str | None) -> None:
    if main is not None:
        (cache / "refs" / "main").write_text(main)
    found = find_weights(entry(model_source=str(cache)), skip_staging=False)
    assert found.path == str(cache / "snapshots" / "bbb")


def test_a_snapshot_of_dangling_links_is_not_complete(cache: Path) -> None:
    for name in ("aaa", "bbb"):
        config = cache / "snapshots" / name / "config.json"
        config.unlink()
        config.symlink_to("/no/such/blob")
    with pytest.raises(ConfigError, match="without a complete snapshot"):
        find_weights(entry(model_source=str(cache)), skip_staging=False)


# ------------------------------------------------------------------------------------------- download


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


def fetch(venv: Path | str, *entries: ModelEntry, token: str | None = None, **keys: Any) -> list[str]:
    said: list[str] = []
    deployment = Deployment(models=entries, venv=str(venv), hf_home="/hf", **keys)
    download(deployment, {"PATH": os.defpath}, token, said.append)
    return said


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_only_what_asks_for_it_is_downloaded(venv: Path, tmp_path: Path) -> None:
    said = fetch(
        venv,
        entry("no"),
        entry("org/yes $(x)", download_weights=True),
        entry("simulated", download_weights=True, engine="sim"),
        entry("placed", download_weights=True, model_source=str(tmp_path / "new")),
        entry("there", download_weights=True, model_source=str(venv)),
        token="t0k",
    )
    assert said == ["downloading org/yes $(x)", "downloading placed"]
    assert calls(tmp_path) == [
        "download|org/yes $(x)|/hf|t0k|",
        f"download|placed|--local-dir|{tmp_path / 'new'}|/hf|t0k|",
    ]


def test_nothing_is_downloaded_when_staging_is_skipped(venv: Path, tmp_path: Path) -> None:
    assert fetch(venv, entry(download_weights=True), skip_staging=True) == []
    assert calls(tmp_path) == []


def test_a_failed_download_has_the_last_word(venv: Path) -> None:
    with pytest.raises(AegisError, match="org/bad cannot be downloaded: 404: no such model"):
        fetch(venv, entry("org/bad", download_weights=True))


@pytest.mark.parametrize("broken", ["missing", "not executable"])
def test_no_program_to_download_with(venv: Path, broken: str) -> None:
    program = venv / "bin" / "hf"
    if broken == "missing":
        program.unlink()
    else:
        program.chmod(0o644)
    with pytest.raises(AegisError, match="cannot be run") as caught:
        fetch(venv, entry(download_weights=True))
    assert caught.value.hint


def test_a_path_is_always_there() -> None:
    assert path_of({"PATH": "/a"}) == "/a"
    assert path_of({"PATH": ""}) == path_of({}) == os.defpath
