"""The files of this machine: what cannot be seen is not there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from aegis.preflight.files import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

FILES = LocalFiles()


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("gone")
    names = FILES.names(str(tmp_path))
    assert names == {"file": 5, "link": 5}
    assert FILES.read(str(tmp_path / "link"), 3) == b"123"
    assert FILES.is_dir(str(tmp_path))
    assert FILES.exists(str(tmp_path / "file"))
    assert not FILES.exists(str(tmp_path / "broken"))
    assert FILES.writable(str(tmp_path))


@pytest.mark.parametrize("path", ["/no/such", "/a\0b", "/" + "x" * 5000, "/\ud800", ""])
def test_what_is_not_there(path: str) -> None:
    assert not FILES.exists(path)
    assert not FILES.is_dir(path)
    assert not FILES.writable(path)
    assert not FILES.names(path)
    assert FILES.read(path, 9) == b""


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert FILES.read(str(tmp_path / "config.json"), 9) == b""


def test_paths_as_the_user_means_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert FILES.absolute("a/../b") == str(tmp_path / "b")
    assert FILES.absolute("~/x") == "/home/me/x"
    assert FILES.absolute("~nobody-of-that-name/x") == str(tmp_path / "~nobody-of-that-name/x")
