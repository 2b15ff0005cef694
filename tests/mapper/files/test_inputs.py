from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError
from aegis.mapper.files.inputs import Inputs, common_base, look, named

if TYPE_CHECKING:
    from collections.abc import Iterable

ENDINGS = (".out", ".log")


def write(folder: Path, *names: str) -> list[Path]:
    for size, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return [folder / name for name in names]


def names_of(paths: Iterable[Path], base: str | None = None) -> list[str]:
    looked = look(paths, "/out")
    return [each.name for each in named(looked, base or common_base(looked), ENDINGS, "/out")]


def test_names_are_relative_to_what_all_have_in_common(tmp_path: Path) -> None:
    assert names_of(write(tmp_path, "a/x", "b/x", "c/d/x")) == ["a/x", "b/x", "c/d/x"]
    assert names_of(write(tmp_path, "a/x", "a-b/x")) == ["a/x", "a-b/x"]
    assert names_of(write(tmp_path, "e/only")) == ["only"]


def test_names_follow_the_first_run(tmp_path: Path) -> None:
    paths = write(tmp_path, "a/x", "a/y")
    assert names_of(paths, str(tmp_path)) == ["a/x", "a/y"]
    with pytest.raises(ConfigError, match="does not lie below"):
        names_of(paths, str(tmp_path / "b"))


def test_a_file_that_is_named_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write(tmp_path, "a/x", "b")
    assert names_of([*paths, Path("a/x"), Path("a/../b")]) == ["a/x", "b"]


def test_results_are_no_inputs(tmp_path: Path) -> None:
    paths = write(tmp_path, "x", "out/x.out")
    assert [path for path, *_ in look(paths, str(tmp_path / "out"))] == [str(paths[0])]


def test_the_biggest_come_first(tmp_path: Path) -> None:
    looked = look(write(tmp_path, "c", "a", "b"), "/out")
    inputs = Inputs(str(tmp_path), list(named(looked, str(tmp_path), ENDINGS, "/out")))
    assert inputs.names == ["b", "a", "c"]
    assert [inputs[n].size for n in range(len(inputs))] == [2, 1, 0]
    assert inputs.path(0) == str(tmp_path / "b")
    assert inputs[0].changed == (tmp_path / "b").stat().st_mtime_ns


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as caught:
        look([tmp_path / "gone", tmp_path, tmp_path / "pipe"], "/out")
    told = caught.value.message.splitlines()
    assert [line.rpartition("'")[2] for line in told] == [
        ": No such file or directory",
        " is no file",
        " is no file",
    ]
    with pytest.raises(ConfigError, match="no inputs"):
        look([], "/out")


def test_results_that_would_lie_inside_of_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would be where those below"):
        names_of(write(tmp_path, "a", "a.out/b/c"))
    assert names_of(write(tmp_path, "d", "d.xyz/b/c")) == ["d", "d.xyz/b/c"]


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n x"))
    path.write_bytes(b"")
    assert [os.fsencode(name) for name in names_of([path])] == [b"\xff\n x"]


def test_thousands_of_files_are_looked_at_in_any_number_of_batches(tmp_path: Path) -> None:
    paths = write(tmp_path, *(f"{n:04}" for n in range(1000)))
    assert [path for path, *_ in look(paths, "/out")] == [str(path) for path in paths]
