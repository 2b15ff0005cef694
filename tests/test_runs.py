"""Run directories, manifests, and the index of jobs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import AegisError, NotFoundError
from aegis.runs import Manifest, RunDir, family, find_run, index_folder, known_runs, register, slug

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = [
    "../../etc/passwd",
    "a b",
    "a'b",
    'a"b',
    "a\nb",
    "$(touch x)",
    "; rm -rf x",
    "..",
    ".",
    "/",
    "-x",
    "日本",
    "x" * 999,
]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def run_of(tmp_path: Path, job: str, model: str = "org/Llama-3.3-70B-Instruct") -> RunDir:
    run = RunDir.create(str(tmp_path / "logs"), model, job.partition("://")[2])
    run.write_manifest(Manifest(job=job, name="n", models=[model], run_dir=str(run.path)))
    register(job, run, {"AEGIS_STATE_DIR": str(tmp_path / "state")})
    return run


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AEGIS_STATE_DIR": str(tmp_path / "state")}


def test_the_layout(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path), "meta-llama/Llama-3.3-70B-Instruct", "k3f9")
    assert run.path == tmp_path / "Llama-3.3" / "Llama-3.3-70B-Instruct.k3f9"
    names = [file.name for file in (run.script, run.manifest, run.out, run.err)]
    assert names == [f"Llama-3.3-70B-Instruct.k3f9.{end}" for end in ("sh", "json", "out", "err")]
    assert run.instances.is_dir()
    assert run.nodes.is_dir()
    again = RunDir.at(run.path)
    assert (again.manifest, again.stem) == (run.manifest, run.stem)


def test_a_link_in_the_log_directory_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert RunDir.create(str(tmp_path / "link"), "m", "x").path.is_relative_to(tmp_path / "link")


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDir.create("~/logs", "m", "x").path.is_relative_to(tmp_path / "logs")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_inside_the_log_directory(tmp_path: Path, name: str) -> None:
    run = RunDir.create(str(tmp_path / "logs"), name, "k3f9")
    assert run.path.resolve().parent.parent == tmp_path / "logs"
    assert run.path.is_dir()


@given(st.text())
def test_a_slug_is_a_plain_file_name(name: str) -> None:
    made = slug(name)
    assert 1 <= len(made) <= 80
    assert made.isascii()
    assert not set(made) & set("/ \n'\"$;`\\")
    assert made[0] not in ".-"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.3-70B-Instruct", "Llama-3.3"),
        ("Qwen2.5-0.5B", "Qwen2.5"),
        ("Mixtral-8x7B-Instruct-v0.1", "Mixtral"),
        ("SmolLM2-135M", "SmolLM2"),
        ("gpt2", "gpt2"),
        ("c4ai-command-r-plus", "c4ai-command-r-plus"),
    ],
)
def test_families(name: str, expected: str) -> None:
    assert family(name) == expected


def test_a_log_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AegisError, match="the run directory cannot be made") as error:
        RunDir.create(str(tmp_path / "file"), "m", "x")
    assert error.value.hint == "choose another with --log-dir"


def test_a_run_that_never_started_is_removed_and_others_stay(tmp_path: Path) -> None:
    first = RunDir.create(str(tmp_path), "Llama-3-8B", "a")
    second = RunDir.create(str(tmp_path), "Llama-3-70B", "b")
    first.remove()
    assert names(tmp_path / "Llama-3") == [second.path.name]
    second.remove()
    assert names(tmp_path) == []


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path), "m", "x")
    manifest = Manifest(
        job="local://x", name="a\n$(x)'é", models=["m"], run_dir=str(run.path), deployment={"a": [1]}
    )
    run.write_manifest(manifest)
    assert run.read_manifest() == manifest
    for text in ("", "{", "[]", '{"job": 1}', "\xff"):
        run.manifest.write_bytes(text.encode("latin-1"))
        with pytest.raises(NotFoundError, match="no manifest"):
            run.read_manifest()


def test_secrets_are_removed(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path), "m", "x")
    run.secrets.touch()
    run.remove_secrets()
    run.remove_secrets()
    assert not run.secrets.exists()


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/h"}, "/h/.local/state/aegis/jobs"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/s"}, "/s/aegis/jobs"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/s", "AEGIS_STATE_DIR": "/a"}, "/a/jobs"),
    ],
)
def test_where_the_index_lies(environ: dict[str, str], folder: str) -> None:
    assert str(index_folder(environ)) == folder


def test_jobs_are_found_by_handle_and_bare_id(tmp_path: Path, environ: dict[str, str]) -> None:
    first, second = run_of(tmp_path, "local://abc"), run_of(tmp_path, "local://def")
    assert find_run("local://abc", environ).path == first.path
    assert find_run("def", environ).path == second.path
    assert [run.path for run in known_runs(environ).values()] == [first.path, second.path]


def test_an_id_of_two_jobs_is_ambiguous(tmp_path: Path, environ: dict[str, str]) -> None:
    run_of(tmp_path, "local://12")
    slurm = run_of(tmp_path, "slurm://12", model="n")
    with pytest.raises(NotFoundError, match="may be any of local://12, slurm://12") as error:
        find_run("12", environ)
    assert error.value.hint == "give the whole handle"
    assert find_run("slurm://12", environ).path == slurm.path


@pytest.mark.parametrize("handle", ["local://abd", "", "/", "../x", "1; touch x", "a\nb"])
def test_an_unknown_job(tmp_path: Path, environ: dict[str, str], handle: str) -> None:
    run_of(tmp_path, "local://abc")
    with pytest.raises(NotFoundError, match="there is no job") as error:
        find_run(handle, environ)
    assert error.value.hint


def test_a_job_that_registers_again_is_found_all_the_while(tmp_path: Path, environ: dict[str, str]) -> None:
    run = run_of(tmp_path, "local://k3f9")
    stop = threading.Event()

    def again() -> None:
        while not stop.is_set():
            register("local://k3f9", run, environ)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        assert all(list(known_runs(environ)) == ["local://k3f9"] for _ in range(2000))
    finally:
        stop.set()
        thread.join()


def test_links_to_what_was_deleted_are_dropped(tmp_path: Path, environ: dict[str, str]) -> None:
    gone, kept = run_of(tmp_path, "local://gone"), run_of(tmp_path, "local://kept")
    gone.remove()
    assert [run.path for run in known_runs(environ).values()] == [kept.path]
    assert len(names(index_folder(environ))) == 1


def test_links_to_a_file_system_that_is_away_stay(tmp_path: Path, environ: dict[str, str]) -> None:
    run_of(tmp_path, "local://away")
    (tmp_path / "logs").rename(tmp_path / "unmounted")
    assert known_runs(environ) == {}
    (tmp_path / "unmounted").rename(tmp_path / "logs")
    assert len(known_runs(environ)) == 1


def test_foreign_files_in_the_index_are_ignored(tmp_path: Path, environ: dict[str, str]) -> None:
    kept = run_of(tmp_path, "local://kept")
    (index_folder(environ) / "README").touch()
    assert [run.path for run in known_runs(environ).values()] == [kept.path]


def test_no_index_is_no_job(environ: dict[str, str]) -> None:
    assert known_runs(environ) == {}
    with pytest.raises(NotFoundError):
        find_run("x", environ)
