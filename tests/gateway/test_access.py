"""The access log: what stands in it, and that nothing which happens to it matters to requests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.gateway.access import AccessLog, Entry, line

if TYPE_CHECKING:
    from collections.abc import Iterator


def entry(**fields: Any) -> Entry:
    known: dict[str, Any] = {"time": 1.5, "method": "POST", "path": "/v1/completions", "seconds": 2}
    return Entry(**(known | {"status": 200} | fields))


class Site:
    def __init__(self, file: Path | None) -> None:
        self.now, self.said = 0.0, list[str]()
        self.log = AccessLog(file, clock=lambda: self.now, warn=self.said.append)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def site(file: Path) -> Iterator[Site]:
    site = Site(file)
    yield site
    site.log.close()


def models(file: Path) -> list[str]:
    return [json.loads(text)["model"] for text in file.read_text().splitlines()]


def test_a_line_a_request(site: Site, file: Path) -> None:
    site.log.write(
        entry(
            key="alice",
            client="10.0.0.1",
            model="m",
            instance="i1",
            first_byte_seconds=0.50000000001,
            bytes_in=10,
            bytes_out=20,
            prompt_tokens=3,
            completion_tokens=4,
            retries=1,
        )
    )
    assert json.loads(file.read_text()) == {
        "time": 1.5,
        "key": "alice",
        "client": "10.0.0.1",
        "method": "POST",
        "path": "/v1/completions",
        "model": "m",
        "instance": "i1",
        "status": 200,
        "seconds": 2,
        "first_byte_seconds": 0.5,
        "bytes_in": 10,
        "bytes_out": 20,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "retries": 1,
        "cancelled": False,
    }
    assert file.stat().st_mode & 0o777 == 0o600


def test_queries_are_left_out(site: Site, file: Path) -> None:
    site.log.write(entry(path="/v1/models?api_key=secret#x?y"))
    assert json.loads(file.read_text())["path"] == "/v1/models"


@given(st.text(st.characters()), st.text(st.characters()))
def test_every_request_is_one_line(path: str, model: str) -> None:
    data = line(entry(path=path, model=model))
    assert data.count(b"\n") == 1
    assert len(data) < 4096
    found = json.loads(data)
    assert len(found["path"]) <= 256
    assert "?" not in found["path"] or not path.isascii()


def test_a_file_that_was_moved_away_is_made_anew(site: Site, file: Path, tmp_path: Path) -> None:
    site.log.write(entry(model="a"))
    file.rename(tmp_path / "old")
    site.log.write(entry(model="b"))  # not looked yet
    site.now += 1
    site.log.write(entry(model="c"))
    assert models(tmp_path / "old") == ["a", "b"]
    assert models(file) == ["c"]
    file.unlink()
    site.log.reopen()
    site.log.write(entry(model="d"))
    assert models(file) == ["d"]
    assert site.said == []


def test_a_folder_that_went_away_is_told_of_once(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = folder / "access.log"
    site = Site(file)
    file.unlink()
    folder.rmdir()
    for _ in range(3):
        site.now += 1
        site.log.write(entry())
    assert len(site.said) == 1
    folder.mkdir()
    site.now += 1
    site.log.write(entry(model="again"))
    assert models(file) == ["again"]
    site.log.close()


def test_a_full_disk_stops_nothing_and_is_told_of_once(
    site: Site, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.log.write(entry(model="a"))
    write = os.write
    room = 30

    def full(handle: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        room, part = 0, data[:room]
        return write(handle, part)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(4):
            site.log.write(entry(model="b"))
    assert site.said == ["access log: lines are lost: No space left on device"]
    site.log.write(entry(model="c"))
    first, torn, last = file.read_text().splitlines()
    assert json.loads(first)["model"] == "a"
    assert len(torn) == 30
    assert json.loads(last)["model"] == "c"
    assert site.log.lost == 4


def test_a_real_full_device() -> None:
    site = Site(Path("/dev/full"))
    for _ in range(3):
        site.log.write(entry())
    site.log.close()
    assert (len(site.said), site.log.lost) == (1, 3)


@pytest.mark.parametrize("name", [None, "-"])
def test_streams(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        monkeypatch.setattr("sys.stdout" if name else "sys.stderr", stream)
        site = Site(Path(name) if name else None)
        written = 0
        while not site.log.lost:  # until the pipe, which nobody empties, is full
            site.log.write(entry())
            written += 1
        assert len(site.said) == 1
        site.log.reopen()
        site.log.close()
        assert not stream.closed
    with os.fdopen(read_end) as out:
        assert len([json.loads(text) for text in out]) == written - 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        AccessLog(tmp_path)
