"""Run `aegis` in this process, as the console script does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from aegis.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def aegis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*args: str) -> Outcome:
        monkeypatch.setattr("sys.argv", ["aegis", *args])
        with pytest.raises(SystemExit) as stop:
            main()
        return Outcome(stop.value.code, *capsys.readouterr())

    return run
