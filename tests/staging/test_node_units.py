"""The parts of the stager by themselves: frames, sets of blocks, lists, the store, who may connect."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.staging import listing
from aegis.staging.node import blocks, frames, secret
from aegis.staging.node.frames import END, Piece, Pool
from aegis.staging.node.items import BLOCK, Item, ListError, parse, reason
from aegis.staging.node.places import Lock, places_of, published, read_log
from aegis.staging.node.source import Source, SourceError, loads
from aegis.staging.node.store import Store, StoreError

if TYPE_CHECKING:
    from pathlib import Path

U32 = st.integers(0, 2**32 - 1)
PATHS = st.binary(min_size=1, max_size=12).filter(
    lambda p: b"\0" not in p and p[:1] != b"/" and b".." not in p
)


@given(st.lists(st.binary(max_size=300), max_size=20), U32, st.data())
def test_frames_come_as_they_were_sent(contents: list[bytes], crc: int, data: st.DataObject) -> None:
    key = (data.draw(st.integers(0, 2**16 - 1)), data.draw(U32))
    offset = data.draw(st.integers(0, 2**64 - 1))
    pieces = [Piece(data.draw(U32), len(content), offset, crc) for content in contents]
    pool = Pool(2)
    here, there = socket.socketpair()
    with here, there:
        for kind in (frames.DATA, END):
            frames.send(here, frames.encode(kind, key, pieces, map(memoryview, contents)).parts)
        for kind in (frames.DATA, END):
            found = frames.read(there, pool)
            assert found is not None
            assert (found.key, found.pieces, bytes(found.data)) == (key, pieces, b"".join(contents))
            assert found.last == (kind == END)
            found.release()
        here.close()
        assert frames.read(there, pool) is None


@given(st.binary(min_size=1, max_size=200))
def test_what_is_no_frame_is_refused(noise: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(noise)
        here.close()
        with pytest.raises(frames.FrameError):
            frames.read(there, Pool(1))


def test_a_buffer_is_given_back_when_nobody_holds_it_and_whoever_wants_one_waits() -> None:
    pool = Pool(1)
    here, there = socket.socketpair()
    with here, there:
        for _ in range(2):
            frames.send(here, frames.encode(END, (0, 1), [], []).parts)
        first = frames.read(there, pool)
        assert first is not None
        first.hold()
        first.release()
        got: list[frames.Frame | None] = []
        reading = threading.Thread(target=lambda: got.append(frames.read(there, pool)))
        reading.start()
        reading.join(0.05)
        assert not got
        first.release()
        reading.join(20)
        assert got


@given(st.binary(max_size=200))
def test_what_is_missing_is_what_is_not_done(marks: bytes) -> None:
    done = bytearray(mark & 1 for mark in marks)
    ranges = blocks.missing(done)
    assert list(blocks.numbers(ranges)) == [n for n, mark in enumerate(done) if not mark]
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))
    assert blocks.checked([list(each) for each in ranges], len(done)) == ranges


@given(st.lists(st.binary(min_size=30, max_size=30), max_size=5))
def test_a_union_has_what_any_lacks(marks: list[bytes]) -> None:
    sets = [blocks.missing(bytearray(mark & 1 for mark in each)) for each in marks]
    expected = sorted({number for ranges in sets for number in blocks.numbers(ranges)})
    assert list(blocks.numbers(blocks.union(sets))) == expected


@pytest.mark.parametrize("told", [None, 5, [[0, 9]], [[-1, 2]], [[2, 2]], [["a", 1]], [[1]]])
def test_ranges_of_another_item_are_refused(told: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        blocks.checked(told, 8)


@given(
    st.lists(st.tuples(PATHS, st.integers(0, 5 * BLOCK), st.integers(0, 2**62)), max_size=8),
    st.lists(st.tuples(PATHS, PATHS), max_size=3),
)
def test_a_list_is_read_as_it_was_written(
    files: list[tuple[bytes, int, int]], links: list[tuple[bytes, bytes]]
) -> None:
    item = listing.Item(
        source="/s",
        destination="/d",
        hosts=("a", "b"),
        directories=(listing.Directory(".", 0o755),),
        files=tuple(
            listing.File(os.fsdecode(p), size, time, 0o640, os.fsdecode(p)) for p, size, time in files
        ),
        links=tuple(listing.Link(os.fsdecode(path), os.fsdecode(target)) for path, target in links),
    )
    other = listing.Item(source="/t", destination="/e")
    first, second = parse(listing.encode([item, other]))
    assert [(f.path, f.size, f.mtime_ns, f.mode, f.source) for f in first.files] == [
        (path, size, time, 0o640, path) for path, size, time in files
    ]
    assert (first.links, first.directories, first.hosts) == (links, [(b".", 0o755)], ["a", "b"])
    assert second.records == b"I\0/t\0/e\0"
    assert listing.encode([item]) == listing.MAGIC + first.records.replace(
        b"I\0/s\0/d\0", b"I\0/s\0/d\0R\0a\0R\0b\0", 1
    )
    sizes = [first.block(number)[2] for number in range(first.blocks)]
    assert sum(sizes) == first.size == first.bytes_of([(0, first.blocks)] if sizes else [])
    for start in range(first.blocks):
        assert first.bytes_of([(start, start + 1)]) == sizes[start]


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/../../x", b""])
def test_a_list_cannot_lead_out_of_its_destination(path: bytes) -> None:
    with pytest.raises(ListError, match="leads out of the destination"):
        parse(listing.MAGIC + b"I\0/a\0/b\0L\0" + path + b"\0t\0")


def made(folder: Path, *sizes: int) -> Item:
    """Return the item of some files."""
    source = folder / "source"
    source.mkdir()
    files = []
    for n, size in enumerate(sizes):
        (source / str(n)).write_bytes(os.urandom(size))
        found = (source / str(n)).stat()
        files.append(listing.File(str(n), size, found.st_mtime_ns, 0o600, str(n)))
    directories = (listing.Directory(".", 0o755),)
    item = listing.Item(
        source=str(source), destination=str(folder / "there"), files=tuple(files), directories=directories
    )
    return parse(listing.encode([item]))[0]


def never() -> None:
    pytest.fail("nobody else stages this")


def ready(item: Item) -> Store:
    store = Store(item)
    assert store.prepare(never)
    return store


def put(store: Store, source: Source, *, leave_out: int = -1) -> None:
    for number, frame in enumerate(source.frames((0, 1), store.missing)):
        if number != leave_out:
            store.write(frame.pieces, frame.data)


def test_a_lost_frame_leaves_its_block_out_and_the_next_round_brings_it(tmp_path: Path) -> None:
    item = made(tmp_path, 2 * BLOCK + 9, 10, 20)
    store, source = ready(item), Source(item)
    put(store, source, leave_out=9)  # the second frame of the second block
    assert store.missing == [(1, 2)]
    put(store, source)
    assert store.complete
    store.publish()
    assert (tmp_path / "there" / "0").read_bytes() == (tmp_path / "source" / "0").read_bytes()
    assert published(places_of(item))
    assert source.bytes_read == item.size + BLOCK


def test_what_comes_twice_is_written_once_and_what_is_wrong_not_at_all(tmp_path: Path) -> None:
    item = made(tmp_path, 100, 3 << 20)
    store, source = ready(item), Source(item)
    sent = list(source.frames((0, 1), store.missing))
    small = sent[0]
    store.write([small.pieces[0]._replace(crc=1)], small.data)
    store.write([small.pieces[0]._replace(file=7)], small.data)
    store.write([small.pieces[0]._replace(offset=50)], small.data)
    assert store.missing == [(0, 2)]
    for frame in [*sent, *sent]:
        store.write(frame.pieces, frame.data)
    assert store.complete
    assert store.received == item.size


def test_a_broken_log_costs_only_its_broken_lines(tmp_path: Path) -> None:
    item = made(tmp_path, 10, 20, 30)
    store = ready(item)
    put(store, Source(item))
    store.abandon()
    log = tmp_path / "there.aegis-part" / ".aegis-blocks"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"9 9 0\n", b"x\n", b"1 0 zz\n", lines[2][:-3]]))
    assert read_log(store.places) == {0: zlib.crc32((tmp_path / "source" / "0").read_bytes())}
    again = ready(item)
    assert again.missing == [(1, 3)]
    put(again, Source(item))
    again.publish()
    assert published(places_of(item))


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = made(tmp_path, 5000)
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*real[:4], 1, *real[5:])))
    if real.f_frsize >= 5000:
        pytest.skip("blocks of this file system are large")
    with pytest.raises(StoreError, match="needs 5,000 bytes more, but only"):
        Store(item).prepare(never)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_lock_is_had_by_one_at_a_time_also_when_its_file_is_removed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "lock")
    one, other = Lock(path), Lock(path)
    assert one.take(wait=True)
    assert not other.take(wait=False)
    waiting = threading.Thread(target=lambda: other.take(wait=True))
    waiting.start()
    one.drop()
    waiting.join(20)
    assert not waiting.is_alive()
    assert not one.take(wait=False)
    other.drop()
    assert not (tmp_path / "lock").exists()


def test_a_source_that_grew_is_found_out(tmp_path: Path) -> None:
    item = made(tmp_path, 10, 0)
    (tmp_path / "source" / "1").write_bytes(b"x")
    with pytest.raises(SourceError, match="1: changed while it was staged"):
        Source(item).check()


def test_small_files_go_many_in_a_frame(tmp_path: Path) -> None:
    item = made(tmp_path, *[4096] * 600)
    assert len(list(loads(item, [(0, 600)]))) == 3
    assert max(len(frame.parts) for frame in Source(item).frames((0, 1), [(0, 600)])) == 2


@pytest.mark.parametrize(("mine", "theirs"), [(b"x" * 16, b"x" * 16), (b"x" * 16, b"y" * 16)])
def test_only_who_knows_the_secret_is_let_in_on_both_sides(mine: bytes, theirs: bytes) -> None:
    here, there = socket.socketpair()
    said: list[str] = []

    def answer() -> None:
        try:
            secret.answer(there, theirs)
        except secret.Refused:
            said.append("refused")
        there.close()

    answering = threading.Thread(target=answer)
    answering.start()
    with here:
        if mine == theirs:
            secret.ask(here, mine)
        else:
            with pytest.raises(secret.Refused):
                secret.ask(here, mine)
    answering.join(20)
    assert said == ([] if mine == theirs else ["refused"])


def test_a_secret_is_long_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secret.VARIABLE, "short")
    with pytest.raises(ValueError, match="16 characters"):
        secret.read_secret("")
    monkeypatch.setenv(secret.VARIABLE, "x" * 16)
    assert secret.read_secret("") == b"x" * 16
    assert secret.VARIABLE not in os.environ


def test_an_error_names_its_file() -> None:
    assert reason(OSError(28, "No space left on device", b"/a\xff")) == "/a\\xff: No space left on device"
    assert reason(ValueError("why")) == "why"
