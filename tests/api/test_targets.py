"""Servers of an endpoints file or a registry, and that they are followed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.targets import (
    POLL_SECONDS,
    Target,
    Targets,
    ask_all,
    models_of,
    parse_endpoints,
    read_endpoints,
)
from aegis.errors import ConfigError, RegistryUnreachable, SiteError
from aegis.files import write_atomically
from aegis.registry.client import RegistryClient
from aegis.registry.model import NO_ENGINE
from tests.api.conftest import Sim, Site, wait_until
from tests.ports import free_port
from tests.registry.conftest import push, report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "a b", "a;b", "$(x)", "a'b", 'a"b', "a\nb"


def test_addresses() -> None:
    assert Target("node1", 8000, ("m",)).base_url == "http://node1:8000"
    assert Target("::1", 8000, ()).base_url == "http://[::1]:8000"


def test_lines_are_read_in_order_and_once() -> None:
    text = "\ufeffn1:8000\n\n# comment\n n2:8001  # fast\n[::1]:8002\nn1:8000\r\n".removeprefix("\ufeff")
    assert parse_endpoints(text, "f") == (("n1", 8000), ("n2", 8001), ("::1", 8002))


@pytest.mark.parametrize(
    "line",
    [":80", "n1", "n1:", "n1:0", "n1:65536", "n1:000000080", "n1:8o", "http://n1:80", "a b:80", "n1:²"],
)
def test_lines_that_are_no_endpoints_are_all_told(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoints(f"n1:8000\n{line}\n{line}", "list.txt")
    assert caught.value.message.count("list.txt:") == 2
    assert "list.txt:2: " in caught.value.message
    assert "list.txt:3: " in caught.value.message


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_endpoints(text, "f")
    except ConfigError:
        return
    assert all(host.isascii() and 0 < port < 65536 for host, port in found)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_endpoints(tmp_path / "none; $(x)")


def test_a_server_tells_its_models(sim: Callable[..., Sim], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = sim("--served-model-name", "one", "two; $(x)", "--api-key", "secret")
    assert models_of("127.0.0.1", server.port, "secret").models == ("one", "two; $(x)")
    with pytest.raises(SiteError, match="HTTP 401") as caught:
        models_of("127.0.0.1", server.port)
    assert caught.value.hint == "set VLLM_API_KEY"


def test_who_does_not_answer_is_told_apart(sim: Callable[..., Sim]) -> None:
    server, nobody = sim(), free_port()
    found = ask_all([("127.0.0.1", nobody), ("127.0.0.1", server.port)])
    assert [target.port for target in found.targets] == [server.port]
    assert found.failures == {
        f"127.0.0.1:{nobody}": f"127.0.0.1:{nobody} does not answer: Connection refused"
    }


def test_what_is_no_server_of_models(site: Site) -> None:
    with pytest.raises(SiteError, match="HTTP 404"):
        models_of("127.0.0.1", site.port)
    for host in HOSTILE:
        with pytest.raises(SiteError):
            models_of(host, 1)


def test_a_file_is_followed(sim: Callable[..., Sim], tmp_path: Path) -> None:
    first, second = sim(), sim()
    file = tmp_path / "endpoints.txt"
    file.write_text(f"127.0.0.1:{first.port}\n127.0.0.1:{free_port()}\n")
    with Targets.from_file(file) as targets:
        revision, now = targets.now()
        assert [target.port for target in now] == [first.port]
        assert "does not answer" in targets.problem
        write_atomically(file, f"127.0.0.1:{second.port}\n127.0.0.1:{first.port}\n")
        revision, now = targets.wait(revision, 30)
        assert [target.port for target in now] == [second.port, first.port]
        file.unlink()
        wait_until(lambda: "cannot be read" in targets.problem)
        assert targets.now() == (revision, now)
        assert targets.wait(revision, 0.01) == (revision, now)


def test_a_registry_is_followed(site: Site) -> None:
    client = site.client()
    client.push(
        push(
            "n1",
            report("a-0", model="m", metadata={"node": "n1"}),
            report("a-1", status="starting"),
            report("a-2", metadata={"rank": 1}),
            report("a-3", port=0),
        )
    )
    with Targets.from_registry(client) as targets:
        revision, now = targets.now()
        assert now == (Target("h", 8000, ("m",), "n1", "a-0"),)
        client.push(push("n1", report("a-0", status="failed"), report("a-1")))
        _, now = targets.wait(revision, 30)
        assert now == (Target("h", 8000, (), "h", "a-1"),)


def test_what_stands_before_servers_or_tells_of_itself_is_none(site: Site) -> None:
    client = site.client()
    others = [report(name, service_type=name) for name in sorted(NO_ENGINE)]
    client.push(push("n", report("a-0"), report("b", status="draining"), *others))
    targets = Targets.from_registry(client)
    assert [each.instance for each in targets.now()[1]] == ["a-0"]
    assert [each.url for each in targets.registries] == [site.url]


def test_changes_arrive_at_once(site: Site) -> None:
    client = site.client()
    began = time.monotonic()
    with Targets.from_registry(client) as targets:
        for number in range(20):
            revision, _ = targets.now()
            client.push(push("n", report(f"a-{number}")))
            assert targets.wait(revision, 30)[0] != revision
    assert time.monotonic() - began < 20 * POLL_SECONDS, "nobody sleeps between two watches"


def test_a_registry_that_is_not_there() -> None:
    with pytest.raises(RegistryUnreachable):
        Targets.from_registry(RegistryClient(f"http://127.0.0.1:{free_port()}"))
