"""The whole command as its user meets it: a terminal, a prompt, a code."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.ssh.sshd import Sshd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]
PROMPT = "Verification code: "
# The first terminal that the leader of a session opens is that of the session.
START = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); from aegis.cli import main; main()"


class Terminal:
    """`aegis` on a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.screen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("SSH_ASKPASS")},
        )
        os.close(slave)
        os.set_blocking(self.master, False)

    def read(self) -> str:
        try:
            while text := os.read(self.master, 4096):
                self.screen += text.decode()
        except OSError:  # nothing at present, or nobody at the other end
            pass
        return self.screen

    def see(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.read().count(text) >= times, f"{text} in {self.screen}", 20)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        code = self.process.wait(20)
        self.read()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(sshd: Sshd) -> Iterator[Terminal]:
    sshd.start()
    made = Terminal("tunnel", "pbs://1.server", "--remote", sshd.target)
    yield made
    made.close()


def test_the_code_is_asked_on_the_terminal(sshd: Sshd, terminal: Terminal) -> None:
    terminal.see(PROMPT)
    terminal.type("00000000\n")
    terminal.see(PROMPT, 2)
    code = sshd.code()
    terminal.type(f"{code}\n")
    assert terminal.end() == 4
    assert "there is no job `pbs://1.server`" in terminal.screen
    assert code not in terminal.screen, "a code is not shown"
    assert "Traceback" not in terminal.screen
    assert sshd.logins == 1


def test_wrong_codes_end_in_an_error_without_a_traceback(sshd: Sshd, terminal: Terminal) -> None:
    for times in (1, 2, 3):
        terminal.see(PROMPT, times)
        terminal.type("00000000\n")
    assert terminal.end() == 3
    assert re.search(r"cannot log in to alice@cluster: .*Permission denied", terminal.screen)
    assert "hint: a one-time code is good once" in terminal.screen
    assert "Traceback" not in terminal.screen


def test_ctrl_c_at_the_prompt(terminal: Terminal) -> None:
    terminal.see(PROMPT)
    terminal.type("\x03")
    assert terminal.end() == 6
    assert "interrupted" in terminal.screen
    assert "Traceback" not in terminal.screen


def test_a_signal_at_the_prompt_leaves_nobody_asking(sshd: Sshd, terminal: Terminal) -> None:
    terminal.see(PROMPT)
    terminal.process.send_signal(signal.SIGTERM)
    terminal.end()
    wait_until(lambda: not list((sshd.folder / "tmp").iterdir()))
    wait_until(lambda: not sshd.clients(), "ssh has ended, too")
