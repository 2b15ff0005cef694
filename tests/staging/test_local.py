from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.errors import AegisError
from aegis.staging import local
from aegis.staging.listing import BLOCK, MANIFEST, PART
from aegis.staging.local import adopt, clean_here, stage_here, verify_here
from aegis.staging.node import store
from aegis.staging.scan import scan

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.staging.listing import Item


@pytest.fixture(params=["shared", "cloned", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As this file system can do it; as on one that has clones; and as on one that has neither clones nor links."""
    if request.param == "copied":
        monkeypatch.setattr(local, "_share", lambda *_: False)
    if request.param == "cloned":
        monkeypatch.setattr(local, "_share", _clone)
    return str(request.param)


def _clone(way: str, source: bytes, target: bytes) -> bool:
    """Make a file with the source's content, but its own mode and times, as a clone has."""
    if way == "clone":
        shutil.copyfile(source, target)
    return way == "clone"


@pytest.fixture
def only_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_share", lambda *_: False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "a source"
    (root / "empty").mkdir(parents=True)
    (root / "new\nline").mkdir(mode=0o750)
    (root / "large").write_bytes(os.urandom(1 << 16) * 128 + b"12345")
    (root / "zero").touch()
    (root / "new\nline" / "one").write_bytes(b"1")
    (root / "link").symlink_to("new\nline/one")
    (root / "large").chmod(0o444)
    os.utime(root / "large", ns=(1, 1_600_000_000_123_456_789))
    return root


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(root: Path) -> dict[str, Any]:
    """What is in a tree, with modes and times, but for the manifest."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        status = path.lstat()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = status.st_mode
        elif name != MANIFEST:
            found[name] = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
    return found


def test_the_copy_is_the_source(way: str, source: Path, tmp_path: Path) -> None:
    before = tree(source)
    item = scan(str(source), str(tmp_path / "deep/er/there"))
    result = stage_here(item)
    assert (result.skipped, result.moved) == (False, item.size)
    assert result.method == {"copied": "copy", "cloned": "clone"}.get(way, result.method)
    assert tree(tmp_path / "deep/er/there") == before == tree(source)
    assert names(tmp_path / "deep/er") == ["there"]
    assert verify_here(item) == ""


def test_what_is_complete_is_skipped(way: str, source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    stage_here(item)
    again = stage_here(scan(str(source), str(tmp_path / "d"), ["other", "nodes"]))
    assert (again.skipped, again.moved) == (True, 0)


def test_a_newer_source_replaces_what_was_staged(way: str, source: Path, tmp_path: Path) -> None:
    stage_here(scan(str(source), str(tmp_path / "d")))
    (source / "zero").unlink()
    (source / "more").write_text("more")
    stage_here(scan(str(source), str(tmp_path / "d")))
    assert tree(tmp_path / "d") == tree(source)
    assert not (tmp_path / "d.aegis-old").exists()


def test_somebodys_own_is_never_touched(way: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").touch()
    item = scan(str(source), str(tmp_path / "d"))
    with pytest.raises(AegisError, match="was not staged by aegis"):
        stage_here(item)
    with pytest.raises(AegisError, match="was not staged by aegis"):
        clean_here(item)
    assert names(tmp_path / "d") == ["mine"]


def test_a_single_file(way: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(BLOCK + 1))
    item = scan(str(tmp_path / "image"), str(tmp_path / "to" / "image.sif"))
    assert not stage_here(item).skipped
    assert stage_here(item).skipped
    assert verify_here(item) == ""
    assert (tmp_path / "to" / "image.sif").read_bytes() == (tmp_path / "image").read_bytes()
    assert clean_here(item)
    assert names(tmp_path / "to") == []


def test_times_of_a_source_that_links_share_are_never_set_back(source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    touched: list[int] = []

    def touch(_: int) -> None:  # after the last block was read
        touched.append(1)
        if len(touched) == sum(-(-file.size // BLOCK) for file in item.files):
            for path in (source / "large", source / "new\nline" / "one"):
                os.utime(path, ns=(5, 5))

    if stage_here(item, touch, threads=1).method == "link":
        assert {path.stat().st_mtime_ns for path in (source / "large", source / "new\nline" / "one")} == {5}


@pytest.mark.usefixtures("only_copies")
def test_what_was_stopped_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    moved: list[int] = []

    def cut(count: int) -> None:
        moved.append(count)
        if len(moved) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_here(item, cut, threads=1)
    assert not (tmp_path / "d").exists()
    assert (tmp_path / f"d{PART}").is_dir()
    assert 0 < stage_here(item).moved <= item.size - sum(moved)
    assert tree(tmp_path / "d") == tree(source)


@pytest.mark.usefixtures("only_copies")
def test_a_log_that_was_cut_off_says_nothing_wrong(source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    with pytest.raises(KeyboardInterrupt):
        stage_here(item, _interrupt, threads=1)
    log = tmp_path / f"d{PART}" / ".aegis-blocks"
    log.write_bytes(log.read_bytes() + b"0 1 dead")
    stage_here(item)
    assert tree(tmp_path / "d") == tree(source)
    assert verify_here(item) == ""


def test_a_part_of_something_else_is_begun_anew(way: str, source: Path, tmp_path: Path) -> None:
    part = tmp_path / f"d{PART}"
    part.mkdir()
    (part / ".aegis-blocks").write_text("00000000 5\n0 0 00000000\n")
    (part / "large").write_text("something else")
    stage_here(scan(str(source), str(tmp_path / "d")))
    assert tree(tmp_path / "d") == tree(source)


def test_a_part_with_links_to_the_source_is_never_written_through(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(source)
    item = scan(str(source), str(tmp_path / "d"))
    with pytest.raises(KeyboardInterrupt):
        stage_here(item, _interrupt, threads=1)
    monkeypatch.setattr(local, "_share", lambda *_: False)
    stage_here(item)
    assert tree(source) == before == tree(tmp_path / "d")


def _interrupt(_: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("change", ["shrinks", "grows", "is newer", "is gone"])
def test_a_source_that_changes_is_not_published(way: str, source: Path, tmp_path: Path, change: str) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    file = source / "large"
    file.chmod(0o644)
    if change == "shrinks":
        os.truncate(file, 7)
    elif change == "grows":
        file.write_bytes(bytes(3 * BLOCK))
    elif change == "is newer":
        file.touch()
    else:
        file.unlink()
    with pytest.raises(AegisError, match="large"):
        stage_here(item)
    assert not (tmp_path / "d").exists()


def test_an_empty_file_that_grows_is_noticed(way: str, source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    (source / "zero").write_text("no more")
    with pytest.raises(AegisError, match=r"zero.* changed while it was staged"):
        stage_here(item)


@pytest.mark.usefixtures("only_copies")
def test_without_room_nothing_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    monkeypatch.setattr("aegis.staging.node.store.free_bytes", lambda _: (0, 100, b"/"))
    with pytest.raises(AegisError, match="100 are free"):
        stage_here(item)
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / f"d{PART}").exists()


@pytest.mark.usefixtures("only_copies")
def test_a_disk_that_becomes_full_keeps_what_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    real, writes = os.pwrite, [0]

    def full(handle: int, data: Any, offset: int) -> int:
        writes[0] += 1
        if writes[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(AegisError, match="No space left"):
            stage_here(item, threads=1)
    assert not (tmp_path / "d").exists()
    assert stage_here(item).moved < item.size


def test_a_destination_that_may_not_be_made_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AegisError, match=f"{tmp_path}/file"):
        stage_here(scan(str(source), str(tmp_path / "file" / "d")))


def test_two_that_stage_the_same_do_it_once(way: str, source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    results = []
    threads = [threading.Thread(target=lambda: results.append(stage_here(item))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.skipped for result in results) == [False, True, True, True]


def test_who_waits_for_another_says_so(source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    going, waiting = threading.Event(), threading.Event()
    said = []

    def slow(_: int) -> None:
        going.set()
        waiting.wait(10)

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    first = threading.Thread(target=lambda: stage_here(item, slow, threads=1))
    first.start()
    going.wait(10)
    assert stage_here(item, say=say).skipped
    first.join()
    assert said == [f"{tmp_path}/d: another job stages it; waiting"]


def _spoil_bit(root: Path) -> None:
    (root / "large").chmod(0o644)
    content = bytearray((root / "large").read_bytes())
    content[BLOCK + 3] ^= 1
    (root / "large").write_bytes(content)


@pytest.mark.usefixtures("only_copies")
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_spoil_bit, "large: block 1 is not what was staged"),
        (lambda root: (root / "zero").write_text("x"), "zero: 1 bytes"),
        (lambda root: (root / "new\nline" / "one").unlink(), r"one: No such file"),
        (lambda root: (root / "link").unlink(), "link: not the link"),
        (lambda root: (root / MANIFEST).unlink(), "not staged"),
    ],
)
def test_verify_finds(source: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    item = scan(str(source), str(tmp_path / "d"))
    stage_here(item)
    spoil(tmp_path / "d")
    assert told in verify_here(item)


def test_clean_removes_everything_once(way: str, source: Path, tmp_path: Path) -> None:
    item = scan(str(source), str(tmp_path / "to" / "d"))
    stage_here(item)
    assert clean_here(item)
    assert names(tmp_path / "to") == []
    assert not clean_here(item)
    assert (source / "large").exists()


def test_a_tree_that_was_adopted_is_complete_and_is_not_removed(source: Path) -> None:
    item = scan(str(source), str(source))
    adopt(item)
    assert stage_here(scan(str(source), str(source))).skipped
    assert verify_here(item) == ""
    assert not clean_here(item)
    assert (source / "large").exists()


CONTENT = st.binary(max_size=40) | st.none()
NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: not {b"/", b"\0"} & {name[i : i + 1] for i in range(len(name))} and name not in {b".", b".."}
)


@given(files=st.dictionaries(NAMES, CONTENT, max_size=5), again=st.dictionaries(NAMES, CONTENT, max_size=3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_files_arrive_and_so_do_their_successors(
    files: dict[bytes, bytes | None],
    again: dict[bytes, bytes | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("any")
    for content in (files, again):
        source = root / f"source{content is again}"
        source.mkdir()
        for name, data in content.items():
            path = source / os.fsdecode(name)
            path.write_bytes(data) if data is not None else path.mkdir()
        item: Item = scan(str(source), str(root / "d"))
        stage_here(item)
        assert tree(root / "d") == tree(source)


def test_room_is_not_reserved_where_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory it takes page by page, as long as writing does."""
    reserved: list[int] = []

    def slow(handle: int, offset: int, size: int) -> None:
        del handle, size
        reserved.append(offset)
        time.sleep(store.RESERVE_SECONDS + 0.01)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    monkeypatch.setattr(store, "STEP", 1 << 20)
    (tmp_path / "weights").write_bytes(bytes(range(256)) * (20 << 12))
    item = scan(str(tmp_path / "weights"), str(tmp_path / "there"))
    monkeypatch.setattr("aegis.staging.local._share", lambda *_: False)
    stage_here(item)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "weights").read_bytes()
    assert reserved == [0]
