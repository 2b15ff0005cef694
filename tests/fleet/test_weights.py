from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import ConfigError
from aegis.fleet.order import Weights
from aegis.fleet.weights import find_weights, path_of
from aegis.spec.deployment import ModelEntry

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


def test_a_path_is_always_there() -> None:
    assert path_of({"PATH": "/a"}) == "/a"
    assert path_of({"PATH": ""}) == path_of({}) == os.defpath
