"""The session and its key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aegis.api.http import open_session, read_api_key
from aegis.api.targets import Target
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.api.conftest import Sim


def test_a_session_presents_its_key_and_knows_no_proxy(
    sim: Callable[..., Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    target = Target("127.0.0.1", sim("--api-key", "secret").port, ("m",))

    async def ask(api_key: str | None) -> int:
        async with (
            open_session(api_key=api_key) as session,
            session.get(f"{target.base_url}/v1/models") as response,
        ):
            return response.status

    assert [asyncio.run(ask(key)) for key in ("secret", None)] == [200, 401]


def test_a_key_is_of_the_file_then_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key; $(x)"
    file.write_text("of-file\n")
    file.chmod(0o600)
    environ = {"VLLM_API_KEY": "of-environment"}
    assert read_api_key(file, environ) == "of-file"
    assert read_api_key(None, environ) == "of-environment"
    assert read_api_key(None, {}) is None
    assert read_api_key(None, {"VLLM_API_KEY": ""}) is None


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read this key") as caught:
        read_api_key(file, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "two\nlines", "schlüssel", "a\rInjected: 1"])
def test_what_is_no_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content.encode())
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no key") as caught:
        read_api_key(file, {})
    assert not content or content not in str(caught.value)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_api_key(tmp_path / "none", {"VLLM_API_KEY": "x"})
