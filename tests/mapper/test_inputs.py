"""Inputs as they are named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError
from aegis.mapper.inputs import find_inputs

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["a b.jsonl", "a'\"$(x);.jsonl", "b\n.jsonl", "[c].jsonl", "\udcff.jsonl"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in (*NAMES, ".hidden"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "below").mkdir()
    (tmp_path / "in" / "below" / "deep.jsonl").touch()
    return tmp_path / "in"


def test_a_directory_stands_for_its_files_by_name(folder: Path) -> None:
    assert list(find_inputs(["in"])) == sorted(f"in/{name}" for name in NAMES)
    assert list(find_inputs([f"{folder}/below"])) == [f"{folder}/below/deep.jsonl"]


def test_globs_are_sorted_and_names_that_look_like_one_are_names(folder: Path) -> None:
    assert list(find_inputs(["in/[ab]*.jsonl", "in/[c].jsonl"])) == [
        *sorted(f"in/{name}" for name in NAMES[:3]),
        "in/[c].jsonl",
    ]
    assert list(find_inputs(["in/**/deep*"])) == ["in/below/deep.jsonl"]
    assert list(find_inputs(["b.jsonl", "a.jsonl"])) == [
        "b.jsonl",
        "a.jsonl",
    ]  # whoever reads them says what is wrong


def test_lists_hold_a_name_a_line_or_between_nul_bytes(folder: Path) -> None:
    lines = [name for name in NAMES if "\n" not in name]
    (folder / "list").write_bytes(b"\n".join(map(os.fsencode, [*lines, "", " "])))
    assert list(find_inputs([f"@{folder}/list"])) == lines
    (folder / "list").write_bytes(b"".join(os.fsencode(name) + b"\0" for name in NAMES))
    assert list(find_inputs(["x", f"@{folder}/list"])) == ["x", *NAMES]


def test_the_output_is_no_input_of_a_glob_or_a_directory(folder: Path) -> None:
    before = list(find_inputs(["in"], leave_out=folder / "out.jsonl"))
    for name in ("out.jsonl", "out.jsonl.journal"):
        (folder / name).touch()
    assert list(find_inputs(["in"], leave_out=folder / "out.jsonl")) == before
    assert list(find_inputs(["in/*.json*"], leave_out=folder / "out.jsonl")) == before
    assert list(find_inputs(["in/out.jsonl"], leave_out=folder / "out.jsonl")) == ["in/out.jsonl"]
    assert "in/out.jsonl" in find_inputs(["in"], leave_out=folder.parent / "out.jsonl")


@pytest.mark.parametrize("given", ["in/*.csv", "empty", "@none", "@empty.list"])
def test_what_means_no_file_is_refused(folder: Path, given: str) -> None:
    (folder.parent / "empty").mkdir()
    (folder.parent / "empty.list").write_text("\n\n")
    with pytest.raises(ConfigError):
        list(find_inputs([given]))
