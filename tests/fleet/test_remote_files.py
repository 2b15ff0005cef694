"""The files of a far machine: the answers of the local ones, in one question for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import SiteError
from aegis.fleet.remote_files import TransportFiles
from aegis.fleet.request import Place
from aegis.preflight.files import Ask, LocalFiles
from aegis.preflight.report import findings
from aegis.schedulers.transport import Done, Here
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOCAL = LocalFiles()
NAMES = [
    "plain",
    "a b",
    "it's",
    'say "x"',
    "$(touch x)",
    "; touch x",
    "a\nb",
    "-n",
    "*",
    "ü",
    "back\\slash",
    "x/y",
]


class Counting(Here):
    """This machine, played as a far one: counts what it is asked."""

    def __init__(self) -> None:
        super().__init__({"PATH": "/usr/bin:/bin"})
        self.asked: list[Sequence[str]] = []
        self.before = ""  # what a start-up file prints
        self.cut: int | None = None

    def run(self, argv: Sequence[str], **keys: Any) -> Done:
        self.asked.append(argv)
        done = super().run(argv, **keys)
        out = self.before + done.out
        return Done(done.code, out if self.cut is None else out[: self.cut], done.err)


@pytest.fixture
def far() -> Counting:
    return Counting()


def files(far: Counting, folder: Path) -> TransportFiles:
    return TransportFiles(far, Place(str(folder), str(folder), "python"))


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_those_of_the_machine_itself(tmp_path: Path, far: Counting, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"\0\xff\n" * 100)
    (folder / "link").symlink_to("file")
    (folder / "broken").symlink_to("gone")
    (folder / "sub").mkdir()
    there = files(far, tmp_path)
    for path in (str(folder), str(folder / "file"), str(folder / "broken"), str(folder / "sub"), "/no/such"):
        assert there.exists(path) == LOCAL.exists(path)
        assert there.is_dir(path) == LOCAL.is_dir(path)
        assert there.writable(path) == (LOCAL.is_dir(path) and LOCAL.writable(path))
        assert there.read(path, 50) == LOCAL.read(path, 50)
        assert there.names(path) == LOCAL.names(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name.partition("/")[0]]


def test_names_of_files_may_be_anything(tmp_path: Path, far: Counting) -> None:
    for number, name in enumerate(name for name in NAMES if "/" not in name):
        (tmp_path / name).write_bytes(b"x" * number)
    assert files(far, tmp_path).names(str(tmp_path)) == LOCAL.names(str(tmp_path))


def test_what_is_expected_is_asked_at_once_and_never_again(tmp_path: Path, far: Counting) -> None:
    (tmp_path / "file").write_text("content")
    there = files(far, tmp_path)
    file, folder = str(tmp_path / "file"), str(tmp_path)
    there.expect([Ask("look", file), Ask("look", folder), Ask("names", folder), Ask("read", file, 3)])
    assert len(far.asked) == 1
    there.expect([Ask("look", file), Ask("names", folder)])
    assert (there.exists(file), there.is_dir(folder), there.names(folder)) == (True, True, {"file": 7})
    assert there.read(file, 3) == b"con"
    assert len(far.asked) == 1
    assert there.read(file, 4) == b"cont"
    assert len(far.asked) == 2


def test_nothing_expected_is_nothing_asked(tmp_path: Path, far: Counting) -> None:
    files(far, tmp_path).expect([])
    assert far.asked == []


def test_what_no_argument_can_say_is_not_there(tmp_path: Path, far: Counting) -> None:
    there = files(far, tmp_path)
    assert not there.exists("/a\0b")
    assert not there.names("/a\0b")
    assert there.read("/a\0b", 9) == b""
    assert far.asked == []


def test_what_start_up_files_print_is_passed_over(tmp_path: Path, far: Counting) -> None:
    far.before = "Welcome!\nLast login: today\n"
    assert files(far, tmp_path).is_dir(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 5, 12, 20, 30])
def test_an_answer_that_is_cut_short_is_no_answer(tmp_path: Path, far: Counting, cut: int) -> None:
    for number in range(5):
        (tmp_path / f"file{number}").write_text("")
    far.cut = cut
    asked = [Ask("names", str(tmp_path)), Ask("look", str(tmp_path))]
    with pytest.raises(SiteError, match="this machine does not tell which files it has"):
        files(far, tmp_path).expect(asked)


def test_a_far_deployment_is_checked_in_three_questions(tmp_path: Path, far: Counting) -> None:
    config = '{"num_attention_heads": 64, "model_type": "llama"}'
    for name in ("one", "two"):
        snapshot = tmp_path / f"models--org--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(config)
        (snapshot / "model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"{}")
    text = "".join(
        f"  - model: org/{name}\n    model_source: models--org--{name}\n    tensor_parallel_size: 6\n"
        for name in ("one", "two")
    )
    (tmp_path / "d.yaml").write_text(f"platform: frontier\naccount: a\nvenv: gone\nmodels:\n{text}")
    resolved = resolve(tmp_path / "d.yaml", {}, {}, Site((BUILT_IN,), "laptop", lambda _: False))
    found = findings(resolved, 1, files(far, tmp_path), {})
    assert [each.problem.message.replace(str(tmp_path), "~") for each in found] == [
        "the virtual environment is not there: ~/gone",
        "the 64 attention heads of org/one cannot be split over 6 devices",
        "the 64 attention heads of org/two cannot be split over 6 devices",
    ]
    assert len(far.asked) == 3
