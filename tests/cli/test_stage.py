from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    root = tmp_path / "shared" / "models--org--name"
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / "abc").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    for blob, name in (("b1", "config.json"), ("b2", "model.safetensors")):
        (root / "blobs" / blob).write_text(f"content of {name}")
        (root / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{blob}")
    return root


@pytest.fixture
def config(tmp_path: Path, entry: Path) -> Path:
    (tmp_path / "plain dir").mkdir()
    (tmp_path / "plain dir" / "config.json").write_text("{}")
    file = tmp_path / "d.yaml"
    text = {
        "platform": "local",
        "hf_home": str(tmp_path / "hf"),
        "log_dir": str(tmp_path / "logs"),
        "gpus_per_node": 4,
        "models": [
            {"model": "org/name", "model_source": str(entry)},
            {"model": "org/other", "model_source": str(tmp_path / "plain dir")},
            {"model": "org/sim", "engine": "sim", "model_source": "/nowhere"},
        ],
    }
    file.write_text(json.dumps(text))
    return file


def test_models_are_staged_and_skipped_and_checked_and_removed(
    aegis: Callable[..., Any], config: Path, tmp_path: Path
) -> None:
    done = aegis("stage", "--config", str(config), "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [(each["ok"], each["skipped"]) for each in told["nodes"]] == [(True, False)] * 2
    snapshot = tmp_path / "hf/hub/models--org--name/snapshots/abc"
    assert (snapshot / "model.safetensors").read_text() == "content of model.safetensors"
    assert (snapshot / "config.json").is_symlink()
    loaded = {each["name"]: each["loaded"] for each in told["items"]}
    assert loaded["org/name"] == str(snapshot)
    assert names(Path(loaded["org/other"])) == [".aegis-manifest", "config.json"]

    again = aegis("stage", "--config", str(config))
    assert again.code == 0
    assert again.out.count("1 of 1  1") == 2
    assert aegis("stage", "--config", str(config), "--verify").code == 0

    blob = tmp_path / "hf/hub/models--org--name/blobs/b2"
    blob.unlink()
    blob.write_text("CONTENT of model.safetensors")
    spoiled = aegis("stage", "--config", str(config), "--verify")
    assert spoiled.code == 1
    assert "b2: block 0 is not what was staged" in spoiled.err

    assert aegis("stage", "--config", str(config), "--clean").code == 0
    assert not (tmp_path / "hf/hub/models--org--name").exists()
    assert names(tmp_path / "hf/hub") == []


def test_a_dry_run_says_what_it_takes_and_does_nothing(
    aegis: Callable[..., Any], config: Path, tmp_path: Path
) -> None:
    done = aegis("stage", "--config", str(config), "--dry-run")
    assert done.code == 0, done.err
    assert "org/name" in done.out
    assert "stager copy: one machine" in done.out
    assert "free" in done.out
    told = json.loads(aegis("stage", "--config", str(config), "--dry-run", "--json").out)
    assert told["bytes"] == len("content of config.jsoncontent of model.safetensorsabc{}")
    assert told["files"] == 4
    assert not (tmp_path / "hf").exists()


def test_outside_of_a_job_a_dry_run_imagines_the_nodes(aegis: Callable[..., Any], config: Path) -> None:
    done = aegis("stage", "--config", str(config), "--dry-run", "--platform", "aurora", "--account", "x")
    assert done.code == 0, done.err
    assert "node 1" in done.out
    assert "this is no allocation" in done.out
    refused = aegis("stage", "--config", str(config), "--platform", "aurora", "--account", "x")
    assert refused.code == 3


def test_every_missing_source_is_named_at_once(aegis: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    models = [{"model": f"o/{n}", "model_source": f"/nowhere/{n}"} for n in "ab"]
    file.write_text(json.dumps({"platform": "local", "gpus_per_node": 2, "models": models}))
    done = aegis("stage", "--config", str(file))
    assert done.code == 2
    assert "/nowhere/a" in done.err
    assert "/nowhere/b" in done.err


def test_a_cut_off_download_is_refused(aegis: Callable[..., Any], config: Path, entry: Path) -> None:
    (entry / "blobs" / "b2").unlink()
    done = aegis("stage", "--config", str(config))
    assert done.code == 2
    assert "model.safetensors: the link leads nowhere" in done.err


def test_somebodys_own_destination_fails_that_model_only(
    aegis: Callable[..., Any], config: Path, tmp_path: Path
) -> None:
    (tmp_path / "hf/hub/models--org--name").mkdir(parents=True)
    done = aegis("stage", "--config", str(config), "--json")
    assert done.code == 1  # the one node lacks something
    assert "was not staged by aegis" in done.err
    assert sorted(each["ok"] for each in json.loads(done.out)["nodes"]) == [False, True]


def test_flags_that_exclude_each_other(aegis: Callable[..., Any], config: Path) -> None:
    assert aegis("stage", "--config", str(config), "--dry-run", "--clean").code == 2
    unknown = aegis("stage", "--config", str(config), "--only", "elsewhere")
    assert unknown.code == 2
    assert "elsewhere: no node of this deployment" in unknown.err
    assert "nothing is staged" in aegis("stage", "--config", str(config), "--stager", "none").err


def test_clean_needs_no_source(aegis: Callable[..., Any], config: Path, entry: Path, tmp_path: Path) -> None:
    aegis("stage", "--config", str(config))
    entry.rename(tmp_path / "gone")
    assert aegis("stage", "--config", str(config), "--clean").code == 0
    assert names(tmp_path / "hf/hub") == []


def test_staging_killed_and_run_again_is_whole(config: Path, entry: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from aegis.cli import main\n"
        "from aegis.staging import local\n"
        "if sys.argv.pop() == 'die':\n"
        "    local._Here.publish = lambda self: os.kill(os.getpid(), 9)\n"
        "main()\n"
    )
    line = [sys.executable, "-c", program, "stage", "--config", str(config)]
    assert subprocess.run([*line, "die"], capture_output=True, check=False).returncode == -9
    assert not (tmp_path / "hf/hub/models--org--name").exists()
    assert subprocess.run([*line, "live"], capture_output=True, check=False).returncode == 0
    assert (tmp_path / "hf/hub/models--org--name/snapshots/abc/config.json").exists()


def test_a_conda_tarball_is_unpacked_once_and_staged_as_files(
    aegis: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").write_text("export ACTIVE=1\n")
    tarball = tmp_path / "env: 1.tar.gz"
    subprocess.run(["tar", "--force-local", "-czf", tarball, "-C", folder, "."], check=True)
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"name: mine\nnode: {{devices: 1, local_path: {tmp_path}/node}}\n")
    file = tmp_path / "d.yaml"
    content = {"platform": str(profile), "model": "org/name", "conda_env": str(tarball)}
    file.write_text(json.dumps(content))
    done = aegis("stage", "--config", str(file), "--json")
    assert done.code == 0, done.err
    [item] = json.loads(done.out)["items"]
    assert (tmp_path / "node" / f"aegis-env-{os.getuid()}").is_dir()
    assert Path(item["destination"], "bin", "activate").exists()
    again = json.loads(aegis("stage", "--config", str(file), "--json").out)
    assert [each["skipped"] for each in again["nodes"]] == [True]
    assert aegis("stage", "--config", str(file), "--clean").code == 0
    assert not Path(item["destination"]).exists()


@pytest.mark.parametrize("stager", ["tcp", "mpi"])
def test_the_programs_on_the_nodes_do_the_same(
    aegis: Callable[..., Any], config: Path, tmp_path: Path, stager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an allocation of this one node."""
    profile = tmp_path / "site.yaml"
    profile.write_text("name: site\nscheduler: pbs\nlauncher: mpiexec\nnode: {devices: 4}\n")
    (tmp_path / "nodes").write_text(f"{os.uname().nodename}\n" * 4)
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    if shutil.which("mpiexec") is None:
        pytest.skip("no mpiexec on this machine")
    line = ("stage", "--config", str(config), "--platform", str(profile), "--stager", stager, "--json")
    first = aegis(*line)
    if stager == "mpi" and first.code == 3:
        pytest.skip(first.err.splitlines()[0])
    assert first.code == 0, first.err
    assert [(each["ok"], each["skipped"]) for each in json.loads(first.out)["nodes"]] == [(True, False)] * 2
    snapshot = tmp_path / "hf/hub/models--org--name/snapshots/abc"
    assert (snapshot / "model.safetensors").read_text() == "content of model.safetensors"
    by_copy = aegis("stage", "--config", str(config), "--platform", str(profile), "--json")
    assert [each["skipped"] for each in json.loads(by_copy.out)["nodes"]] == [True, True]
    assert aegis(*line, "--verify").code == 0
    assert aegis(*line, "--clean").code == 0
    assert names(tmp_path / "hf/hub") == []
    assert [name for name in names(tmp_path / "logs") if "staging" in name] == []
