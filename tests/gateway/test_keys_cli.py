"""`aegis gateway keys` as people and scripts use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from click.testing import CliRunner

from aegis.cli.gateway_keys import keys
from aegis.errors import AegisError, ConfigError
from aegis.gateway.keys import Client, Keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = [
    "",
    " ",
    "a b",
    "a\nb",
    "a\n",
    "$(touch x)",
    "a;b",
    "'",
    '"',
    "-x",
    ".x",
    "../x",
    "ä",
    "\x1b[1m",
    "x" * 65,
]


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Done]:
    def call(*words: str, env: dict[str, str] | None = None) -> Done:
        result = CliRunner().invoke(keys, words, env=env)
        if isinstance(result.exception, AegisError):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return call


def test_from_the_first_key_to_the_last(run: Callable[..., Done], tmp_path: Path) -> None:
    file = str(tmp_path / "keys with space")
    limits = ["--model", "meta-llama/*", "--model", "tiny", "--requests-per-minute", "60"]
    until = ["--tokens-per-minute", "1000", "--until", "2999-01-31T18:00Z"]
    made = run("add", "alice", "--file", file, *limits, *until)
    assert made.code == 0
    key = made.out.removesuffix("\n")
    assert key.startswith("aegis-")
    assert key not in made.err
    assert isinstance(Keys(tmp_path / "keys with space", 0.0).check(f"Bearer {key}", "tiny", 0.0), Client)
    run("add", "Bob@site.org", "--file", file)
    listed = run("list", env={"AEGIS_GATEWAY_KEYS": file})
    rows = [line.split() for line in listed.out.splitlines()]
    assert rows[0] == ["NAME", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "UNTIL"]
    assert rows[1] == ["Bob@site.org", "all", "-", "-", "-"]
    assert rows[2][:5] == ["alice", "meta-llama/*", "tiny", "60", "1000"]
    as_json = json.loads(run("list", "--file", file, "--json").out)
    assert as_json[1] == {
        "name": "alice",
        "models": ["meta-llama/*", "tiny"],
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "until": "2999-01-31T18:00:00Z",
    }
    assert as_json[0].keys() == as_json[1].keys()
    for name in ("alice", "Bob@site.org"):
        assert run("remove", name, "--file", file).out == ""
    assert json.loads(run("list", "--file", file, "--format", "json").out) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_none(run: Callable[..., Done], tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a key"):
        run("add", "--file", str(tmp_path / "keys"), "--", name)
    assert not (tmp_path / "keys").exists()


def test_a_name_that_is_taken(run: Callable[..., Done], tmp_path: Path) -> None:
    file = str(tmp_path / "keys")
    run("add", "alice", "--file", file)
    before = (tmp_path / "keys").read_bytes()
    with pytest.raises(ConfigError, match="has a key 'alice' already"):
        run("add", "alice", "--file", file)
    assert (tmp_path / "keys").read_bytes() == before


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("2020-01-01", "in the past"),
        ("tomorrow", "neither a date"),
        ("99999999-00:00:00", "--until"),
        ("9" * 400, "--until"),
    ],
)
def test_moments_that_are_none(run: Callable[..., Done], tmp_path: Path, until: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run("add", "alice", "--file", str(tmp_path / "keys"), "--until", until)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "flags", [["--requests-per-minute", "0"], ["--tokens-per-minute", "-5"], ["--model", ""]]
)
def test_limits_that_are_none(run: Callable[..., Done], tmp_path: Path, flags: list[str]) -> None:
    try:
        done = run("add", "alice", "--file", str(tmp_path / "keys"), *flags)
    except ConfigError:
        return
    assert done.code == 2


def test_a_place_that_cannot_be_written(run: Callable[..., Done], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        run("add", "alice", "--file", str(tmp_path / "missing" / "keys"))


def test_expired_keys_are_shown_as_such(run: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(json.dumps({"name": "old", "sha256": "0" * 64, "until": "2020-01-01T00:00:00Z"}))
    assert "(expired)" in run("list", "--file", str(file)).out
