"""Inputs: what is read of them, and what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.mapper.rows import Row, Source, read, survey
from aegis.mapper.template import Template

CHAT = "/v1/chat/completions"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SAME_FILE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def line(custom_id: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | more


def written(path: Path, *lines: Any) -> Source:
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines))
    return of(path)


def of(path: Path, template: Template | None = None, **more: Any) -> Source:
    return Source((str(path),), template, **more)


def rows_of(source: Source) -> list[Row]:
    found = survey(source)
    rows = list(read(source, found.digest))
    assert len(rows) == found.rows
    return rows


def refusal(source: Source) -> str:
    with pytest.raises(ConfigError) as caught:
        survey(source)
    return caught.value.message


@SAME_FILE
@given(ids=st.lists(TEXTS.filter(bool), unique=True, min_size=1), content=TEXTS)
def test_batch_lines_keep_their_ids_order_and_bodies(tmp_path: Path, ids: list[str], content: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "seed": 1}
    rows = rows_of(written(tmp_path / "in.jsonl", *[line(each, body=body) for each in ids]))
    assert [row.key for row in rows] == ids
    assert [row.position for row in rows] == list(range(len(ids)))
    assert all(json.loads(row.body) == body and (row.path, row.model) == (CHAT, "m") for row in rows)


def test_rows_without_an_id_are_numbered_and_empty_lines_are_none(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path / "in.jsonl", "\ufeff", line(None), "\n  \n", line(17), line("")))
    assert [(row.position, row.key) for row in rows] == [(0, "1"), (1, "17"), (2, "3")]


def test_the_first_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl",
        line("good"),
        "{broken\n",
        line("b", url="/v1/images"),
        line("c", method="GET"),
        line("d", body={"model": "m", "input": "x"}),
        line("e", body={"messages": [], "stream": True}),
        {"custom_id": "f"},
    )
    found = refusal(source).splitlines()
    assert [each.split(": ")[0] for each in found] == [
        f"{source.paths[0]}:{number}" for number in range(2, 8)
    ]
    assert "is none of /v1/chat/completions" in found[1]
    assert "has no 'messages'" in found[3]
    assert "stream" in found[4]
    assert "url" in found[5]


def test_every_problem_is_told_and_very_many_are_counted(tmp_path: Path) -> None:
    lines = refusal(written(tmp_path / "in.jsonl", *["{\n"] * 1203)).splitlines()
    assert len(lines) == 1001
    assert lines[999].startswith(f"{tmp_path}/in.jsonl:1000: ")
    assert lines[1000] == "and 203 rows more"


def test_plain_rows_without_a_prompt_are_told_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        survey(written(tmp_path / "in.jsonl", {"text": "x"}))
    assert caught.value.hint
    assert "--prompt" in caught.value.hint


def test_several_files_are_one_input_and_keep_their_places(tmp_path: Path) -> None:
    for number, content in enumerate(("text\na\nb\n", "text,more\nc,x\n")):
        (tmp_path / f"{number}.csv").write_text(content)
    with gzip.open(tmp_path / "2.CSV.gz", "wt") as file:
        file.write('text\n"d\ne"\n')
    written(tmp_path / "3.jsonl", {"text": "f"})
    names = ("0.csv", "1.csv", "2.CSV.gz", "3.jsonl")
    source = Source(tuple(str(tmp_path / name) for name in names), Template("{text}", "completions"))
    rows = rows_of(source)
    assert [json.loads(row.body)["prompt"] for row in rows] == ["a", "b", "c", "d\ne", "f"]
    assert [row.key for row in rows] == ["1", "2", "3", "4", "5"]
    (tmp_path / "1.csv").write_text("text,more\nc,x,y\nd,x\n")
    written(tmp_path / "3.jsonl", {"txt": "f"})
    assert refusal(source).splitlines() == [
        f"{tmp_path}/1.csv:2: it has more cells than the first line has columns",
        f"{tmp_path}/3.jsonl:1: there is no column 'text', did you mean 'txt'?",
    ]


def test_keys_must_be_unique_over_all_files(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, line("a")).paths[0] for name in ("a.jsonl", "b.jsonl"))
    assert refusal(Source((first, second))) == f"{second}:1: custom_id 'a' is that of {first}:1 too"


def test_where_a_file_ends_is_part_of_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\na\ntext\nb\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"text\n{name}\n")
    template = Template("{text}")
    whole = survey(of(tmp_path / "one.csv", template))
    parts = survey(Source((str(tmp_path / "a.csv"), str(tmp_path / "b.csv")), template))
    assert whole.digest != parts.digest


def test_any_column_may_be_the_key(tmp_path: Path) -> None:
    template = Template("{text}")
    (tmp_path / "t.csv").write_text("text,a 'b'\nx,one\ny,two\n")
    pq.write_table(pa.table({"text": ["x"], "n": [7]}), tmp_path / "t.parquet")
    assert [row.key for row in rows_of(of(tmp_path / "t.csv", template, id_column="a 'b'"))] == ["one", "two"]
    assert rows_of(of(tmp_path / "t.parquet", template, id_column="n"))[0].key == "7"
    assert "no column 'key'" in refusal(of(tmp_path / "t.csv", template, id_column="key"))
    rows = written(tmp_path / "t.jsonl", {"text": "x", "key": ""}).paths[0]
    assert refusal(of(Path(rows), template, id_column="key")) == f"{rows}:1: it has no id in 'key'"


def test_broken_gzip_files_are_told(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(json.dumps(line(str(number))).encode() + b"\n" for number in range(99)))
    for content in (whole[:-20], b"plain\n", whole[:40] + b"x" * 200):
        (tmp_path / "in.jsonl.gz").write_bytes(content)
        assert "is no whole gzip file" in refusal(of(tmp_path / "in.jsonl.gz"))


def test_ids_that_occur_twice_are_refused_also_where_a_number_meets_one(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    source = written(path, line("a"), line("b"), "\n", line("a"), line(None), line("4"))
    assert refusal(source).splitlines() == [
        f"{path}:4: custom_id 'a' is that of {path}:1 too",
        f"{path}:6: custom_id '4' is that of {path}:5 too",
    ]


def test_done_rows_are_left_out(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *[line(str(number)) for number in range(6)])
    digest = survey(source).digest
    assert [row.key for row in read(source, digest, {1, 2, 5}.__contains__)] == ["0", "3", "4"]


def test_a_file_that_changes_after_its_survey_is_noticed(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", line("a"), line("b"))
    digest = survey(source).digest
    written(Path(source.paths[0]), line("a"), line("c"))
    rows = read(source, digest)
    with pytest.raises(ConfigError, match="changed while it was read"):
        list(rows)


CELLS = st.lists(st.tuples(TEXTS, TEXTS.filter(lambda text: "\0" not in text)), min_size=1)


@SAME_FILE
@given(cells=CELLS)
def test_tables_of_every_format_give_the_same_rows(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    """CSV has one way of its own: it cannot hold a NUL, and a line break in a cell may be any."""
    cells = [
        (first.replace("\0", "").replace("\r", "\n"), second.replace("\r", "\n")) for first, second in cells
    ]
    template = Template("{a b}: {text}", "completions")
    table = [{"a b": first, "text": second} for first, second in cells]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a b", "text"])
        writer.writeheader()
        writer.writerows(table)
    written(tmp_path / "t.jsonl", *table)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    expected = [f"{first}: {second}" for first, second in cells]
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        rows = rows_of(of(tmp_path / name, template))
        assert [json.loads(row.body)["prompt"] for row in rows] == expected
        assert [row.key for row in rows] == [str(number) for number in range(1, len(cells) + 1)]


def test_a_table_may_have_ids(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,custom_id\nx,one\ny,\n")
    rows = rows_of(of(tmp_path / "t.csv", Template("{text}")))
    assert [row.key for row in rows] == ["one", "2"]
    pq.write_table(pa.table({"text": ["x"], "custom_id": [7], "unused": [b"\0"]}), tmp_path / "t.parquet")
    assert rows_of(of(tmp_path / "t.parquet", Template("{text}")))[0].key == "7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"texts\nx\n", ":1: there is no column 'text', did you mean 'texts'?"),
        (b"text,text\nx,y\n", ":1: the column 'text' is there twice"),
        (b"text,b\nx,y\nx,y,z\n", ":3: it has more cells than the first line has columns"),
        (b"b,text\nx,y\nx\n", ":3: it has no value for 'text'"),
        (b"text\nx\n\xff\n", ":3: it is not UTF-8"),
        (b'text\nx\n"y\n', ":3: unexpected end of data"),
        (b"text\n", " has no rows"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a $(x);'\n.csv"
    path.write_bytes(content)
    assert refusal(of(path, Template("{text}"))) == f"{path}{message}"


def test_a_parquet_file_must_be_one_and_have_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"no")
    assert "is no Parquet file" in refusal(of(path, Template("{text}")))
    pq.write_table(pa.table({"text": ["x", None]}), path)
    assert refusal(of(path, Template("{text}"))) == f"{path}:row 2: it has no value for 'text'"
    assert "no column 'txt', did you mean 'text'?" in refusal(of(path, Template("{txt}")))


def test_what_cannot_be_an_input(tmp_path: Path) -> None:
    assert "none.jsonl cannot be read: No such file" in refusal(of(tmp_path / "none.jsonl"))
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(of(tmp_path / "pipe"))
    assert "Is a directory" in refusal(of(tmp_path))
    (tmp_path / "t.csv").write_text("text\nx\n")
    assert "nothing says what to ask" in refusal(of(tmp_path / "t.csv"))
