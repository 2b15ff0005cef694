from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.staging.scan import scan, snapshot_at

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.staging.listing import Item

HOSTILE = [
    "a b",
    "new\nline",
    "-rf",
    "$(touch x)",
    "ümlaut",
    "quote'\"",
    "*",
    os.fsdecode(b"\xff\xfe"),
    "tab\t",
    "...",
]


def files(item: Item) -> dict[str, str]:
    return {file.path: file.source for file in item.files}


def links(item: Item) -> dict[str, str]:
    return {link.path: link.target for link in item.links}


def problems_of(source: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        scan(str(source), "/d")
    return refused.value.message


def test_a_tree_has_its_files_directories_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "zero").touch()
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "one").chmod(0o640)
    os.utime(tmp_path / "one", ns=(5, 7))
    item = scan(str(tmp_path), "/to/there", ["n1"])
    assert [each.path for each in item.directories] == [".", "empty", "empty/deeper"]
    assert {file.path: (file.size, file.mode) for file in item.files} == {
        "one": (1, 0o640),
        "zero": (0, 0o644),
    }
    assert next(file.mtime_ns for file in item.files if file.path == "one") == 7
    assert (item.destination, item.hosts, item.size) == ("/to/there", ("n1",), 1)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_may_hold_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_text("x")
    assert files(scan(str(tmp_path), "/d")) == {f"{name}/{name}": f"{name}/{name}"}


def test_a_file_is_an_item_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "image.sif").write_bytes(b"12")
    item = scan(str(tmp_path / "image.sif"), "/d.sif")
    assert (files(item), item.size, item.directories) == ({".": "."}, 2, ())
    assert item.source == str(tmp_path / "image.sif")


def test_links_inside_stay_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "to_file").symlink_to("folder/file")
    (tmp_path / "to_folder").symlink_to("folder")
    (tmp_path / "folder" / "up").symlink_to("..")
    (tmp_path / "chain").symlink_to("to_file")
    item = scan(str(tmp_path), "/d")
    expected = {"to_file": "folder/file", "to_folder": "folder", "folder/up": "..", "chain": "to_file"}
    assert links(item) == expected
    assert set(files(item)) == {"folder/file"}


def test_links_inside_that_name_the_old_place_are_made_relative(tmp_path: Path) -> None:
    root = tmp_path / "top"
    (root / "deep").mkdir(parents=True)
    (root / "file").touch()
    (root / "deep" / "absolute").symlink_to(root / "file")
    (root / "deep" / "around").symlink_to("../../top/file")
    assert links(scan(str(root), "/d")) == {"deep/absolute": "../file", "deep/around": "../file"}


def test_links_out_of_the_tree_are_replaced_by_what_they_lead_to(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    (out / "sub").mkdir(parents=True)
    (out / "file").write_text("abc")
    (out / "sub" / "back").symlink_to("../file")
    (root / "file").symlink_to(out / "file")
    (root / "folder").symlink_to("../out")
    item = scan(str(root), "/d")
    assert files(item) == {"file": "file", "folder/file": "folder/file"}
    assert links(item) == {"folder/sub/back": "../file"}
    assert "folder/sub" in [each.path for each in item.directories]


def test_all_problems_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dangling").symlink_to("no\nwhere")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # paths of sockets must be short
        server.bind("socket")
        told = problems_of(tmp_path)
    assert "5 problems" in told
    assert f"{tmp_path}/dangling: the link leads nowhere: no\\nwhere" in told
    assert f"{tmp_path}/a: the link leads to itself" in told
    assert f"{tmp_path}/pipe: a named pipe cannot be staged" in told
    assert f"{tmp_path}/socket: a socket cannot be staged" in told


def test_a_link_to_a_directory_above_is_no_endless_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "up").symlink_to("..")
    assert "contains it" in problems_of(root)


def test_directories_outside_that_link_to_each_other_end(tmp_path: Path) -> None:
    for name in ("root", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "x").symlink_to("../one")
    (tmp_path / "one" / "two").symlink_to("../two")
    (tmp_path / "two" / "one").symlink_to("../one")
    assert links(scan(str(tmp_path / "root"), "/d")) == {"x/two/one": ".."}


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").touch()
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read anything
    assert "secret: it may not be read" in problems_of(tmp_path)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    assert "it is not there" in problems_of(tmp_path / "a\nb")
    assert "\\n" in problems_of(tmp_path / "a\nb")


def test_many_problems_are_counted(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").symlink_to("nowhere")
    told = problems_of(tmp_path)
    assert "100 problems" in told
    assert told.endswith("and 70 more")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A Hugging Face cache entry with two revisions, of which the first shares a blob with the second."""
    root = tmp_path / "models--org--name"
    for folder in ("blobs", "refs/pr", "snapshots/aaa/sub", "snapshots/bbb", ".no_exist/aaa"):
        (root / folder).mkdir(parents=True)
    for blob in ("b1", "b2", "b3", "b4.incomplete"):
        (root / "blobs" / blob).write_text(blob)
    (root / "snapshots/aaa/config.json").symlink_to("../../blobs/b1")
    (root / "snapshots/aaa/sub/weights").symlink_to("../../../blobs/b2")
    (root / "snapshots/bbb/config.json").symlink_to("../../blobs/b3")
    (root / "refs/main").write_text("aaa")
    (root / "refs/pr/1").write_text("bbb")
    return root


def test_of_a_cache_entry_one_snapshot_is_taken_with_its_blobs_and_refs(entry: Path) -> None:
    item = scan(str(entry / "snapshots/aaa"), "/hub/models--org--name")
    assert item.source == str(entry)
    assert set(files(item)) == {"blobs/b1", "blobs/b2", "refs/main"}
    assert links(item) == {
        "snapshots/aaa/config.json": "../../blobs/b1",
        "snapshots/aaa/sub/weights": "../../../blobs/b2",
    }
    folders = {".", "blobs", "refs", "snapshots", "snapshots/aaa", "snapshots/aaa/sub"}
    assert {each.path for each in item.directories} == folders


def test_refs_of_other_revisions_stay_behind(entry: Path) -> None:
    assert set(files(scan(str(entry / "snapshots/bbb"), "/d"))) == {"blobs/b3", "refs/pr/1"}


def test_a_blob_that_is_missing_is_a_problem_of_its_link(entry: Path) -> None:
    (entry / "blobs/b2").unlink()
    told = problems_of(entry / "snapshots/aaa")
    assert f"{entry}/snapshots/aaa/sub/weights: the link leads nowhere: ../../../blobs/b2" in told


def test_blobs_that_are_links_are_taken_once(entry: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("elsewhere")
    (entry / "blobs/b1").unlink()
    (entry / "blobs/b1").symlink_to(tmp_path / "store")
    item = scan(str(entry / "snapshots/aaa"), "/d")
    assert {file.path: file.size for file in item.files}["blobs/b1"] == 9
    assert links(item)["snapshots/aaa/config.json"] == "../../blobs/b1"


def test_an_entry_without_links_holds_its_files_in_the_snapshot(tmp_path: Path) -> None:
    root = tmp_path / "models--org--name" / "snapshots" / "aaa"
    root.mkdir(parents=True)
    (root / "config.json").write_text("{}")
    assert set(files(scan(str(root), "/d"))) == {"snapshots/aaa/config.json"}


def test_a_snapshot_is_known_by_its_place() -> None:
    assert snapshot_at("/x/models--a--b/snapshots/rev/") == ("/x/models--a--b", "rev")
    assert snapshot_at("/x/models--a--b") is None
    assert snapshot_at("/x/other/snapshots/rev") is None


def test_a_hundred_thousand_files_are_quick(tmp_path: Path) -> None:
    for folder in range(20):
        (tmp_path / f"{folder}").mkdir()
        for number in range(500):
            (tmp_path / f"{folder}" / f"{number}").touch()
    began = time.monotonic()
    assert len(scan(str(tmp_path), "/d").files) == 10_000
    assert time.monotonic() - began < 2  # 0.1 s when nothing else runs


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(lambda name: name not in {".", ".."} and not name.startswith(".aegis-"))
TREES = st.recursive(
    st.binary(max_size=30) | st.none(), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def grow(path: Path, tree: object) -> None:
    """Make a tree: directories, files, and links to the first name beside them."""
    if isinstance(tree, dict):
        path.mkdir()
        for name, below in tree.items():
            grow(path / name, below)
    elif isinstance(tree, bytes):
        path.write_bytes(tree)
    else:
        path.symlink_to(".")


@given(tree=st.dictionaries(NAMES, TREES, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_entry_of_any_tree_is_in_the_item(
    tree: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree") / "root"
    grow(root, tree)
    item = scan(str(root), "/d")
    there = {os.path.relpath(path, root) for path in root.rglob("*")} | {"."}
    found = [each.path for each in item.directories] + [each.path for each in item.files]
    assert sorted([*found, *links(item)]) == sorted(there)
