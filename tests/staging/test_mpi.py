"""The MPI program, its compilation and its processes. Ranks on this machine stand for nodes, each with its own destination."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import AegisError, SiteError
from aegis.staging import mpi
from aegis.staging.events import Done, NodeResult
from aegis.staging.listing import BLOCK, Directory, File, Item, encode
from aegis.staging.mpi import Compiler, MpiLauncher, OverMpi
from aegis.staging.node import check, items
from aegis.staging.node.places import places_of
from aegis.staging.scan import scan

from .ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.staging.events import Event

lab = pytest.mark.lab
LARGE = 3 * BLOCK + 12_345
PATIENCE = 60.0


class Ended:
    """A run of the program that has ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.err = code, err.decode(errors="replace")
        self.said = err + out
        self.events: list[dict[str, Any]] = [
            json.loads(line) for line in out.splitlines() if line.startswith(b"{")
        ]

    def nodes(self, item: int = 0) -> dict[str, dict[str, Any]]:
        return {
            each["host"]: each for each in self.events if each["event"] == "node" and each["item"] == item
        }

    @property
    def ok(self) -> dict[str, bool]:
        return {host: each["ok"] for host, each in self.nodes().items()}

    @property
    def bytes_read(self) -> int:
        return int(next(each["bytes_read"] for each in self.events if each["event"] == "done"))


class Bench:
    """A source, destinations, and the program."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.source, self.out, self.list = folder / "source", folder / "out", folder / "list"
        self.source.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []

    def item(self, name: str = "tree", source: Path | None = None, hosts: tuple[str, ...] = ()) -> Item:
        return scan(str(source or self.source), str(self.out / name), hosts)

    def write_list(self, *staged: Item) -> None:
        self.list.write_bytes(encode(staged or [self.item()]))

    def start(self, ranks: int, *options: str) -> subprocess.Popen[bytes]:
        argv = [
            "mpiexec",
            "-n",
            str(ranks),
            str(self.program),
            str(self.list),
            "--dest-suffix-rank",
            *options,
        ]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.started.append(process)
        return process

    def run(self, ranks: int, *options: str) -> Ended:
        return ended(self.start(ranks, *options))

    def there(self, rank: int, name: str = "tree") -> Path:
        return self.out / f"{name}.{rank}"


def ended(process: subprocess.Popen[bytes]) -> Ended:
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


def picture(folder: Path) -> dict[str, tuple[object, ...]]:
    """What a tree is, but for the times of folders."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        name, status = os.path.relpath(path, folder), path.lstat()
        if path.name == ".aegis-manifest":
            continue
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))  # noqa: PTH115 - text
        elif path.is_dir():
            found[name] = ("folder", status.st_mode)
        else:
            found[name] = (status.st_mode, status.st_mtime_ns, path.read_bytes())
    return found


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("mpiexec") is None:
        pytest.skip("no MPI on this machine")
    try:
        return mpi.program(environ=os.environ, cache=tmp_path_factory.mktemp("cache"))
    except SiteError as error:
        pytest.skip(f"no MPI on this machine: {error.message}")


@pytest.fixture
def bench(program: Path, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(program, tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def fill(source: Path) -> None:
    """Every kind of thing that can be staged."""
    (source / "empty").mkdir()
    (source / "closed").mkdir()
    (source / "zero").write_bytes(b"")
    (source / "one").write_bytes(b"1")
    (source / "block").write_bytes(os.urandom(BLOCK))
    (source / "large").write_bytes(os.urandom(LARGE))
    (source / "name with\nnewline 'and' \"quotes\"").write_bytes(b"2")
    (source / os.fsdecode(b"\xff\xfe")).write_bytes(b"3")
    (source / "closed" / "read-only").write_bytes(b"4")
    (source / "link").symlink_to("large")
    (source / "closed" / "read-only").chmod(0o440)
    os.utime(source / "one", ns=(0, 1_234_567_890_123_456_789))
    os.utime(source / "zero", ns=(0, -1_500_000_000))
    for number in range(3000):
        (source / "empty").parent.joinpath(f"s{number}").write_bytes(b"%d" % number)
    (source / "closed").chmod(0o550)


# ---------------------------------------------------------------------------------------- what arrives


@lab
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ()),
        (2, ()),
        (3, ("--readers", "1", "--window", "1", "--threads", "1")),
        (4, ("--tree", "binary", "--piece", "70001", "--readers", "3")),
    ],
)
def test_every_kind_of_file_arrives_as_it_was(bench: Bench, ranks: int, options: tuple[str, ...]) -> None:
    fill(bench.source)
    bench.write_list()
    run = bench.run(ranks, *options)
    assert run.code == 0, run.err
    assert run.ok == {f"rank{rank}": True for rank in range(ranks)}
    assert run.bytes_read == bench.item().size
    expected = picture(bench.source)
    for rank in range(ranks):
        assert picture(bench.there(rank)) == expected
        assert not bench.there(rank, "tree").with_name(f"tree.{rank}.aegis-part").exists()


@lab
def test_the_stager_without_mpi_finds_what_mpi_staged_complete_and_sound(bench: Bench) -> None:
    fill(bench.source)
    bench.write_list(bench.item(), bench.item("file", bench.source / "large"))
    assert bench.run(2).code == 0
    for item in items.parse(bench.list.read_bytes()):
        for suffix in (".0", ".1"):
            assert check.verify(places_of(item, suffix)) == (item.size, "")


@lab
def test_what_is_there_is_skipped_and_only_what_is_missing_moves(bench: Bench) -> None:
    (bench.source / "a").write_bytes(os.urandom(LARGE))
    bench.write_list(bench.item(), bench.item("file", bench.source / "a"))
    assert bench.run(2).code == 0
    shutil.rmtree(bench.there(1))
    run = bench.run(2)
    assert run.code == 0
    assert {host: each["skipped"] for host, each in run.nodes(0).items()} == {"rank0": True, "rank1": False}
    assert all(each["skipped"] for each in run.nodes(1).values())
    assert run.bytes_read == LARGE
    assert picture(bench.there(1)) == picture(bench.source)


@lab
def test_a_newer_version_takes_the_place_of_the_older(bench: Bench) -> None:
    (bench.source / "a").write_bytes(b"old")
    (bench.source / "gone").write_bytes(b"old")
    bench.write_list(bench.item(), bench.item("file", bench.source / "a"))
    assert bench.run(2).code == 0
    (bench.source / "gone").unlink()
    (bench.source / "a").write_bytes(b"newer")
    bench.write_list(bench.item(), bench.item("file", bench.source / "a"))
    assert bench.run(2).code == 0
    for rank in (0, 1):
        assert picture(bench.there(rank)) == picture(bench.source)
        assert bench.there(rank, "file").read_bytes() == b"newer"
    assert not list(bench.out.glob("*.aegis-old"))


@lab
def test_only_nodes_that_need_an_item_get_it(bench: Bench) -> None:
    (bench.source / "a").write_bytes(os.urandom(LARGE))
    bench.write_list(bench.item("x", hosts=("rank1", "rank3.some.domain")), bench.item("y", hosts=("rank0",)))
    run = bench.run(4)
    assert run.code == 0
    assert (set(run.nodes(0)), set(run.nodes(1))) == ({"rank1", "rank3"}, {"rank0"})
    assert {path.name for path in bench.out.iterdir() if path.is_dir()} == {"x.1", "x.3", "y.0"}


# ---------------------------------------------------------------------------------------- bad days


@lab
def test_a_killed_rank_ends_the_run_and_the_next_one_resumes(bench: Bench) -> None:
    (bench.source / "a").write_bytes(os.urandom(8 * BLOCK))
    bench.write_list()
    process = bench.start(2, "--rate", "16", "--readers", "2")
    log = bench.there(1).with_name("tree.1.aegis-part") / ".aegis-blocks"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and len(log.read_bytes().splitlines()) > 5):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    run = ended(process)
    assert run.code != 0
    assert os.uname().nodename in mpi.death(run.code, run.said)
    assert not bench.there(0).exists()
    assert not bench.there(1).exists()
    second = bench.run(2)
    assert second.code == 0
    assert second.bytes_read <= 5 * BLOCK
    assert picture(bench.there(1)) == picture(bench.there(0)) == picture(bench.source)


@lab
def test_blocks_of_an_earlier_run_are_believed_only_after_a_look(bench: Bench) -> None:
    data = os.urandom(3 * BLOCK)
    (bench.source / "a").write_bytes(data)
    bench.write_list()
    item = items.parse(bench.list.read_bytes())[0]
    places = places_of(item, ".0")
    os.makedirs(places.part)  # noqa: PTH103 - bytes
    Path(os.fsdecode(places.path(b"a"))).write_bytes(data[:BLOCK] + bytes(BLOCK))
    lines = [b"0 %d %08x\n" % (n, items_crc(data[n * BLOCK : (n + 1) * BLOCK])) for n in range(3)]
    log = Path(os.fsdecode(places.log))
    log.write_bytes(mpi_digest(item) + b"".join(lines) + b"0 1")  # its writer was killed within a line
    run = bench.run(1)
    assert run.code == 0
    assert run.bytes_read == 2 * BLOCK
    assert (bench.there(0) / "a").read_bytes() == data


def items_crc(data: bytes) -> int:
    import zlib  # noqa: PLC0415 - only here

    return zlib.crc32(data)


def mpi_digest(item: items.Item) -> bytes:
    return b"%08x %d\n" % (items_crc(item.records), len(item.records))


@lab
def test_a_node_that_cannot_write_is_dropped_and_the_others_get_theirs(bench: Bench) -> None:
    (bench.source / "a").write_bytes(os.urandom(4 * BLOCK))
    bench.write_list()
    run = [str(bench.program), str(bench.list), "--dest-suffix-rank"]
    limited = ["bash", "-c", 'ulimit -f 9000; exec "$@"', "bash", *run]
    argv = ["mpiexec", "-n", "1", *run, ":", "-n", "1", *limited, ":", "-n", "1", *run]
    done = subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False)
    result = Ended(done.returncode, done.stdout, done.stderr)
    assert result.code == 1
    assert result.ok == {"rank0": True, "rank1": False, "rank2": True}
    assert "cannot write a" in result.nodes()["rank1"]["error"]
    assert picture(bench.there(2)) == picture(bench.source)
    assert not bench.there(1).exists()


@lab
def test_without_room_not_a_byte_moves(bench: Bench) -> None:
    (bench.source / "a").write_bytes(b"small")
    with (bench.source / "huge").open("wb") as sparse:
        sparse.truncate(1 << 42)
    bench.write_list()
    run = bench.run(2)
    assert run.code == 1
    assert run.bytes_read == 0
    assert all("GiB free" in each["error"] for each in run.nodes().values())
    assert not list(bench.out.iterdir())


@lab
def test_somebodys_own_files_are_left_alone(bench: Bench) -> None:
    (bench.source / "a").write_bytes(b"new")
    bench.there(1).mkdir(parents=True)
    (bench.there(1) / "mine").write_bytes(b"precious")
    bench.write_list()
    run = bench.run(2)
    assert run.code == 1
    assert run.ok == {"rank0": True, "rank1": False}
    assert "exists and was not staged by aegis" in run.nodes()["rank1"]["error"]
    assert bench.run(2, "--clean").ok == {"rank0": True, "rank1": False}
    assert (bench.there(1) / "mine").read_bytes() == b"precious"


@lab
@pytest.mark.parametrize("how", ["touched", "shrunk", "gone", "folder gone"])
def test_a_source_that_is_not_as_listed_is_published_nowhere(bench: Bench, how: str) -> None:
    (bench.source / "a").write_bytes(os.urandom(LARGE))
    (bench.source / "b").write_bytes(os.urandom(LARGE))
    bench.write_list()
    match how:
        case "touched":
            os.utime(bench.source / "b", ns=(0, 0))
        case "shrunk":
            os.truncate(bench.source / "b", LARGE - 1)
        case "gone":
            (bench.source / "b").unlink()
        case _:
            shutil.rmtree(bench.source)
    run = bench.run(3)
    assert run.code == 1
    assert run.ok == {"rank0": False, "rank1": False, "rank2": False}
    assert all(str(bench.source) in each["error"] for each in run.nodes().values())
    assert not [path for path in bench.out.iterdir() if ".aegis-" not in path.name]


@lab
def test_a_destination_below_a_file_is_an_error_of_that_item(bench: Bench) -> None:
    (bench.source / "a").write_bytes(b"1")
    bench.out.mkdir()
    (bench.out / "file").write_bytes(b"")
    bench.write_list(bench.item("file/below"), bench.item("tree"))
    run = bench.run(2)
    assert run.code == 1
    assert not any(each["ok"] for each in run.nodes(0).values())
    assert all(each["ok"] for each in run.nodes(1).values())


@lab
def test_two_jobs_stage_the_same_at_once_and_it_moves_once(bench: Bench) -> None:
    (bench.source / "a").write_bytes(os.urandom(4 * BLOCK))
    bench.write_list()
    both = [bench.start(2, "--rate", "64"), bench.start(2, "--rate", "64")]
    runs = [ended(each) for each in both]
    assert [run.code for run in runs] == [0, 0]
    moved = [sum(each["bytes"] for each in run.nodes().values()) for run in runs]
    assert sum(moved) == 2 * 4 * BLOCK
    assert picture(bench.there(0)) == picture(bench.there(1)) == picture(bench.source)


@lab
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"something else",
        encode([Item(source="/a", destination="/b")])[:-1],
        encode([Item(source="/a", destination="b")]),
        encode([Item(source="/a", destination="/b", directories=(Directory("../c", 0o755),))]),
        encode([Item(source="/a", destination="/b", files=(File("c", -1, 1, 0o644, "c"),))]),
        encode([Item(source="/a", destination="/b", files=(File("c", 1 << 62, 1, 0o644, "c"),))]),
        encode(
            [
                Item(
                    source="/a",
                    destination="/b",
                    files=(File(".", 1, 1, 0o644, "."),),
                    directories=(Directory("c", 0o755),),
                )
            ]
        ),
    ],
)
def test_a_list_that_is_none_is_refused(bench: Bench, content: bytes) -> None:
    bench.list.write_bytes(content)
    run = bench.run(2)
    assert run.code == 2
    assert str(bench.list) in run.err
    assert not bench.out.exists()


@lab
def test_verify_finds_a_changed_byte_and_clean_takes_everything_away(bench: Bench) -> None:
    fill(bench.source)
    bench.write_list(bench.item(), bench.item("file", bench.source / "large"))
    assert bench.run(2).code == 0
    assert bench.run(2, "--verify").code == 0
    with (bench.there(1) / "large").open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"!!")
    run = bench.run(2, "--verify")
    assert run.code == 1
    assert run.ok == {"rank0": True, "rank1": False}
    assert "block 1 of large" in run.nodes()["rank1"]["error"]
    assert bench.run(2, "--clean").code == 0
    assert not list(bench.out.iterdir())
    assert bench.run(2, "--verify").code == 1


@lab
def test_the_stager_tells_what_the_program_prints(program: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(os.urandom(1000))
    item = scan(str(source), str(tmp_path / "there"))
    host = os.uname().nodename
    over = OverMpi(
        shared=tmp_path, launcher=MpiLauncher(kind="mpiexec"), environ=dict(os.environ), program=program
    )
    told: list[Event] = []
    over.run([item], [host], "stage", told.append)
    assert [(each.host, each.ok) for each in told if isinstance(each, NodeResult)] == [(host, True)]
    assert isinstance(told[-1], Done)
    assert picture(tmp_path / "there") == picture(source)


# ---------------------------------------------------------------------------------------- the compiler


def fake_mpicc(folder: Path, body: str = 'for last; do :; done; echo built > "$last"') -> dict[str, str]:
    """An environment whose mpicc counts how often it compiles."""
    tool = folder / "bin" / "mpicc"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(
        f'#!/bin/sh\ncase $1 in --version|-show) echo "cc $V"; exit;; esac\necho x >> {folder}/count\n{body}\n'
    )
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "HOME": str(folder)}


def compiled(folder: Path) -> int:
    return len((folder / "count").read_text().splitlines())


def test_it_is_compiled_once_for_each_compiler(tmp_path: Path) -> None:
    environ = fake_mpicc(tmp_path)
    first = mpi.program(environ=environ)
    assert first.read_text() == "built\n"
    assert tmp_path / ".cache" / "aegis" in first.parents
    assert mpi.program(environ=environ) == first
    assert compiled(tmp_path) == 1
    assert mpi.program(environ={**environ, "V": "2"}) != first
    assert compiled(tmp_path) == 2


def test_a_failed_compilation_leaves_nothing_behind(tmp_path: Path) -> None:
    environ = fake_mpicc(tmp_path, "echo 'mpi.h: No such file' >&2; exit 1")
    with pytest.raises(SiteError, match=r"mpi\.h: No such file"):
        mpi.program(environ=environ, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]


def test_a_site_without_mpi_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="mpicc is not on PATH") as raised:
        mpi.program(environ={"PATH": str(tmp_path)})
    assert "--stager tcp" in (raised.value.hint or "")
    over = OverMpi(
        shared=tmp_path,
        launcher=MpiLauncher(kind="srun"),
        environ={"PATH": str(tmp_path)},
        program=tmp_path / "bcast",
    )
    with pytest.raises(SiteError, match="srun is not on PATH"):
        over.run([], ["a"], "stage", lambda _: None)


def test_a_prebuilt_program_is_taken_as_it_is(tmp_path: Path) -> None:
    built = tmp_path / "bcast"
    with pytest.raises(SiteError, match="is no program that can be run"):
        mpi.program(environ={}, prebuilt=str(built))
    built.write_text("#!/bin/sh\n")
    built.chmod(0o755)
    assert mpi.program(environ={}, prebuilt=str(built)) == built


def test_the_key_follows_source_and_compiler() -> None:
    keys = {
        mpi.cache_key(source, Compiler(path, version))
        for source in (b"a", b"b")
        for path in ("/usr/bin/mpicc", "/opt/mpicc")
        for version in ("1", "2")
    }
    assert len(keys) == 8


# ---------------------------------------------------------------------------------------- the launcher


def test_one_rank_runs_on_each_node(tmp_path: Path) -> None:
    argv = mpi.arguments(Path("/c/bcast"), Path("/s/list"), "verify", readers=4, window=2)
    assert argv == ["/c/bcast", "/s/list", "--readers", "4", "--window", "2", "--verify"]
    launched = mpi.command(MpiLauncher(kind="mpiexec", words=("--no-vni",)), 3, tmp_path, argv)
    assert launched == ["mpiexec", "-n", "3", "-ppn", "1", "--hostfile", str(tmp_path), "--no-vni", *argv]
    stepped = mpi.command(MpiLauncher(kind="srun", het_group="1"), 3, tmp_path, argv)
    assert stepped[:5] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", f"--nodelist={tmp_path}"]
    assert "--het-group=1" in stepped
    assert stepped[-len(argv) :] == argv


HYDRA = b"""
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 12345 RUNNING AT nid000123
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
"""


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (HYDRA, "nid000123"),
        (b"x3001c0s7b0n0.hsn: rank 3 died from signal 9\n", "x3001c0s7b0n0"),
        (b"srun: error: node7: task 3: Killed\n", "node7"),
        (b"bcast: nid7: no memory: Cannot allocate memory\n", "nid7"),
        (b"", "without a word"),
    ],
)
def test_the_node_whose_rank_died_is_named(said: bytes, found: str) -> None:
    assert found in mpi.death(9, said)


@given(st.binary(max_size=300))
def test_whatever_a_launcher_says_is_told(said: bytes) -> None:
    assert mpi.death(1, said)


def over_stand_in(folder: Path, body: str) -> OverMpi:
    """Return the stager with a srun that is a shell script."""
    tool = folder / "bin" / "srun"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    return OverMpi(
        shared=folder / "shared",
        launcher=MpiLauncher(kind="srun"),
        environ={"PATH": f"{tool.parent}:{os.environ['PATH']}"},
        program=folder / "bcast",
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'srun: error: node7: task 3: Killed' >&2; exit 137", "node7"),
        ("exit 0", "before all nodes were done"),
        ("echo 'bcast: n1: nothing has moved for 9 s; it waits for n7'; exec sleep 60", "waits for n7"),
        ("echo 'bcast: 2 nodes were asked for' >&2; exit 2", "2 nodes were asked for"),
    ],
)
def test_a_program_that_ends_early_is_an_error(tmp_path: Path, body: str, message: str) -> None:
    over = over_stand_in(tmp_path, body)
    with pytest.raises(AegisError, match=message):
        over.run([], ["node7"], "stage", lambda _: None)
    assert not list((tmp_path / "shared").iterdir())


@lab
def test_a_world_that_is_smaller_than_the_job_is_refused(program: Path, tmp_path: Path) -> None:
    """A launcher that knows nothing of this MPI starts as many worlds of one: each node would read everything."""
    (tmp_path / "list").write_bytes(encode([]))
    argv = mpi.arguments(program, tmp_path / "list", ranks=3)
    done = subprocess.run(["mpiexec", "-n", "2", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bcast: 3 nodes were asked for, and the launcher started a world of 2" in done.stderr
    assert "done" not in done.stdout


def test_a_program_that_hangs_after_all_is_decided_is_ended(tmp_path: Path) -> None:
    over = over_stand_in(tmp_path, 'echo \'{"event":"done","seconds":1}\'; exec sleep 60')
    began = time.monotonic()
    over.run([], ["node7"], "stage", lambda _: None)
    assert time.monotonic() - began < 30
