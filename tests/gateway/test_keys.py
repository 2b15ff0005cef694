"""Who may ask, how often, and what happens to a file under a running gateway."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError, NotFoundError
from aegis.gateway.keyfile import PREFIX, add_key, digest, read_keys, remove_key
from aegis.gateway.keys import Bucket, Client, Keys
from aegis.gateway.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

T = 1_800_000_000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


class Gateway:
    """Keys, and what they said."""

    def __init__(self, file: Path) -> None:
        self.said: list[str] = []
        self.keys = Keys(file, T, warn=self.said.append)
        self.now = T

    def ask(self, key: str | None, model: str | None = "m") -> Client | int:
        found = self.keys.check(key and f"Bearer {key}", model, self.now)
        return found.status if isinstance(found, Refusal) else found

    def asks(self, key: str, model: str | None = "m") -> Client:
        found = self.ask(key, model)
        assert isinstance(found, Client)
        return found

    def refused(self, key: str, model: str = "m") -> Refusal:
        found = self.keys.check(f"Bearer {key}", model, self.now)
        assert isinstance(found, Refusal)
        return found


def opened(file: Path, **limits: Any) -> tuple[Gateway, str]:
    key = add_key(file, "alice", **limits)
    return Gateway(file), key


def test_a_key_that_was_added_is_known(file: Path) -> None:
    gateway, key = opened(file)
    client = gateway.asks(key)
    assert client.name == "alice"
    assert gateway.keys.names == ("alice",)
    assert len(key) >= len(PREFIX) + 43  # 256 bits
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER ", " Bearer"])
def test_the_scheme_is_a_word_in_any_case(file: Path, scheme: str) -> None:
    gateway, key = opened(file)
    assert isinstance(gateway.keys.check(f"{scheme} {key} ", "m", T), Client)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        ("Basic YTpi", "missing_api_key"),
        ("Bearer aegis-wrong", "invalid_api_key"),
        ("Bearer \udcff\u20ac", "invalid_api_key"),
    ],
)
def test_who_is_not_known_is_refused(file: Path, header: str | None, code: str) -> None:
    gateway, _ = opened(file)
    refusal = gateway.keys.check(header, "m", T)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (401, code)
    assert set(json.loads(refusal.body)["error"]) == {"message", "type", "param", "code"}


def test_the_hash_itself_opens_nothing(file: Path) -> None:
    gateway, key = opened(file)
    assert gateway.ask(digest(key)) == 401


def test_models_by_globs(file: Path) -> None:
    gateway, key = opened(file, models=("meta-llama/*", "tiny"))
    assert gateway.ask(key, "meta-llama/Llama-3.1-8B") == gateway.ask(key, "tiny") == gateway.ask(key, None)
    refusal = gateway.refused(key, "tiny2")
    assert (refusal.status, refusal.code, refusal.param) == (403, "model_not_allowed", "model")


def test_requests_per_minute(file: Path) -> None:
    gateway, key = opened(file, requests_per_minute=2)
    gateway.asks(key)
    gateway.asks(key)
    refusal = gateway.refused(key)
    assert (refusal.status, refusal.code, refusal.retry_after) == (429, "rate_limit_exceeded", 30)
    gateway.asks(key, None)  # a list of models is no work
    gateway.now += 29
    assert gateway.ask(key) == 429
    gateway.now += 1
    gateway.asks(key)
    assert gateway.ask(key) == 429


def test_tokens_per_minute_count_when_they_are_known(file: Path) -> None:
    gateway, key = opened(file, tokens_per_minute=600, requests_per_minute=100)
    client = gateway.asks(key)
    gateway.now += 60
    gateway.keys.spend(client, 1200, gateway.now)
    refusal = gateway.refused(key)
    assert (refusal.status, refusal.kind) == (429, "tokens")
    assert refusal.retry_after == pytest.approx(60.1)
    assert client.requests is not None
    assert client.requests.level == 100  # what was refused costs nothing
    gateway.now += 60.2
    gateway.asks(key)


def test_a_key_ends(file: Path) -> None:
    gateway, key = opened(file, until=datetime.fromtimestamp(T + 10, UTC))
    gateway.now += 9
    gateway.asks(key)
    gateway.now += 1
    assert gateway.ask(key) == 401
    assert gateway.refused(key).code == "expired_api_key"


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 50)), max_size=50),
)
def test_a_bucket_gives_no_more_than_it_may(per_minute: int, events: list[tuple[float, int]]) -> None:
    now = latest = T
    bucket = Bucket(per_minute, per_minute, now)
    taken, gained = 0, 0.0
    for step, wanted in events:
        gained += max(0.0, step)
        now += step
        latest = max(latest, now)
        for _ in range(wanted):
            if bucket.wait(now) == 0:
                bucket.level -= 1
                taken += 1
        assert 0 <= bucket.wait(now) <= 60 / per_minute + 1e-6
    assert taken <= per_minute + gained * per_minute / 60 + 1e-6


def test_a_changed_file_is_read_again_within_a_second(file: Path) -> None:
    gateway, alice = opened(file)
    bob = add_key(file, "bob")
    assert gateway.ask(bob) == 401  # not looked yet
    gateway.now += 1
    gateway.asks(bob)
    remove_key(file, "alice")
    gateway.now += 1
    assert gateway.ask(alice) == 401
    assert gateway.said == []


def test_limits_go_on_over_a_change(file: Path) -> None:
    gateway, key = opened(file, requests_per_minute=1, tokens_per_minute=100)
    client = gateway.asks(key)
    add_key(file, "bob")
    gateway.now += 1
    assert gateway.ask(key) == 429
    gateway.now += 60
    assert gateway.asks(key) is not client
    gateway.keys.spend(client, 1000, gateway.now)  # an answer that began before the change
    gateway.now += 60
    assert gateway.refused(key).kind == "tokens"


@pytest.mark.parametrize("damage", ["garbage", "gone", "open to others", "no file", "half"])
def test_a_broken_file_changes_nothing_and_is_told_of_once(file: Path, damage: str) -> None:
    gateway, key = opened(file)
    good = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(b"garbage\n" * 3)
    elif damage == "half":
        file.write_bytes(good[:-20])
    elif damage == "open to others":
        file.write_bytes(good + good.replace(b"alice", b"eve"))
        file.chmod(0o644)
    else:
        file.unlink()
        if damage == "no file":
            file.mkdir()
    for _ in range(3):
        gateway.now += 1
        gateway.asks(key)
    assert len(gateway.said) == 1
    assert "the keys stay as they were" in gateway.said[0]
    assert key not in gateway.said[0]
    if damage == "no file":
        file.rmdir()
    file.unlink(missing_ok=True)
    other = add_key(file, "bob")
    gateway.now += 1
    gateway.asks(other)
    assert gateway.ask(key) == 401
    assert len(gateway.said) == 1


def test_a_mode_that_was_mended_is_noticed(file: Path) -> None:
    gateway, _ = opened(file)
    bob = add_key(file, "bob")
    file.chmod(0o644)
    gateway.now += 1
    assert gateway.ask(bob) == 401
    file.chmod(0o600)
    gateway.now += 1
    gateway.asks(bob)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": "a"}', "keys:1: Object missing required field `sha256`"),
        (b"\n\nx", "keys:3: "),
        (b'{"name": "a", "sha256": "%b", "modles": []}' % (b"0" * 64), "modles"),
        (b'{"name": "a b", "sha256": "%b"}' % (b"0" * 64), "`$.name`"),
        (b'{"name": "a\\n", "sha256": "%b"}' % (b"0" * 64), "`$.name`"),
        (b'{"name": "a", "sha256": "%b", "requests_per_minute": 0}' % (b"0" * 64), "requests_per_minute"),
        (b'{"name": "a", "sha256": "%b", "until": "2027-01-01T00:00:00"}' % (b"0" * 64), "until"),
        (b'{"name": "\xff", "sha256": "x"}', "keys:1: "),
        ((b'{"name": "a", "sha256": "%b"}\n' % (b"0" * 64)) * 2, "keys:2: 'a' stands in line 1 already"),
    ],
)
def test_lines_that_are_wrong_are_named(file: Path, content: bytes, words: str) -> None:
    file.touch(0o600)
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Keys(file, T)
    assert words in error.value.message


@given(data=st.binary() | st.text().map(str.encode))
def test_any_file_is_keys_or_an_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any-keys"
    file.touch(0o600)
    file.write_bytes(data)
    with contextlib.suppress(ConfigError):
        read_keys(file)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as error:
        Keys(file, T)
    assert "keys add" in (error.value.hint or "")
    with pytest.raises(NotFoundError):
        remove_key(file, "alice")


def test_many_writers_lose_nothing(file: Path) -> None:
    names = [f"key{number}" for number in range(12)]
    threads = [threading.Thread(target=add_key, args=(file, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in read_keys(file).keys) == sorted(names)


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    add_key(link, "alice")
    assert link.is_symlink()
    assert [key.name for key in read_keys(file).keys] == ["alice"]
