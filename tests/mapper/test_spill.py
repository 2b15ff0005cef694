"""What grows with the rows is on the disk: with runs and batches of a few rows all is as without, and the memory stays flat."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis.errors import AegisError, ConfigError, SiteError
from aegis.mapper.journal import Journal, journal_of
from aegis.mapper.rows import Source, read, survey
from aegis.mapper.template import Template
from tests.mapper.test_journal import small_disk

RUN = 2000  # rows
IDS = st.lists(st.sampled_from([None, "a", "b", "c", "1", "3", "5", "05", "x" * 40]) | st.text(max_size=2))


def written(path: Path, ids: list[str | None]) -> Source:
    path.write_text("".join(json.dumps({"text": "x", "custom_id": each}) + "\n" for each in ids))
    return Source((str(path),), Template("{text}"))


@settings(deadline=None)
@given(ids=IDS.filter(bool), run=st.integers(1, 9))
@example(ids=[None, "5", None, None, None], run=2)  # a given id is the number of a later row
@example(ids=["a"] * 50, run=3)
def test_ids_that_occur_twice_are_found_over_all_runs(ids: list[str | None], run: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in.jsonl")
        source = written(path, ids)
        keys = [each or str(number) for number, each in enumerate(ids, 1)]
        expected = [
            f"{path}:{number + 1}: custom_id {key!r} is that of {path}:{keys.index(key) + 1} too"
            for number, key in enumerate(keys)
            if key in keys[:number]
        ]
        if expected:
            with pytest.raises(ConfigError) as caught:
                survey(source, Path(directory), run=run)
            assert caught.value.message.splitlines() == expected
        else:
            assert survey(source, Path(directory), run=run).rows == len(ids)
        assert list(path.parent.iterdir()) == [path]


def test_one_pair_among_many_runs_is_found(tmp_path: Path) -> None:
    ids: list[str | None] = [f"id {number}" for number in range(3000)]
    assert survey(written(tmp_path / "in.jsonl", ids), tmp_path, run=100).rows == 3000
    ids[2999] = ids[7]
    with pytest.raises(ConfigError, match=r"in.jsonl:3000: custom_id 'id 7' is that of .*in.jsonl:8 too"):
        survey(written(tmp_path / "in.jsonl", ids), tmp_path, run=100)


@settings(deadline=None)
@given(order=st.permutations(range(20)), failed=st.sets(st.integers(0, 19)), batch=st.integers(1, 25))
def test_rows_that_come_in_any_order_go_out_in_that_of_the_input(
    order: list[int], failed: set[int], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "out.jsonl")
        with Journal(output, 20, {}, batch=batch) as journal:
            for position in order:
                journal.append(position, b"%d" % position, failed=position in failed)
                journal.commit(sync=False)
            assert list(output.parent.iterdir()) == [journal.path]
        with Journal(output, 20, {}, retry_failed=True, batch=batch) as journal:
            assert (journal.left, journal.failed) == (len(failed), 0)
            for position in sorted(failed, reverse=True):
                journal.append(position, b"again %d" % position, failed=False)
            journal.assemble()
        lines = [b"again %d\n" % each if each in failed else b"%d\n" % each for each in range(20)]
        assert output.read_bytes() == b"".join(lines)
        assert Counter(output.parent.iterdir()) == Counter([output, journal.path])


def test_no_output_is_made_while_rows_are_left(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.jsonl", 2, {}) as journal:
        journal.append(0, b"x", failed=False)
        with pytest.raises(ValueError, match="1 rows are not done"):
            journal.assemble()
    assert list(tmp_path.iterdir()) == [journal.path]


def test_an_input_that_grew_after_its_survey_is_told(tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    digest = survey(written(path, [None] * 8)).digest
    grown = written(path, [None] * 20)
    with Journal(output, 8, {}) as journal:
        rows = read(grown, digest, journal.__contains__)
        assert [next(rows).position for _ in range(8)] == list(range(8))
        with pytest.raises(ConfigError, match="changed while it was read"):
            next(rows)


def test_a_disk_that_is_full_of_offsets_stops_and_loses_nothing(tmp_path: Path) -> None:
    output, rows = tmp_path / "out.jsonl", 1000
    with Journal(output, rows, {}, batch=1) as journal:
        journal.append(0, b"a", failed=False)
        journal.commit(sync=True)
        journal.append(rows - 1, b"b", failed=False)  # its offset would be at the end of 8 kB
        with small_disk(4000):
            for _ in range(2):  # it stays closed
                with pytest.raises(AegisError, match="is full") as caught:
                    journal.commit(sync=True)
    assert caught.value.hint
    with small_disk(4000), pytest.raises(AegisError, match="is full"):
        Journal(output, rows, {}, batch=1)
    with Journal(output, rows, {}, batch=1) as journal:
        assert (0 in journal, rows - 1 in journal, journal.left) == (True, True, rows - 2)
    assert list(tmp_path.iterdir()) == [journal_of(output)]


def test_a_disk_without_room_for_the_survey_is_told(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [None] * 1000)
    with small_disk(4000), pytest.raises(AegisError, match=f"{tmp_path} is full"):
        survey(source, tmp_path, run=100)
    with pytest.raises(SiteError, match=r"none.* cannot be used"):
        survey(source, tmp_path / "none", run=100)
    assert survey(source, tmp_path / "none").rows == 1000  # so few need nothing of it


def peaks(directory: Path, rows: int) -> tuple[int, int]:
    """Return the bytes that the survey of so many rows takes at most, and those of the rest."""
    source = written(directory / f"{rows}.jsonl", [None] * rows)
    tracemalloc.start()
    try:
        found = survey(source, directory, run=RUN)
        surveyed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with Journal(directory / f"{rows}.out", rows, {}, batch=RUN) as journal:
            for row in read(source, found.digest, journal.__contains__):
                journal.append(row.position, row.body, failed=False)
                if journal.backlog > 10_000:
                    journal.commit(sync=False)
            journal.assemble()
        return surveyed, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_less_than_two_bytes_a_row(tmp_path: Path) -> None:
    """Of these, most is per run, of which there are many here, and few with runs of their real size."""
    peaks(tmp_path, 10)  # imports
    few, many = peaks(tmp_path, 2 * RUN), peaks(tmp_path, 22 * RUN)
    grown = [(after - before) / (20 * RUN) for before, after in zip(few, many, strict=True)]
    assert max(grown) < 2, grown
