"""`aegis registry` as users run it: in a process, with its exit codes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import DEADLINE, Process, environment, push, report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Site

Run = subprocess.CompletedProcess[str]


def aegis(*arguments: str, token: str | None = None) -> Run:
    return subprocess.run(
        [sys.executable, "-m", "aegis", "registry", *arguments],
        capture_output=True,
        text=True,
        env=environment(token),
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def ask(site: Site) -> Callable[..., Run]:
    site.client().push(
        push(
            "n",
            report("b", model="m"),
            report("a", status="starting"),
            report("evil\x1b[31m\n\u202e", model="é"),
        )
    )
    return lambda *arguments: aegis(
        *arguments, "--registry-port", str(site.port), "--registry-host", "127.0.0.1"
    )


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_text_is_an_aligned_table_without_control_characters(ask: Callable[..., Run]) -> None:
    run = ask("list")
    assert run.returncode == 0
    assert run.stderr == ""
    header, *rows = run.stdout.splitlines()
    assert header.split() == ["SERVICE", "ID", "ADDRESS", "TYPE", "STATUS", "MODEL", "SEEN"]
    assert [row.split()[0] for row in rows] == ["a", "b", r"evil\x1b[31m\n\u202e"]
    column = header.index("STATUS")
    assert [row[column:].split()[0] for row in rows] == ["starting", "healthy", "healthy"]
    assert "\x1b" not in run.stdout


@pytest.mark.parametrize("flags", [["--format", "json"], ["--json"]])
def test_json_is_what_the_registry_sent(ask: Callable[..., Run], site: Site, flags: list[str]) -> None:
    run = ask("list", "--model", "m", *flags)
    assert run.stdout.encode() == site.ask("GET", "/services?model=m").body + b"\n"


def test_filters_reach_the_registry(ask: Callable[..., Run]) -> None:
    def found(*arguments: str) -> list[str]:
        return [service["service_id"] for service in json.loads(ask(*arguments, "--json").stdout)]

    assert found("list", "--status", "starting", "--type", "vllm") == ["a"]
    assert found("list-healthy", "--model", "m", "--timeout", "5") == ["b"]
    assert found("list-healthy", "--type", "sim") == []
    assert ask("count").stdout == "3\n"
    assert json.loads(ask("count", "--status", "healthy", "--format", "json").stdout) == {"count": 2}


def test_get(ask: Callable[..., Run]) -> None:
    run = ask("get", "b")
    assert run.returncode == 0
    assert "metadata.model  m" in run.stdout
    assert json.loads(ask("get", "b", "--json").stdout)["service_id"] == "b"


def test_url_wins_over_host_and_port(ask: Callable[..., Run], site: Site) -> None:
    assert aegis("count", "--registry-url", site.url, "--registry-port", "1").stdout == "3\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["get", "nobody"], 4),
        (["get", "$(touch x); '\n"], 4),
        (["list", "--status", "bogus"], 2),
        (["list-healthy", "--timeout", "-1"], 2),
        (["list-healthy", "--timeout", "nan"], 2),
        (["list", "--registry-url", "https://x:1"], 2),
        (["list", "--token-file", "/no/such/file"], 2),
        (["frobnicate"], 2),
    ],
)
def test_exit_codes(ask: Callable[..., Run], arguments: list[str], code: int) -> None:
    run = ask(*arguments)
    assert run.returncode == code
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", [["list"], ["list-healthy"], ["count"], ["get", "a"]])
def test_a_dead_registry_is_no_empty_list(dead_port: int, command: list[str]) -> None:
    run = aegis(*command, "--json", "--registry-url", f"http://127.0.0.1:{dead_port}")
    assert run.returncode == 3
    assert run.stdout == ""
    assert str(dead_port) in run.stderr
    assert "hint:" in run.stderr


def test_light_commands_stay_light(site: Site) -> None:
    program = (
        "import sys; from aegis.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'asyncio', 'aiohttp', 'rich', 'numpy', 'importlib.metadata'} & sys.modules.keys()))"
    )
    for arguments in (["--help"], ["list", "--registry-url", site.url, "--json"]):
        run = subprocess.run(
            [sys.executable, "-c", program, "registry", *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=DEADLINE,
            check=True,
        )
        assert run.stdout.splitlines()[-1] == "[]"


def test_serve_with_a_token(start: Callable[..., Process], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    registry = start("--token-file", str(file), "--protect-reads", token="from-environment")
    url = ["--registry-url", f"http://127.0.0.1:{registry.port}"]
    assert "anybody" not in registry.errors
    assert aegis("list", *url).returncode == 3
    assert "AEGIS_REGISTRY_TOKEN" in aegis("list", *url).stderr
    assert aegis("list", *url, token="from-file").returncode == 0
    assert aegis("list", *url, "--token-file", str(file), token="other").returncode == 0


def test_serve_without_a_token_says_so(start: Callable[..., Process]) -> None:
    registry = start()
    assert "anybody" in registry.errors
    assert registry.end() == 0


def test_serve_on_a_taken_port_names_it(start: Callable[..., Process]) -> None:
    registry = start()
    run = aegis("serve", "--host", "127.0.0.1", "--port", str(registry.port))
    assert run.returncode == 3
    assert f"port {registry.port} on 127.0.0.1 is taken" in run.stderr
    assert "hint:" in run.stderr
    registry.client.ping()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--stale-after", "9", "--remove-after", "9"], 2),
        (["--stale-after", "nan"], 2),
        (["--protect-reads"], 2),
        (["--host", "192.0.2.1"], 3),
        (["--host", "no-such-host.invalid"], 3),
        (["--host", "127.0.0.1", "--port-file", "/no/such/directory/file"], 3),
    ],
)
def test_serve_refuses_what_cannot_be(arguments: list[str], code: int) -> None:
    run = aegis("serve", "--port", "0", *arguments)
    assert run.returncode == code
    assert "hint:" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\n")
    run = aegis("serve", "--port", "0", "--token-file", str(file))
    assert run.returncode == 2
    assert "is empty" in run.stderr
