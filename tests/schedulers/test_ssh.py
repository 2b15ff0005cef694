"""What an ssh transport sends to a shell and takes from it, and what it refuses; no ssh is needed."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError, SiteError
from aegis.schedulers.ssh import connect
from aegis.schedulers.ssh.master import check_target
from aegis.schedulers.ssh.remote import LOGIN, PLAIN, Command, os_error, reply, stdin

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.schedulers.ssh.remote import Reply

MARK = "aegis-0123"
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)


def ask(command: Command, home: Path | None = None) -> Reply:
    """Do what sshd does with a command line, for a user whose home is a folder of the test."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home or "/nonexistent")}
    if home:
        environ["SSH_CLIENT"] = "127.0.0.1 1 2"  # by which bash knows that it is sshd's, and reads .bashrc
    done = subprocess.run(
        ["bash", "-c", command.shell],
        input=stdin(command, MARK),
        env=environ,
        capture_output=True,
        check=False,
        timeout=30,
    )
    return reply(done.returncode, done.stdout, done.stderr, MARK)


@given(st.lists(WORDS, max_size=3), st.binary(max_size=20), WORDS)
def test_words_values_and_input_arrive_as_they_are(words: list[str], data: bytes, value: str) -> None:
    script = 'printf "%s\\0" "${A-unset}" "$@"; cat'
    answer = ask(Command(["bash", "-c", script, "x", *words], data, {"A": value}, PLAIN))
    told = "".join(f"{word}\0" for word in [value or "unset", *words]).encode()
    assert (answer.code, answer.out, answer.err) == (0, told + data, b"")


@pytest.mark.parametrize("shell", [PLAIN, LOGIN])
def test_greetings_are_no_part_of_an_answer(tmp_path: Path, shell: str) -> None:
    for name in (".bashrc", ".bash_profile", ".bash_logout"):
        (tmp_path / name).write_text(
            "echo hello; printf 'no newline'; echo careful >&2; trap 'echo bye' EXIT\n"
        )
    answer = ask(Command(["bash", "-c", "echo out; echo err >&2"], shell=shell), tmp_path)
    assert (answer.code, answer.out, answer.err) == (0, b"out\n", b"err\n")
    missing = ask(Command(["no-such-command"], shell=shell), tmp_path)
    assert (missing.code, missing.missing, missing.began) == (127, True, False)


def test_a_shell_that_never_comes_to_the_command(tmp_path: Path) -> None:
    (tmp_path / ".bash_profile").write_text("echo expired; exit 1\n")
    answer = ask(Command(["true"], shell=LOGIN), tmp_path)
    assert (answer.code, answer.began, answer.missing, answer.out) == (1, False, False, b"expired\n")


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_answer_is_understood(out: bytes, err: bytes) -> None:
    answer = reply(255, out, err, MARK)
    assert not answer.began
    assert (answer.out, answer.err) == (out, err)
    begun = reply(0, b"x" + f"{MARK}+".encode() + out, err, MARK)
    assert (begun.out, begun.err) == (out, err)


def test_a_zero_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match="a zero byte is in a word for ls"):
        stdin(Command(["ls", "a\0b"]), MARK)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"tail: cannot open 'a: b' for reading: No such file or directory\n", FileNotFoundError),
        (b"aegis: line 2: /x: Permission denied", PermissionError),
        (b"mkdir: cannot create directory 'a': Not a directory", NotADirectoryError),
        (b"cat: write error: No space left on device", OSError),
        (b"", OSError),
        (b"\xff\xfe: what: never heard of", OSError),
    ],
)
def test_the_last_words_of_a_file_command_are_an_error_of_files(said: bytes, kind: type[OSError]) -> None:
    error = os_error(said, "path")
    assert type(error) is kind
    assert error.filename == "path"
    assert error.strerror


@pytest.mark.parametrize(
    "target",
    [
        "host",
        "user@host",
        "user@aurora.alcf.anl.gov",
        "ssh://user@host:2222",
        "user@[::1]",
        "DOMAIN\\user@host",
        "first.last@site.org@host",
        "_x@h_1",
    ],
)
def test_targets(target: str) -> None:
    assert check_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "-oProxyCommand=x",
        "a b",
        "user@",
        "@host",
        "user@-x",
        "a;b",
        "$(touch x)",
        "`x`",
        "a\nb",
        "h'",
        'h"',
    ],
)
def test_what_is_no_target_is_refused_before_ssh_sees_it(target: str) -> None:
    with pytest.raises(ConfigError, match="is no place to log in to"), connect(target, print):
        pytest.fail("it was taken")


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SiteError, match="ssh cannot be run: No such file") as error, connect("host", print):
        pytest.fail("there is none")
    assert error.value.hint == "--remote needs the OpenSSH client on PATH"


def test_a_configuration_that_ssh_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "ssh"
    fake.write_text("#!/bin/sh\necho 'config: line 3: Bad configuration option: nonsense' >&2\nexit 255\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SiteError, match="line 3: Bad configuration option"), connect("host", print):
        pytest.fail("it was taken")


def test_the_command_line_is_for_any_login_shell() -> None:
    for line in (LOGIN, PLAIN):
        assert "!" not in line, "csh would look into its history"
        assert "\\" not in line, "fish would read it"
        assert len(shlex.split(line)) == len(line.split("'")[0].split()) + 1
