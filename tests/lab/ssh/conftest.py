"""An sshd of its own for each test, and the environment of a user who can log in there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until
from tests.ports import free_port

from .sshd import Sshd, missing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def can_start_sshd() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def sshd(can_start_sshd: None, monkeypatch: pytest.MonkeyPatch, own_environment: None) -> Iterator[Sshd]:
    """An sshd on loopback, not yet started; `ssh cluster` of this test asks for a code through SSH_ASKPASS.

    Whatever a test does, no socket and no master stays.
    """
    folder = Path(tempfile.mkdtemp(prefix="aegis-sshd-"))
    made = Sshd(folder, port=free_port())
    private = folder / "tmp"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    for name, value in {**made.askpass, "PATH": made.path, "TMPDIR": str(private)}.items():
        monkeypatch.setenv(name, value)
    try:
        yield made
        wait_until(lambda: not list(private.glob("aegis-ssh-*")), "the sockets are gone", 5)
        wait_until(lambda: not made.clients(), "every ssh has ended", 5)
    finally:
        made.stop()
        for pid in made.clients():
            pid.kill()
        shutil.rmtree(folder)
