"""Whole runs with real workers and small programs; the instances are only names."""

from __future__ import annotations

import ast
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.errors import AegisError, SiteError
from aegis.mapper.files import publish, worker
from aegis.mapper.files.schedule import Rules
from aegis.mapper.files.site import Site
from tests.mapper.files.driver import Fixed, push, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.mapper.files.work import Work

HOSTILE = ["a b", "$(touch pwned)", "; touch pwned", "'", '"', "new\nline", "-rf", "{input}", "ü", "*"]
RAW = os.fsdecode(b"\xff")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where workers make their folders; they leave nothing there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("aegis.mapper.files.crew.PAUSE", 0.05)
    monkeypatch.setattr("aegis.mapper.files.work.TICK", 0.05)
    yield folder
    assert not list(folder.iterdir())


def write(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name!r}")
    return [folder / name for name in names]


def results(output: Path) -> set[str]:
    return {str(each.relative_to(output)) for each in output.rglob("*") if each.is_file()} - {
        ".aegis-map/journal"
    }


def content(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as tar:
        files = [(each.name, tar.extractfile(each)) for each in tar if each.isfile()]
        return {name: file.read().decode() for name, file in files if file}


def pid_of(path: Path) -> int | None:
    try:
        return int(Path(f"{path}.pid").read_text())
    except (OSError, ValueError):
        return None


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_hostile_names_are_files_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [*HOSTILE, *(f"d/{name}" for name in HOSTILE), RAW]
    outcome = push(write(tmp_path / "in", *names), tmp_path / "out", how=settings(slots=3))
    assert (outcome.done, outcome.failed, outcome.left) == (21, 0, 0)
    assert results(tmp_path / "out") == {f"{name}.tar.gz" for name in names}
    for name in names:
        found = content(tmp_path / "out" / f"{name}.tar.gz")
        assert found == {f"{name.removeprefix('d/')}/copy": f"content of {name!r}".encode(errors="surrogateescape").decode(errors="replace")}  # fmt: skip
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("form", ["tar", "dir"])
def test_results_may_be_kept_otherwise(tmp_path: Path, form: publish.Form) -> None:
    push(write(tmp_path / "in", "a/x.txt", "b/x.txt"), tmp_path / "out", how=settings(form=form))
    if form == "dir":
        assert (tmp_path / "out/a/x.txt.out/copy").read_text() == "content of 'a/x.txt'"
        assert (tmp_path / "out/b/x.txt.out/copy").read_text() == "content of 'b/x.txt'"
    else:
        assert content(tmp_path / "out/b/x.txt.tar") == {"x.txt/copy": "content of 'b/x.txt'"}


def test_without_an_output_what_the_program_prints_is_the_result(tmp_path: Path) -> None:
    script = "sh -c 'echo noise >&2; cat \"$1\"' - {input}"
    push(write(tmp_path / "in", "x"), tmp_path / "out", script, how=settings(form="stdout", keep_logs=True))
    assert (tmp_path / "out/x.out").read_text() == "content of 'x'"
    assert (tmp_path / "out/x.log").read_text() == "noise\n"


def test_values_are_those_of_the_instance(tmp_path: Path) -> None:
    script = 'echo {base_url} {host} {port} {model} {api_key_file} {{}} "a  b"'
    key = tmp_path / "key"
    how = settings(form="stdout", key="secret", key_file=str(key))
    push(write(tmp_path / "in", "x"), tmp_path / "out", f"{script} {{input}}", Fixed(8000), how=how)
    assert (tmp_path / "out/x.out").read_text() == (
        f"http://127.0.0.1:8000 127.0.0.1 8000 m {key} {{}} a  b {tmp_path}/in/x\n"
    )


def test_a_key_of_the_environment_is_handed_over_in_a_private_file(tmp_path: Path) -> None:
    script = 'sh -c \'stat -c %a "$2"; cat "$2"\' - {input} {api_key_file}'
    push(write(tmp_path / "in", "x"), tmp_path / "out", script, how=settings(form="stdout", key="secret"))
    assert (tmp_path / "out/x.out").read_text() == "600\nsecret"
    assert results(tmp_path / "out") == {"x.out"}


def test_the_same_command_again_does_nothing_and_a_changed_file_is_done_again(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "a", "b")
    script = 'sh -c \'echo run >> "$1".runs; cat "$1"\' - {input}'

    def again() -> list[int]:
        push(paths, tmp_path / "out", script, how=settings(form="stdout"))
        return [Path(f"{path}.runs").read_text().count("run") for path in paths]

    assert again() == [1, 1]
    assert again() == [1, 1]
    paths[1].write_text("something else")
    assert again() == [1, 2]
    assert (tmp_path / "out/b.out").read_text() == "something else"


def test_a_directory_takes_the_place_of_a_former_one(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "a")
    push(paths, tmp_path / "out", how=settings(form="dir"))
    paths[0].write_text("something else")
    push(paths, tmp_path / "out", how=settings(form="dir"))
    assert results(tmp_path / "out") == {"a.out/copy"}
    assert (tmp_path / "out/a.out/copy").read_text() == "something else"


def test_a_file_that_fails_leaves_its_log_and_can_be_tried_again(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "bad", "good")
    script = 'sh -c \'echo try; test -e "$1".mended || case "$1" in *bad) echo cannot >&2; exit 3;; esac\' - {input} {output}'
    outcome = push(paths, tmp_path / "out", script)
    assert (outcome.done, outcome.failed, outcome.left) == (2, 1, 0)
    assert outcome.reasons == ("bad: exit code 3: cannot",)
    assert results(tmp_path / "out") == {"bad.log", "good.tar.gz"}
    assert (tmp_path / "out/bad.log").read_text() == "try\ncannot\n"

    (tmp_path / "in" / "bad.mended").touch()
    assert push(paths, tmp_path / "out", script).failed == 1
    outcome = push(paths, tmp_path / "out", script, retry_failed=True)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert results(tmp_path / "out") == {"bad.tar.gz", "good.tar.gz"}


@pytest.mark.parametrize("ports", [(1,), (1, 2)])
def test_a_program_that_never_works_is_told_early(tmp_path: Path, ports: tuple[int, ...]) -> None:
    paths = write(tmp_path / "in", *map(str, range(50)))
    how = settings(back_off=9.0, pause=Rules().pause)
    with pytest.raises(AegisError, match=r"failed for the first 10 files.*No such file") as caught:
        push(paths, tmp_path / "out", "no-such-program {input}", Fixed(*ports), how=how)
    assert "by hand" in (caught.value.hint or "")
    assert push(paths, tmp_path / "out", "cp {input} {output}").failed == 0


def test_a_program_that_takes_too_long_is_ended_with_all_of_its_group(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "x")
    script = "sh -c 'trap : TERM; sleep 60 & echo $! > \"$1\".pid; wait; sleep 60' - {input}"
    outcome = push(paths, tmp_path / "out", script, how=settings(form="stdout", deadline=0.3, tries=1))
    assert outcome.reasons == ("x: it took longer than 0.3 s",)
    pid = pid_of(paths[0])
    assert pid
    assert is_gone(pid)


def test_what_a_program_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "x")
    push(paths, tmp_path / "out", "sh -c 'sleep 60 & echo $! > \"$1\".pid' - {input} {output}")
    pid = pid_of(paths[0])
    assert pid
    assert is_gone(pid)


def test_an_instance_that_leaves_loses_its_programs_and_they_go_elsewhere(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "x")
    script = "sh -c 'echo $$ > \"$1\".pid; test $2 = 2 || sleep 60' - {input} {port} {output}"
    fleet = Fixed(1)

    def leave(_: Work) -> None:
        if pid_of(paths[0]):
            fleet.change(2)

    outcome = push(
        paths, tmp_path / "out", script, fleet, meanwhile=leave, how=settings(gone_seconds=0.05, tries=1)
    )
    assert (outcome.done, outcome.failed) == (1, 0)


def test_an_instance_that_is_back_in_time_keeps_its_programs(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "x")
    fleet = Fixed(1)
    began = time.monotonic()

    def flicker(_: Work) -> None:
        fleet.change(*([] if 0.2 < time.monotonic() - began < 0.6 else [1]))

    script = "sh -c 'echo try >> \"$1\".tries; sleep 1' - {input} {output}"
    push(paths, tmp_path / "out", script, fleet, meanwhile=flicker, how=settings(gone_seconds=20.0))
    assert Path(f"{paths[0]}.tries").read_text() == "try\n"


def test_a_failure_on_an_instance_that_does_not_answer_is_not_the_files(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", *map(str, range(6)))
    script = "sh -c 'test $2 = 2' - {input} {port} {output}"
    outcome = push(
        paths, tmp_path / "out", script, alive=lambda target: target.port == 2, how=settings(tries=1)
    )
    assert (outcome.done, outcome.failed) == (6, 0)


def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    """The worker, then its guard: what ran goes on elsewhere, and nothing is left."""
    paths = write(tmp_path / "in", "x")
    script = (
        'sh -c \'echo $PPID $$ >> "$1".pids; test $(wc -l < "$1".pids) -ge 3 || sleep 60\' - {input} {output}'
    )
    killed: list[int] = []
    left: list[int] = []

    def kill(_: Work) -> None:
        told = Path(f"{paths[0]}.pids")
        lines = told.read_text().split("\n")[:-1] if told.exists() else []
        if len(lines) > len(killed) < 2:
            pid, program = map(int, lines[-1].split())
            left.append(program)
            if killed:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    outcome = push(paths, tmp_path / "out", script, Fixed(1), meanwhile=kill, how=settings(tries=1))
    assert (outcome.done, outcome.failed, len(killed)) == (1, 0, 2)
    assert all(map(is_gone, left))


def test_each_node_has_its_worker_and_another_takes_over_when_one_cannot_start(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", *map(str, range(4)))
    fleet = Fixed(1, node="n1.site")
    fleet.targets += Fixed(2, node="n2").targets
    script = "sh -c 'echo $2; sleep 0.1' - {input} {port}"
    how = settings(form="stdout")
    push(paths, tmp_path / "out", script, fleet, site=Site(python=sys.executable, nodes=True), how=how)
    ran = sorted((tmp_path / "out" / f"{n}.out").read_text() for n in range(4))
    assert set(ran) == {"1\n", "2\n"}


def test_where_no_worker_can_be_started_it_is_said_why(tmp_path: Path) -> None:
    failing = Site(tied=lambda _: ["sh", "-c", "echo no such node >&2; exit 1"])
    with pytest.raises(SiteError, match="no worker can be started: no such node"):
        push(write(tmp_path / "in", "x"), tmp_path / "out", site=failing)
    with pytest.raises(SiteError, match="workers cannot be started: no-python: No such file"):
        push(write(tmp_path / "in", "x"), tmp_path / "out", site=Site(python="no-python"))


def test_without_instances_it_ends_after_a_while(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"there is no instance of 'other' for 0\.2 s") as caught:
        push(write(tmp_path / "in", "x"), tmp_path / "out", how=settings(model="other", patience=0.2))
    assert "continue" in (caught.value.hint or "")


def test_at_the_end_of_the_time_programs_are_ended_and_their_files_left(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "a", "b", "c")
    script = "sh -c 'case \"$1\" in *a) ;; *) sleep 60;; esac' - {input} {output}"
    how = settings(ends_at=time.monotonic() + 1.5, grace=0.8)
    outcome = push(paths, tmp_path / "out", script, how=how)
    assert (outcome.done, outcome.failed, outcome.left) == (1, 0, 2)
    assert results(tmp_path / "out") == {"a.tar.gz"}


def test_told_to_stop_it_lets_programs_end(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", "a", "b", "c")
    script = "sh -c 'touch \"$1\".begun; sleep 0.5' - {input} {output}"

    def stop(work: Work) -> None:
        if Path(f"{paths[0]}.begun").exists():
            work.stop()

    outcome = push(paths, tmp_path / "out", script, Fixed(1), meanwhile=stop)
    assert (outcome.done, outcome.left) == (1, 2)


def test_a_full_disk_ends_the_run_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cannot write a part of more bytes than its limit allows, which stands for those that are free."""
    paths = write(tmp_path / "in", "a", "b")
    paths[0].write_bytes(os.urandom(100_000))
    limited = Site(
        python=sys.executable,
        tied=lambda command: ["bash", "-c", 'ulimit -Sf 50; exec "$@"', "-", *command],
    )
    lifted = 'bash -c \'ulimit -Sf unlimited; cat "$1" > "$2"/copy\' - {input} {output}'
    with pytest.raises(AegisError, match=r"is full: .*File too large") as caught:
        push(paths, tmp_path / "out", lifted, Fixed(1), site=limited)
    assert "make room" in (caught.value.hint or "")
    assert "a.tar.gz" not in results(tmp_path / "out")
    outcome = push(paths, tmp_path / "out", lifted)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert results(tmp_path / "out") == {"a.tar.gz", "b.tar.gz"}


def test_strangers_are_refused(tmp_path: Path) -> None:
    seen: list[str] = []

    def knock(work: Work) -> None:
        crew = getattr(work, "_crew", None)
        if crew and crew._server and not seen:
            port = crew._server.sockets[0].getsockname()[1]
            for secret in (b"", b"0" * 64):
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        worker.connect("127.0.0.1", port, secret)
                    except OSError:
                        code = 0
                    os._exit(code)
                seen.append(str(child))

    push(
        write(tmp_path / "in", "x"), tmp_path / "out", "sh -c 'sleep 0.5' - {input} {output}", meanwhile=knock
    )
    assert [os.waitstatus_to_exitcode(os.waitpid(int(child), 0)[1]) for child in seen] == [0, 0]


def test_folders_of_workers_that_were_killed_with_their_guards_are_taken_away(
    tmp_path: Path, scratch: Path
) -> None:
    left = scratch / f"aegis-map-{os.getuid()}-left"
    left.mkdir()
    (left / "lock").touch()
    push(write(tmp_path / "in", "x"), tmp_path / "out")
    assert not left.exists()


def test_parts_of_a_run_that_was_killed_are_taken_away(tmp_path: Path) -> None:
    left = tmp_path / "out" / ".aegis-map" / "run-1234" / "parts"
    left.mkdir(parents=True)
    (left / "1").write_text("half")
    push(write(tmp_path / "in", "x"), tmp_path / "out")
    assert results(tmp_path / "out") == {"x.tar.gz"}


def test_the_worker_is_one_file_of_the_standard_library_for_python_3_9() -> None:
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 9))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= sys.stdlib_module_names
