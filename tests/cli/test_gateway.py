"""`aegis gateway` before it listens, and `aegis registry serve --federate`: what is named, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aegis.cli import gateway as module
from aegis.spec.deployment import ENDPOINTS, GATEWAY_PORT
from tests.fleet.jobs_site import RUNNING, Servers, Site, command_line
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aegis.gateway.settings import Settings
    from aegis.gateway.sources import Sources

    from .conftest import Outcome


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "site")
    made.folder.mkdir()
    command_line(made, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    return made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Sources]]:
    """What the gateway was started with."""
    started: list[tuple[Settings, Sources]] = []

    def serve(settings: Settings, sources: Sources, *_: Any) -> None:
        started.append((settings, sources))

    monkeypatch.setattr("aegis.gateway.server.serve", serve)
    return started


def test_help_names_both_commands(aegis: Callable[..., Outcome]) -> None:
    help_ = aegis("gateway", "--help").out
    assert "[HANDLE|SERVICE]..." in help_
    assert "Commands:\n  keys  Make, list and take back" in help_
    assert aegis("gateway", "keys", "--help").out.partition("aegis gateway keys [OPTIONS]")[1]


def test_nothing_is_named(site: Site, aegis: Callable[..., Outcome]) -> None:
    done = aegis("gateway")
    assert done.code == 2
    assert "error: no servers are named" in done.err
    assert "--registry-host HOST" in done.err


def test_what_nobody_has_heard_of(site: Site, aegis: Callable[..., Outcome]) -> None:
    site.job("slurm://11", RUNNING, service="chat")
    done = aegis("gateway", "chta; $(x)\x1b[31m")
    assert done.code == 4
    assert "there is no job and no service `chta; $(x)" in done.err
    assert "\x1b[31m`" not in done.err
    assert "chat" in aegis("gateway", "chta").err.partition("hint:")[2]
    assert aegis("registry", "serve", "--port", "0", "--federate", "chta").code == 4


def test_words_that_are_wrong(site: Site, aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    assert aegis("gateway", "--registry-url", "http://x").code == 2
    assert aegis("gateway", "http://x/y").code == 2
    (tmp_path / "list").write_text("a b\n")
    done = aegis("gateway", "--endpoints-file", "list")
    assert (done.code, "list:1: 'a b' is no host:port" in done.err) == (2, True)
    done = aegis("gateway", "--endpoints-file", "list", "--remote", "me@there")
    assert (done.code, "says nothing of servers behind --remote" in done.err) == (2, True)
    assert aegis("gateway", "--port", "70000", "x").code == 2
    assert aegis("gateway", "--attempts", "0", "x").code == 2
    done = aegis("registry", "serve", "--remote", "me@there")
    assert (done.code, "name them with --federate" in done.err) == (2, True)
    assert aegis("registry", "serve", "--federate", "http://x").code == 2


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def test_limits_and_files_reach_the_gateway(
    site: Site,
    served: list[tuple[Settings, Sources]],
    servers: Servers,
    aegis: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    site.job("slurm://11", RUNNING, service="chat", state="READY", registry_url=servers.url)
    limits = ("--max-body", "2", "--outstanding", "3", "--queue-seconds", "4.5", "--host", "::1")
    done = aegis("gateway", "chat", *limits, "--access-log", "-", "--keys", "k")
    assert done.code == 0
    settings, sources = served[0]
    assert (settings.max_body, settings.policy.outstanding, settings.queue_seconds) == (2 * 2**20, 3, 4.5)
    assert (settings.host, settings.port, str(settings.access_log)) == ("::1", GATEWAY_PORT, "-")
    assert (settings.upstream_key, str(settings.keys_file)) == ("secret", "k")
    assert len(sources.names) == 1
    assert "secret" not in done.err + done.out
    warning = "anybody who reaches it may ask"
    assert warning not in done.err
    assert warning in aegis("gateway", "chat").err, "the key is the gateway's, not theirs"
    assert warning not in aegis("gateway", "chat", "--host", "127.0.0.1").err


@pytest.mark.parametrize(
    "case",
    [
        (("chat",), {"AEGIS_REGISTRY_HOST": "h"}, 1),
        ((), {"AEGIS_REGISTRY_HOST": "127.0.0.1"}, 1),
        ((), {"AEGIS_REGISTRY_URL": "http://127.0.0.1:{port}"}, 1),
        (("chat", "--registry-port", "{port}"), {}, 2),
        (("http://127.0.0.1:{port}", "--registry-url", "http://127.0.0.1:{port}"), {}, 1),
        (("--registry-url", "http://127.0.0.1:{port}", "--registry-url", "http://[::1]:{port}"), {}, 2),
    ],
)
def test_flags_win_over_the_environment(
    site: Site,
    served: list[tuple[Settings, Sources]],
    aegis: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[tuple[str, ...], dict[str, str], int],
) -> None:
    args, environ, count = case
    port = str(free_port())
    site.job("slurm://11", RUNNING, service="chat", state="READY", registry_url=f"http://127.0.0.1:{port}")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(port=port))
    assert aegis("gateway", *(each.format(port=port) for each in args)).code == 0
    assert len(served[0][1].names) == count


def test_the_usual_endpoints_file_counts_where_nothing_is_named(
    site: Site, served: list[tuple[Settings, Sources]], aegis: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / ENDPOINTS).write_text("")
    assert aegis("gateway").code == 0
    assert served[0][1].names == (ENDPOINTS,)
