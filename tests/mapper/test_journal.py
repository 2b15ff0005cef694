"""The journal: any sequence of appends, crashes and reopenings loses nothing that was whole, and invents nothing."""

from __future__ import annotations

import resource
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aegis.errors import AegisError, ConfigError, SiteError
from aegis.mapper.journal import Journal, journal_of
from aegis.mapper.offsets import BATCH
from aegis.mapper.records import Record, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 12
ASKED = {"input": "abc", "prompt": "{text}\n"}
POSITIONS = st.integers(0, ROWS - 1)
LINES = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))


def opened(
    output: Path, rows: int = ROWS, *, retry_failed: bool = False, batch: int = BATCH, **asked: str
) -> Journal:
    return Journal(output, rows, asked or ASKED, retry_failed=retry_failed, batch=batch)


class Crashes(RuleBasedStateMachine):
    """A journal beside a list of the records that its file must hold."""

    @initialize(batch=st.integers(1, ROWS))
    def begin(self, batch: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.output = Path(self.directory.name) / "out.jsonl"
        self.path = journal_of(self.output)
        self.written: list[Record] = []
        self.waiting: list[Record] = []
        self.batch = batch
        self.journal = self.opened()
        self.head = self.path.read_bytes()

    def opened(self, *, retry_failed: bool = False) -> Journal:
        return opened(self.output, retry_failed=retry_failed, batch=self.batch)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.finish()
            self.journal.close()
            self.directory.cleanup()

    @property
    def expected(self) -> dict[int, Record]:
        return {record.position: record for record in self.written + self.waiting}

    @rule(position=POSITIONS, line=LINES, failed=st.booleans())
    def append(self, position: int, line: bytes, failed: bool) -> None:
        if position not in self.journal:
            self.journal.append(position, line, failed=failed)
            self.waiting.append(Record(position, failed, line))

    @rule(sync=st.booleans())
    def commit(self, sync: bool) -> None:
        self.journal.commit(sync=sync)
        self.written += self.waiting
        self.waiting = []
        assert self.journal.backlog == 0

    @rule(share=st.floats(0, 1), rest=st.binary(max_size=20))
    def crash_and_tear(self, share: float, rest: bytes) -> None:
        """End at any byte; what a node leaves behind it may be anything."""
        content = self.head + b"".join(map(encode, self.written))
        self.journal.close()
        assert self.path.read_bytes() == content
        at = round(share * len(content))
        if at < len(self.head):  # written and synced before anything else
            self.output.unlink(missing_ok=True)
        torn = content[:at] + (rest if at >= len(self.head) else b"")
        self.path.write_bytes(torn)
        end, kept = len(self.head), []
        for record in self.written:
            end += len(encode(record))
            if torn[:end] == content[:end]:
                kept.append(record)
        self.written, self.waiting = kept, []
        self.journal = self.opened()

    @rule(share=st.floats(0, 1), size=st.integers(1, 80))
    def crash_and_leave_a_hole(self, share: float, size: int) -> None:
        """A node may lose pages in the middle; the records that they touch are done again."""
        self.journal.close()
        content = bytearray(self.path.read_bytes())
        start = len(self.head) + round(share * (len(content) - len(self.head)))
        end = min(start + size, len(content))
        content[start:end] = bytes(end - start)
        self.path.write_bytes(content)
        kept, at = [], len(self.head)
        for record in self.written:
            before, at = at, at + len(encode(record))
            if at <= start or before > end or start == end:
                kept.append(record)
        self.waiting = []
        self.journal = self.opened()
        # The head's neighbour, and a record whose predecessor lost its end, may go too.
        found = {position for position in range(ROWS) if position in self.journal}
        certain = {record.position for record in kept if record is not self._neighbour(end)}
        assert certain <= found <= {record.position for record in self.written}
        self.resync()

    def _neighbour(self, end: int) -> Record | None:
        at = len(self.head)
        for record in self.written:
            if at == end:
                return record
            at += len(encode(record))
        return None

    def resync(self) -> None:
        """Start from the file as it is: the state after holes is what it kept."""
        self.journal.close()
        lines = self.path.read_bytes()[len(self.head) :].splitlines(keepends=True)
        known = {encode(record): record for record in self.written}
        self.written = [known[line] for line in lines if line in known]
        self.path.write_bytes(self.head + b"".join(map(encode, self.written)))
        self.journal = self.opened()

    @rule()
    def try_failed_again(self) -> None:
        self.commit(sync=True)
        self.journal.close()
        failed = {position for position, record in self.expected.items() if record.failed}
        self.journal = self.opened(retry_failed=True)
        assert self.journal.left == ROWS - len(self.expected) + len(failed)
        for position in failed:
            self.append(position, b"again", failed=False)

    @rule()
    def finish(self) -> None:
        """The output has every row once, in order, the last record of each."""
        for position in range(ROWS):
            self.append(position, b"%d" % position, failed=True)
        lines = [self.expected[position].line for position in range(ROWS)]
        self.journal.assemble()
        self.written, self.waiting = self.written + self.waiting, []
        assert self.output.read_bytes() == b"".join(line + b"\n" for line in lines)
        self.journal.close()
        if self.journal.finished:  # nothing failed: begin another
            self.output.unlink()
            self.written = []
        self.journal = self.opened()

    @invariant()
    def holds_what_it_should(self) -> None:
        if hasattr(self, "journal"):
            assert {each for each in range(ROWS) if each in self.journal} == set(self.expected)
            assert self.journal.left == ROWS - len(self.expected)
            assert self.journal.failed == sum(record.failed for record in self.expected.values())


Crashes.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestCrashes = Crashes.TestCase


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "a $(x);' \n.jsonl"


def filled(output: Path, rows: int = 3) -> None:
    with opened(output, rows) as journal:
        for position in reversed(range(rows)):
            journal.append(position, b"%d" % position, failed=False)
        journal.assemble()


def test_a_finished_run_is_done_and_keeps_only_its_head(output: Path) -> None:
    filled(output)
    assert output.read_bytes() == b"0\n1\n2\n"
    assert len(journal_of(output).read_bytes().splitlines()) == 1
    with opened(output, 3) as journal:
        assert (journal.left, journal.done, 1 in journal) == (0, 3, True)
        journal.assemble()
    assert output.read_bytes() == b"0\n1\n2\n"
    assert sorted(output.parent.iterdir()) == [output, journal_of(output)]


def test_an_output_that_was_taken_away_is_made_again(output: Path) -> None:
    filled(output)
    output.unlink()
    with opened(output, 5) as journal:
        assert journal.left == 5


def test_other_arguments_are_refused_by_name(output: Path) -> None:
    with opened(output) as journal:
        journal.append(0, b"a", failed=False)
        journal.commit(sync=True)
    with pytest.raises(ConfigError) as caught:
        opened(output, input="other", prompt="{text}\n")
    assert caught.value.message == f"{output} was begun with something else: another input"
    with pytest.raises(ConfigError) as caught:
        opened(output, input="abc", kind="chat", prompt="x" * 200)
    assert caught.value.message.endswith(": kind was 'nothing', is 'chat'; another prompt")
    with pytest.raises(ConfigError, match="12 rows, now 5"):
        opened(output, 5)
    assert caught.value.hint
    assert output.name in caught.value.hint


def test_where_no_row_was_done_anything_else_may_be_asked(output: Path) -> None:
    """A first try with a wrong prompt or server must not be in the way of the second."""
    opened(output).close()
    with opened(output, 5, input="other") as journal:
        assert journal.left == 5
    output.write_text("whose is it?")
    with pytest.raises(ConfigError, match="something else"):
        opened(output)


def test_what_is_not_ours_is_left_alone(output: Path) -> None:
    output.write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        opened(output)
    assert not journal_of(output).exists()
    journal_of(output).touch()
    with pytest.raises(ConfigError, match="is there already"):
        opened(output)
    assert output.read_text() == "precious"
    output.unlink()
    journal_of(output).write_text("precious")
    with pytest.raises(ConfigError, match="is no journal"):
        opened(output)
    assert journal_of(output).read_text() == "precious"


def test_two_runs_of_one_output_are_kept_apart(output: Path) -> None:
    with opened(output), pytest.raises(SiteError, match="another run works on"):
        opened(output)
    opened(output).close()


def test_a_row_is_never_taken_twice(output: Path) -> None:
    with opened(output) as journal:
        journal.append(1, b"x", failed=False)
        with pytest.raises(ValueError, match="done already"):
            journal.append(1, b"y", failed=False)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Limit the size of files, so that writing goes as on a full disk: as much as fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_and_loses_nothing(output: Path) -> None:
    with opened(output) as journal:
        journal.append(0, b"a" * 50, failed=False)
        journal.commit(sync=True)
        journal.append(1, b"b" * 50, failed=False)
        size = journal_of(output).stat().st_size
        with small_disk(size + 30):
            for _ in range(2):  # it stays closed
                with pytest.raises(AegisError, match="is full") as caught:
                    journal.commit(sync=True)
        with pytest.raises(AegisError, match="is full"):
            journal.commit(sync=False)
    assert caught.value.hint
    assert journal_of(output).stat().st_size == size + 30  # torn
    with opened(output) as journal:
        assert (0 in journal, 1 in journal, journal.left) == (True, False, ROWS - 1)
    assert journal_of(output).stat().st_size == size


def test_a_disk_that_is_full_at_the_end_leaves_the_journal(output: Path) -> None:
    with opened(output, 2) as journal:
        for position in range(2):
            journal.append(position, b"x" * 600_000, failed=False)
        journal.commit(sync=True)
        with small_disk(700_000), pytest.raises(AegisError, match="is full"):
            journal.assemble()
        assert list(output.parent.iterdir()) == [journal_of(output)]
    with opened(output, 2) as journal:
        assert journal.left == 0
        journal.assemble()
    assert output.stat().st_size == 1_200_002


def test_a_record_that_was_damaged_since_is_never_given_out(output: Path) -> None:
    with opened(output, 2) as journal:
        for position in range(2):
            journal.append(position, b"good", failed=False)
        journal.commit(sync=True)
        path = journal_of(output)
        path.write_bytes(path.read_bytes().replace(b" 0 + good", b" 0 + evil"))
        with pytest.raises(AegisError, match="row 1 was damaged"):
            journal.assemble()
        assert list(output.parent.iterdir()) == [path]
    with opened(output, 2) as journal:
        assert (0 in journal, 1 in journal, journal.damaged) == (False, True, 1)


def test_a_directory_that_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be used"):
        opened(tmp_path / "none" / "out.jsonl")
    assert not list(tmp_path.iterdir())


def test_rows_may_come_while_a_thread_commits(output: Path) -> None:
    rows, before = 20_000, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with opened(output, rows) as journal, ThreadPoolExecutor(1) as thread:

            def commit() -> None:
                for _ in range(1000):
                    journal.commit(sync=False)

            committing = thread.submit(commit)
            for position in range(rows):
                journal.append(position, b"%d" % position, failed=False)
            committing.result()
            journal.assemble()
    finally:
        sys.setswitchinterval(before)
    assert output.read_bytes().split() == [b"%d" % position for position in range(rows)]
