"""The same bad days for every stager: each ends with a clear error or a correct tree, and nothing is published half."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from aegis.errors import SiteError
from aegis.staging import mpi
from aegis.staging.listing import BLOCK, Item, encode
from aegis.staging.local import adopt
from aegis.staging.node.items import parse
from aegis.staging.node.places import places_of
from aegis.staging.scan import scan

from .ranks import ranks_of
from .tcp_site import Run, Site, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.lab

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
BLOCKS: Final = 25  # of the model
LEAST: Final = 0.6  # of it that is there when all is killed; each node has its last blocks in another order
MOST: Final = 0.45  # of it that the next run may move
SLOW: Final = ("--rate", "200", "--readers", "1")  # else MPI is done before we look
OVERRIDE: Final = "-dac_override,-dac_read_search"  # what lets root write what is read-only

# Stages an item on this machine; at one of its blocks it waits for a line, or for its end.
COPY: Final = """
import json, pickle, sys, threading
from aegis.errors import AegisError
from aegis.staging import local
listed, way, hold = sys.argv[1:]
with open(listed, "rb") as file:
    item = pickle.load(file)
if way == "copy":
    local._share = lambda *_: False
lock, told = threading.Lock(), []
def tell(count):
    with lock:
        told.append(count)
        if len(told) == int(hold):
            print("held", flush=True)
            sys.stdin.readline()
try:
    result = local.stage_here(item, tell, lambda line: print(line, flush=True))
    print(json.dumps([True, result.moved, ""]))
except AegisError as error:
    print(json.dumps([False, sum(told), error.message]))
"""


class Outcome(NamedTuple):
    """What came of a run."""

    code: int
    errors: dict[str, str]  # of each node; "" it has the model
    read: int  # bytes of the source


class Going(NamedTuple):
    """A run that goes on."""

    hold: Callable[[], None]  # stops it where it is
    go_on: Callable[[], None]
    kill: Callable[[], None]  # all of it, at once
    end: Callable[[], Outcome]


class Ground(NamedTuple):
    """A stager, with a source and destinations of its own."""

    kind: str
    folder: Path
    tcp: Site
    program: Path | None
    nodes: tuple[str, ...]

    @property
    def source(self) -> Path:
        return self.tcp.source

    def item(self, destination: Path | None = None) -> Item:
        return scan(str(self.source), str(destination or self.folder / "there"))

    def at(self, node: str) -> Path:
        return self.folder / ("there" if self.kind == "copy" else f"there.{node}")

    def part(self, node: str) -> Path:
        return self.at(node).with_name(self.at(node).name + ".aegis-part")

    def noted(self, node: str) -> int:
        """How many blocks a node has written."""
        with contextlib.suppress(OSError):
            return (self.part(node) / ".aegis-blocks").read_bytes().count(b"\n") - 1
        return 0

    def run(self, item: Item | None = None, prefix: Sequence[str] = ()) -> Outcome:
        return start(self, item or self.item(), prefix=prefix).end()

    def has(self, node: str) -> bool:
        return contents(self.at(node)) == contents(self.source)


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """What is in a tree, but for staging's own."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder / "nothing"]:
        state = path.lstat() if os.path.lexists(path) else None
        if path.name.startswith(".aegis-") or state is None:
            continue
        name = os.path.relpath(path, folder)
        if path.is_symlink():
            found[name] = ("link", path.readlink())
        elif path.is_dir():
            found[name] = ("directory", state.st_mode)
        else:
            found[name] = (state.st_mode, state.st_mtime_ns, path.read_bytes())
    return found


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    if shutil.which("mpiexec") is None:
        return None
    try:
        return mpi.program(environ=os.environ, cache=tmp_path_factory.mktemp("cache"))
    except SiteError:
        return None


@pytest.fixture(params=["mpi-1", "mpi-2", "mpi-3", "tcp", "copy"])
def site(request: pytest.FixtureRequest, program: Path | None, tmp_path: Path) -> Iterator[Ground]:
    kind, _, count = request.param.partition("-")
    if kind == "mpi" and program is None:
        pytest.skip("no MPI on this machine")
    nodes = {"mpi": tuple(map(str, range(int(count or 0)))), "tcp": ("a", "b"), "copy": ("here",)}[kind]
    shm = Path("/dev/shm")
    above = Path(tempfile.mkdtemp(dir=shm)) if os.access(shm, os.W_OK) else tmp_path
    folder = above / "a b\n$(touch pwned);'\""
    folder.mkdir()
    made = Site(folder)
    try:
        yield Ground(kind, folder, made, program, nodes)
    finally:
        made.close()
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(above)


def start(
    site: Ground,
    item: Item,
    *,
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    way: str = "copy",
    at: int = 0,
) -> Going:
    """Start a run; options are of the MPI program, and what runs on this machine holds by itself at a block."""
    if site.kind == "tcp":
        return start_tcp(site, item)
    if site.kind == "mpi":
        return start_mpi(site, item, prefix, options)
    return start_copy(site, item, prefix, way, at)


def start_tcp(site: Ground, item: Item) -> Going:
    run = Run(site.tcp, [item], site.nodes).join()

    def kill() -> None:
        for process in (run.head, *run.receivers.values()):
            process.kill()

    def end() -> Outcome:
        code = run.end()
        errors = {host: result.error or "" for host, result in run.results().items()}
        return Outcome(code, errors, run.done.bytes_read if code >= 0 else 0)

    stop, go_on = (lambda: run.head.send_signal(signal.SIGSTOP), lambda: run.head.send_signal(signal.SIGCONT))
    return Going(stop, go_on, kill, end)


def start_mpi(site: Ground, item: Item, prefix: Sequence[str], options: Sequence[str]) -> Going:
    assert site.program
    listing = site.folder / "list"
    listing.write_bytes(encode([item]))
    argv = ["mpiexec", "-n", str(len(site.nodes)), str(site.program), str(listing), "--dest-suffix-rank"]
    process = subprocess.Popen(
        [*prefix, *argv, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=site.folder
    )
    site.tcp.started.append(process)

    def send(what: signal.Signals) -> None:
        for pid in ranks_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def end() -> Outcome:
        out, err = process.communicate(timeout=60)
        events = [json.loads(line) for line in out.splitlines() if line.startswith(b"{")]
        errors = {each["host"][4:]: each["error"] or "" for each in events if each["event"] == "node"}
        read = sum(each["bytes_read"] for each in events if each["event"] == "done")
        return Outcome(process.returncode, errors or {"": mpi.death(process.returncode, err + out)}, read)

    return Going(
        lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT), lambda: send(signal.SIGKILL), end
    )


def start_copy(site: Ground, item: Item, prefix: Sequence[str], way: str, at: int) -> Going:
    listed = site.folder / "item"
    listed.write_bytes(pickle.dumps(item))
    argv = [*prefix, sys.executable, "-c", COPY, str(listed), way, str(at)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=site.folder)
    site.tcp.started.append(process)

    def hold() -> None:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"

    def go_on() -> None:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()

    def end() -> Outcome:
        assert process.stdin
        assert process.stdout
        lines = process.stdout.read().splitlines()
        code = process.wait(60)
        process.stdin.close()
        process.stdout.close()
        if code:
            return Outcome(code, {"here": "killed"}, 0)
        done, read, error = json.loads(lines[-1])
        return Outcome(int(not done), {"here": error}, read)

    return Going(hold, go_on, process.kill, end)


def fill(source: Path, blocks: int = BLOCKS) -> None:
    """Make a model of a large file and two others."""
    seed = os.urandom(BLOCK + blocks)
    with (source / "large").open("wb") as file:
        file.writelines(seed[n : n + BLOCK] for n in range(blocks - 5))
    (source / "folder").mkdir()
    for name in ("other", "folder/third"):
        (source / name).write_bytes(seed[: 2 * BLOCK + 5] * 2 + name.encode())
    (source / "small").write_bytes(b"s")


def held_at(site: Ground, blocks: int, way: str = "copy") -> Going:
    """Start a run and stop it when every node has written some blocks."""
    item = site.item()
    going = start(site, item, options=SLOW, way=way, at=blocks)
    if site.kind != "copy":
        until(lambda: all(site.noted(node) >= blocks for node in site.nodes), "blocks at all nodes")
    going.hold()
    assert not any(site.at(node).exists() for node in site.nodes)
    return going


def test_whatever_a_tree_holds_arrives(site: Ground) -> None:
    (site.source / "only" / "empty").mkdir(parents=True)
    (site.source / "zero").touch()
    assert site.run().code == 0
    (site.source / "one").write_bytes(b"1")
    (site.source / "new\nline '$(x)").write_bytes(b"2" * BLOCK)
    (site.source / "link").symlink_to("one")
    (site.source / "closed").mkdir()
    (site.source / "closed" / "file").write_bytes(b"c")
    (site.source / "closed" / "file").chmod(0o400)
    (site.source / "closed").chmod(0o500)
    done = site.run()
    assert done.code == 0, done.errors
    assert all(site.has(node) for node in site.nodes)
    assert not (site.folder / "pwned").exists()
    left = {path.name for path in site.folder.iterdir() if ".aegis-" in path.name}
    assert not left


@pytest.mark.parametrize("what", ["empty", "small"])
def test_a_file_that_is_not_as_it_was_listed_is_published_nowhere(site: Ground, what: str) -> None:
    for name, size in (("empty", 0), ("small", 10), ("others", BLOCK + 1)):
        (site.source / name).write_bytes(b"x" * size)
    item = site.item()
    (site.source / what).write_bytes(b"other")
    done = site.run(item)
    assert done.code == 1
    assert all(f"source/{what}" in error for error in done.errors.values()), done.errors
    assert not any(site.at(node).exists() for node in site.nodes)


@pytest.mark.parametrize("how", ["shrinks", "is newer", "is gone"])
def test_a_file_that_changes_while_it_is_read_is_published_nowhere(site: Ground, how: str) -> None:
    fill(site.source)
    going = held_at(site, 3)
    for name in ("large", "other", "folder/third"):
        if how == "shrinks":
            os.truncate(site.source / name, 1000)
        elif how == "is newer":
            os.utime(site.source / name)
        else:
            (site.source / name).rename(site.folder / name.replace("/", "_"))
    going.go_on()
    done = going.end()
    if how == "is gone" and done.code == 0:  # it was open already, and is what was listed
        return
    assert done.code == 1
    assert set(done.errors) == set(site.nodes)
    assert all("large" in error or "other" in error or "third" in error for error in done.errors.values())
    assert not any(site.at(node).exists() for node in site.nodes)


def test_what_was_killed_at_sixty_percent_moves_less_than_half_again(site: Ground) -> None:
    fill(site.source)
    going = held_at(site, round(LEAST * BLOCKS) + 2)
    going.kill()
    assert going.end().code != 0
    assert not any(site.at(node).exists() for node in site.nodes)
    done = site.run()
    assert done.code == 0, done.errors
    assert done.read <= MOST * site.item().size
    assert all(site.has(node) for node in site.nodes)


@pytest.mark.parametrize(("first", "second"), [("mpi", "tcp"), ("tcp", "mpi")])
def test_one_stager_goes_on_where_another_was_killed(
    program: Path | None, tmp_path: Path, first: str, second: str
) -> None:
    if program is None:
        pytest.skip("no MPI on this machine")
    made = Site(tmp_path)
    nodes = ("0", "1")
    try:
        sites = {kind: Ground(kind, tmp_path, made, program, nodes) for kind in ("mpi", "tcp")}
        fill(made.source)
        going = held_at(sites[first], round(LEAST * BLOCKS) + 2)
        going.kill()
        going.end()
        done = sites[second].run()
        assert done.code == 0, done.errors
        assert done.read <= MOST * sites[second].item().size
        assert all(sites[second].has(node) for node in nodes)
    finally:
        made.close()


def test_links_to_the_source_that_a_killed_copy_left_are_never_written(
    site: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site.source, 9)
    (site.source / "alone").write_bytes(b"alone" * 1000)
    before = contents(site.source)
    copy = Ground("copy", site.folder, site.tcp, None, ("here",))
    going = start(copy, site.item(), way="link", at=3)
    going.hold()
    going.kill()
    going.end()
    left = site.folder / "there.aegis-part"
    for node in site.nodes:
        if site.part(node) != left:
            shutil.copytree(left, site.part(node), copy_function=os.link)
    done = site.run()
    assert done.code == 0, done.errors
    assert contents(site.source) == before
    assert all(site.has(node) for node in site.nodes)


def test_read_only_files_of_a_killed_run_do_not_stop_the_next(site: Ground) -> None:
    if site.kind == "tcp":
        pytest.skip("its nodes write as the copy does")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anything")
        prefix = ("setpriv", f"--bounding-set={OVERRIDE}", f"--inh-caps={OVERRIDE}")
    fill(site.source, 9)
    for path in site.source.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    going = held_at(site, 4)
    going.kill()
    going.end()
    for node in site.nodes:
        for path in site.part(node).rglob("*"):
            if path.is_file() and not path.name.startswith(".aegis-"):
                path.chmod(0o444)
    done = site.run(prefix=prefix)
    assert done.code == 0, done.errors
    assert all(site.has(node) for node in site.nodes)


def test_a_lock_that_another_program_holds_is_waited_for(site: Ground) -> None:
    (site.source / "weights").write_bytes(b"w")
    lock = site.at(site.nodes[-1])
    lock = lock.with_name(lock.name + ".aegis-lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        going = start(site, site.item())
        others = site.nodes[:-1]
        until(lambda: all(site.at(node).exists() for node in others), "the nodes that nobody else stages on")
        assert not site.at(site.nodes[-1]).exists()
        lock.unlink()  # as its holder does at its end
    done = going.end()
    assert done.code == 0
    assert all(site.has(node) for node in site.nodes)
    assert not lock.exists()


def test_a_tree_that_was_adopted_is_neither_replaced_nor_removed(site: Ground) -> None:
    (site.source / "weights").write_bytes(b"new")
    for node in site.nodes:
        own = site.at(node)
        own.mkdir()
        (own / "weights").write_bytes(b"mine")
        adopt(scan(str(own), str(own)))
    done = site.run()
    assert done.code == 1
    assert all("exists and was not staged by aegis" in error for error in done.errors.values())
    assert all((site.at(node) / "weights").read_bytes() == b"mine" for node in site.nodes)


def on_a_mount(site: Ground, options: str, item: Item) -> None:
    """Put the parent of the destinations on a file system of its own."""
    where = Path(item.destination).parent
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(where)], check=True)


@AS_ROOT
@pytest.mark.parametrize(
    ("options", "told"),
    [("size=64m,ro", ("Read-only file system",)), ("size=8m", ("GiB free", "are free"))],
    ids=["read-only", "full"],
)
def test_a_destination_that_takes_nothing_is_told_before_a_byte_moves(
    site: Ground, options: str, told: tuple[str, ...]
) -> None:
    (site.source / "weights").write_bytes(os.urandom(2 * BLOCK))
    item = site.item(site.folder / "mount" / "there")
    on_a_mount(site, options, item)
    try:
        done = site.run(item)
        assert done.code == 1
        assert done.read == 0
        assert set(done.errors) == set(site.nodes)
        assert all(any(words in error for words in told) for error in done.errors.values()), done.errors
        assert not list((site.folder / "mount").iterdir())
    finally:
        subprocess.run(["umount", "--lazy", str(site.folder / "mount")], check=True)


@AS_ROOT
def test_a_destination_that_becomes_full_publishes_nothing_and_goes_on_when_there_is_room(
    site: Ground,
) -> None:
    for number in range(120):  # small enough to be made when they come
        (site.source / f"{number}").write_bytes(os.urandom(1 << 20))
    item = site.item(site.folder / "mount" / "there")
    on_a_mount(site, f"size={150 * len(site.nodes)}m", item)
    mount = site.folder / "mount"
    try:
        going = start(site, item, at=20, options=SLOW)
        until(lambda: len(list(mount.glob("there*.aegis-part/*"))) > 10, "some files")
        going.hold()
        with (mount / "filler").open("wb", 0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        going.go_on()
        done = going.end()
        assert done.code == 1
        assert set(done.errors) == set(site.nodes)
        assert all("No space left on device" in error for error in done.errors.values()), done.errors
        assert not [path for path in mount.iterdir() if ".aegis-" not in path.name and path.name != "filler"]
        (mount / "filler").unlink()
        again = site.run(item)
        assert again.code == 0, again.errors
        assert again.read < item.size
        assert all(contents(mount / site.at(node).name) == contents(site.source) for node in site.nodes)
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_two_jobs_with_different_versions_leave_one_of_them_whole(site: Ground) -> None:
    fill(site.source, 9)
    going = held_at(site, 2)
    (site.source / "small").write_bytes(b"newer")
    second = start(site, site.item()) if site.kind != "mpi" else None
    if second is None:  # the list of the first is still read
        listing = site.folder / "list"
        listing.rename(site.folder / "list.1")
        second = start(site, site.item())
    going.go_on()
    first, last = going.end(), second.end()
    assert last.code == 0, last.errors
    assert first.code in {0, 1}
    assert all(site.has(node) for node in site.nodes)
    assert not [path.name for path in site.folder.iterdir() if ".aegis-" in path.name]


@pytest.mark.parametrize("site", ["mpi-3"], indirect=True)
def test_a_rank_that_hangs_ends_the_run_with_its_name_and_the_next_goes_on(site: Ground) -> None:
    fill(site.source)
    going = start(site, site.item(), options=(*SLOW, "--stall", "2"))
    until(lambda: all(site.noted(node) >= 3 for node in site.nodes), "blocks at all nodes")
    launcher = site.tcp.started[-1].pid
    os.kill(ranks_of(launcher)[1], signal.SIGSTOP)
    done = going.end()
    assert done.code != 0
    assert "nothing has moved for 2 s; it waits for rank1" in done.errors[""]
    assert not any(site.at(node).exists() for node in site.nodes)
    again = site.run()
    assert again.code == 0
    assert again.read < site.item().size


@pytest.mark.parametrize("site", ["mpi-2"], indirect=True)
@pytest.mark.parametrize("cut", [0, 3])
def test_a_tree_that_lacks_only_its_last_rename_gets_it_if_its_manifest_is_whole(
    site: Ground, cut: int
) -> None:
    fill(site.source, 9)
    (site.source / "folder").chmod(0o550)
    assert site.run().code == 0
    for node in site.nodes:
        site.at(node).rename(site.part(node))
        (site.part(node) / "folder").chmod(0o700)
        manifest = site.part(node) / ".aegis-manifest"
        os.truncate(manifest, manifest.stat().st_size - cut)
    done = site.run()
    assert done.code == 0
    assert done.read == (site.item().size if cut else 0)
    assert all(site.has(node) for node in site.nodes)
    (parsed,) = parse(encode([site.item()]))
    for node in site.nodes:
        assert Path(os.fsdecode(places_of(parsed, f".{node}").manifest)).is_file()
