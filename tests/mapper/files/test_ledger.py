from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from aegis.errors import AegisError, ConfigError, SiteError
from aegis.mapper.files.inputs import Entry
from aegis.mapper.files.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

ASKED = {"script": "client {input}", "archive": "tar.gz"}
ENTRIES = [Entry(os.fsdecode(name), size, 7) for size, name in enumerate([b"a", b"b/\xff\n", b"c \"'", b"d"])]


def filled(output: Path) -> bytes:
    """A journal of these entries, of which the second failed; its bytes."""
    with Ledger(output, ASKED) as ledger:
        ledger.begin("/in")
        for number, entry in enumerate(ENTRIES):
            ledger.add(entry, "exit code 1" if number == 1 else "")
        return ledger.path.read_bytes()


def states(output: Path) -> list[str]:
    with Ledger(output, ASKED) as ledger:
        found = [ledger.state(entry) for entry in ENTRIES]
    return ["left" if each is None else "failed" if each.failed else "done" for each in found]


def test_what_was_noted_is_known_in_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path)
    assert states(tmp_path) == ["done", "failed", "done", "done"]
    with Ledger(tmp_path, ASKED) as ledger:
        assert ledger.base == "/in"


def test_cut_anywhere_it_knows_all_whole_lines_and_goes_on(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    path = tmp_path / ".aegis-map" / "journal"
    ends = [end for end in range(len(whole) + 1) if whole[:end].endswith(b"\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends) - 1
        expected = ["done", "failed", "done", "done"][: max(lines, 0)] + ["left"] * (4 - max(lines, 0))
        assert states(tmp_path) == expected
        with Ledger(tmp_path, ASKED) as ledger:
            ledger.begin("/in")
            ledger.add(ENTRIES[3])
        assert states(tmp_path)[3] == "done"


def test_a_damaged_line_is_done_again_and_those_after_it_count(tmp_path: Path) -> None:
    lines = filled(tmp_path).split(b"\n")
    lines[1] = lines[1][:-1] + b"?"
    (tmp_path / ".aegis-map" / "journal").write_bytes(b"\n".join(lines))
    assert states(tmp_path) == ["left", "failed", "done", "done"]


def test_a_file_that_has_changed_is_left(tmp_path: Path) -> None:
    filled(tmp_path)
    with Ledger(tmp_path, ASKED) as ledger:
        for entry in (ENTRIES[0]._replace(size=9), ENTRIES[0]._replace(changed=8)):
            assert ledger.state(entry) is None
            assert ledger.changed(entry)
        assert not ledger.changed(ENTRIES[0])
        assert not ledger.changed(Entry("new", 1, 1))


def test_another_script_is_refused_where_something_is_done(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(ConfigError, match=r"begun with another script$"):
        Ledger(tmp_path, {**ASKED, "script": "other {input}"})
    assert states(tmp_path)[0] == "done"


def test_where_all_failed_everything_begins_anew(tmp_path: Path) -> None:
    with Ledger(tmp_path, ASKED) as ledger:
        ledger.begin("/in")
        ledger.add(ENTRIES[0], "exit code 127")
    with Ledger(tmp_path, {**ASKED, "script": "mended {input}"}) as ledger:
        assert ledger.base is None
        assert ledger.state(ENTRIES[0]) is None


def test_two_runs_exclude_each_other(tmp_path: Path) -> None:
    with Ledger(tmp_path, ASKED), pytest.raises(SiteError, match="another run works"):
        Ledger(tmp_path, ASKED)


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".aegis-map").mkdir()
    (tmp_path / ".aegis-map" / "journal").write_text("shopping\n")
    with pytest.raises(ConfigError, match="is no journal"):
        Ledger(tmp_path, ASKED)
    assert (tmp_path / ".aegis-map" / "journal").read_text() == "shopping\n"


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    with Ledger(tmp_path, ASKED) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(AegisError, match="is full") as caught:
                ledger.add(Entry("new", 1, 1))
        assert "make room" in (caught.value.hint or "")
    assert states(tmp_path) == ["done", "failed", "done", "done"]


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")
