"""Modules, conda environments, virtual environments and containers, as real shells see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.fleet.agent.processes import MARK
from aegis.fleet.environments import (
    conda_lines,
    container_command,
    container_environment,
    container_lines,
    expanded,
    setup_lines,
    with_setup,
)
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Platform

HOSTILE = ["a b", "'", '"', "a\nb", "$(touch X)", "`touch X`", ";touch X", "-x", "ä", "../..", "*", "a/b", ""]
APPTAINER = Path(__file__).parents[1] / "fixtures" / "bin"
# `module` as sites have it: a function of the login shell, that sets variables and fails for what it does not know
MODULES = """module() { case $1$2 in loadno*) echo "unknown module" >&2; return 1 ;; esac; export LOADED="$LOADED[$2]"; }"""


def deployment(**keys: Any) -> Deployment:
    return Deployment(models=(ModelEntry(model="m"),), **keys)


# ------------------------------------------------------------------------------------------- shell


def test_arguments_pass_the_set_up_lines_unharmed(tmp_path: Path) -> None:
    show = 'import os, sys; print(ascii((sys.argv[1:], os.environ["SITE"])))'
    argv = with_setup(["/usr/bin/env", "python3", "-c", show, *HOSTILE], ["export SITE='a b'", "true"])
    assert argv[:2] == ["bash", "-lc"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ascii((HOSTILE, "a b"))
    assert not (tmp_path / "X").exists()


def test_without_set_up_there_is_no_shell() -> None:
    assert with_setup(("a", "b"), []) == ["a", "b"]


def test_a_program_that_is_not_there_is_told_in_words_the_diagnosis_knows(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for program in ("no-such-engine", "$(touch X)", str(plain)):
        argv = with_setup([program, "-x"], ["true"])
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 127
        assert done.stderr.splitlines()[-1] == f"aegis: cannot run {program}: not found, or not executable"
    assert not (tmp_path / "X").exists()


def test_modules_are_loaded_after_the_set_up_of_the_site_and_before_the_engine(tmp_path: Path) -> None:
    platform = Platform(name="p", setup=(MODULES,))
    lines = setup_lines(deployment(modules=("apptainer/1.3", "$(touch X) b")), platform)
    done = subprocess.run(
        with_setup(["printenv", "LOADED"], lines), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[apptainer/1.3][$(touch X) b]\n"
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("name", ["nosuch", "no $(touch X)'"])
def test_a_module_that_fails_to_load_fails_the_start(name: str, tmp_path: Path) -> None:
    lines = setup_lines(deployment(modules=(name,)), Platform(name="p", setup=(MODULES,)))
    argv = with_setup(["touch", "started"], lines)
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1] == f"aegis: cannot start: module {name} cannot be loaded"
    assert not list(tmp_path.iterdir())


def test_without_modules_on_the_node_that_is_said(tmp_path: Path) -> None:
    lines = setup_lines(deployment(modules=("cuda",)), Platform(name="p"))
    argv = with_setup(["true"], ["unset -f module", *lines])
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "aegis: cannot start: module cuda cannot be loaded" in done.stderr


def test_a_virtual_environment_stands_before_what_modules_bring(tmp_path: Path) -> None:
    lines = setup_lines(
        deployment(venv=str(tmp_path / "v'e")), Platform(name="p", setup=("PATH=/site:$PATH",))
    )
    argv = with_setup(["printenv", "PATH"], lines)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / chr(118)}'e/bin:/site:")
    assert (
        setup_lines(deployment(venv="/v"), Platform(name="p")) == []
    )  # its PATH is in the environment already


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A conda-pack tarball with a hostile name, whose conda-unpack counts its runs."""
    source = tmp_path / "source" / "bin"
    source.mkdir(parents=True)
    (source / "activate").write_text('export ACTIVE="$conda_env"\n')
    (source / "conda-unpack").write_text(f'#!/bin/sh\nsleep 0.2\necho run >> "{tmp_path}/unpacked"\n')
    (source / "conda-unpack").chmod(0o755)
    tarball = tmp_path / "it's $(touch X) a:b.tar.gz"
    subprocess.run(
        ["tar", "--force-local", "-czf", str(tarball), "-C", str(source.parent), "bin"], check=True
    )
    return tarball


def conda(environment: Path, local: Path) -> subprocess.Popen[str]:
    argv = with_setup(["printenv", "ACTIVE"], conda_lines(str(environment), str(local)))
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=local, stdout=pipe, stderr=pipe, text=True)


def test_a_packed_environment_is_unpacked_once(packed: Path, tmp_path: Path) -> None:
    local = tmp_path / "local $x"
    local.mkdir()
    quoted = Path(str(local).replace("$", "\\$"))  # profiles may name variables
    argv = with_setup(["printenv", "ACTIVE"], conda_lines(str(packed), str(quoted)))
    several = [
        subprocess.Popen(argv, cwd=local, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [each.communicate(timeout=30) for each in several]
    assert [err for _, err in answers] == [""] * 3
    places = {out.splitlines()[-1] for out, _ in answers}
    assert len(places) == 1
    assert places.pop().startswith(str(local))
    assert (tmp_path / "unpacked").read_text() == "run\n"
    assert not list(tmp_path.rglob("X"))


def test_a_broken_tarball_is_an_error_and_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:100])
    local = tmp_path / "local"
    local.mkdir()
    with conda(packed, local) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert out == ""
    assert "could not be unpacked" in err
    assert [each.suffix for each in local.rglob("*") if each.is_file()] == [".lock"]


def test_a_failing_unpack_is_tried_again(packed: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (tmp_path / "unpacked").mkdir()  # conda-unpack cannot write there
    with conda(packed, local) as process:
        process.communicate(timeout=30)
    assert process.returncode != 0
    (tmp_path / "unpacked").rmdir()
    with conda(packed, local) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith(str(local))


def test_an_unpacked_environment_is_used_where_it_is(packed: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with conda(source, tmp_path) as process:
        assert process.communicate(timeout=30)[0].splitlines()[-1] == str(source)


def test_a_missing_environment_is_said(tmp_path: Path) -> None:
    with conda(tmp_path / "$(touch X)", tmp_path) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 127
    assert "aegis: cannot start: no conda environment at" in err
    assert not (tmp_path / "X").exists()


def test_a_folder_of_somebody_else_is_not_trusted(packed: Path, tmp_path: Path) -> None:
    local, other = tmp_path / "local", tmp_path / "other"
    local.mkdir()
    other.mkdir()
    (local / f"aegis-env-{os.getuid()}").symlink_to(other)
    with conda(packed, local) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 127
    assert "is not ours" in err
    assert not list(other.iterdir())


# ------------------------------------------------------------------------------------------- containers


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of the stand-in: its `engine` shows its arguments, folder and environment."""
    programs = tmp_path / "it's an image" / "bin"
    programs.mkdir(parents=True)
    engine = programs / "engine"
    engine.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))\n"
    )
    engine.chmod(0o755)
    return programs.parent


def run_in(
    image: Path,
    folder: Path,
    argv: list[str],
    inside: dict[str, str],
    *,
    late: dict[str, str] | None = None,
    folders: tuple[str, ...] = (),
    outside_: dict[str, str] | None = None,
    **keys: Any,
) -> subprocess.CompletedProcess[str]:
    late = late or {}
    platform = Platform(name="p", container_args=("--nv",))
    made = deployment(image=str(image), hf_home=str(folder / "hf home"), **keys)
    words = container_command(argv, made, platform, str(folder), folders)
    assert not [word for word in words if any(secret in word for secret in late.values())]
    command = with_setup(words, container_lines(made, platform, late))
    path = f"{APPTAINER}:{Path(sys.executable).parent}:/usr/bin:/bin"
    outside = {"PATH": path, "PYTHONPATH": "/poison", "HOME": str(folder), **late, **(outside_ or {})}
    # no login shell: its PATH would be another
    command[1] = "-c"
    return subprocess.run(
        command,
        cwd=folder,
        env=container_environment(inside, outside),
        capture_output=True,
        text=True,
        check=False,
    )


@given(st.dictionaries(st.from_regex(r"V_[a-z]{1,4}", fullmatch=True), st.sampled_from(HOSTILE)))
@settings(max_examples=8, deadline=None)
def test_names_and_values_arrive_whole(values: dict[str, str]) -> None:
    argv = container_environment(values, {})
    for name, value in values.items():
        assert argv[f"APPTAINERENV_{name}"] == argv[f"SINGULARITYENV_{name}"] == value


def test_the_engine_sees_what_it_is_given_and_nothing_of_the_host(image: Path, tmp_path: Path) -> None:
    given_ = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    late = {MARK: "m-0.17.1", "CUDA_VISIBLE_DEVICES": "2,3", "HF_TOKEN": "hf_very_secret"}
    folder = tmp_path / "wörk, dir:"
    folder.mkdir()
    done = run_in(image, folder, ["engine", *HOSTILE], given_, late=late)
    assert done.returncode == 0, done.stderr
    argv, cwd, environ = json.loads(done.stdout)
    assert argv == HOSTILE
    assert cwd == str(folder)
    assert environ.items() >= {**given_, **late, "PYTHONNOUSERSITE": "1"}.items()
    assert "PYTHONPATH" not in environ
    assert not [name for name in environ if name.startswith(("APPTAINER", "SINGULARITY"))]
    assert not (folder / "X").exists()


def test_late_values_that_are_not_set_stay_unset(image: Path, tmp_path: Path) -> None:
    done = run_in(image, tmp_path, ["engine"], {}, late={})
    assert not {MARK, "HF_TOKEN"} & set(json.loads(done.stdout)[2])


def test_folders_are_mounted_whatever_their_names(image: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'w,"e:i^g hts'
    odd.mkdir()
    done = run_in(image, tmp_path, ["engine"], {}, folders=(str(odd), "/"), bind=(f"{tmp_path}:/data:ro",))
    assert done.returncode == 0, done.stderr
    seen = json.loads((image / "seen").read_text())
    assert seen["mounted"] == [str(tmp_path), str(tmp_path / "hf home"), "/tmp", str(odd), str(tmp_path)]
    words = seen["argv"]
    assert words[:3] == ["exec", "--cleanenv", "--nv"]
    assert words[-3:] == [str(tmp_path), str(image), "engine"]
    assert words[words.index("--bind") + 1] == f"{tmp_path}:/data:ro"


def test_binds_may_name_variables_of_the_job(image: Path, tmp_path: Path) -> None:
    made = tmp_path / "a b;$(touch X)"
    made.mkdir()
    binds = ("$SCRATCH:$HOME/.cache", "${SCRATCH}/..:/da ta$(touch X)", "/tmp:/plain")
    done = run_in(image, tmp_path, ["engine"], {}, bind=binds, outside_={"SCRATCH": str(made)})
    assert done.returncode == 0, done.stderr
    seen = json.loads((image / "seen").read_text())
    assert seen["bound"] == f"{made}:{tmp_path}/.cache,{made}/..:/da ta$(touch X)"
    assert not (tmp_path / "X").exists()
    without = run_in(image, tmp_path, ["engine"], {}, bind=binds)
    assert "cannot start: SCRATCH, which bind names, is not set here" in without.stderr


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"image": "/no/such.sif"}, "could not open image /no/such.sif"),
        ({"bind": ("/no/such folder",)}, "mount source /no/such folder doesn't exist"),
        ({"argv": ["no-engine"]}, '"no-engine": executable file not found'),
    ],
)
def test_what_a_container_lacks_is_a_cause(
    given_: dict[str, Any], said: str, image: Path, tmp_path: Path
) -> None:
    keys = {"image": image, "argv": ["engine"], **given_}
    done = run_in(Path(keys.pop("image")), tmp_path, keys.pop("argv"), {}, **keys)
    assert done.returncode == 255
    assert said in done.stderr


def test_an_hf_home_that_cannot_be_made_is_said(image: Path, tmp_path: Path) -> None:
    (tmp_path / "hf home").write_text("a file")
    done = run_in(image, tmp_path, ["engine"], {})
    assert done.returncode == 127
    assert f"aegis: cannot start: {tmp_path}/hf home cannot be made" in done.stderr


def test_images_are_found_from_the_working_directory_or_named_by_a_url(tmp_path: Path) -> None:
    def image_of(name: str) -> str:
        return container_command(["e"], deployment(image=name), Platform(name="p"), "/work", [])[-2]

    assert image_of("vllm.sif") == "/work/vllm.sif"
    assert image_of("-x.sif") == "/work/-x.sif"
    assert image_of("/images/vllm.sif") == "/images/vllm.sif"
    assert image_of("~/vllm.sif") == str(expanded("~/vllm.sif"))
    assert image_of("docker://vllm/vllm-openai") == "docker://vllm/vllm-openai"


def test_names_that_no_shell_knows_do_not_enter() -> None:
    made = container_environment({"a b": "1", "x;touch X": "2", "GOOD": "3"}, {})
    assert {name for name in made if name.startswith("APPTAINERENV_")} == {
        "APPTAINERENV_GOOD",
        "APPTAINERENV_PYTHONNOUSERSITE",
    }
    asked = deployment(image="i", hf_home="/h")
    assert (
        container_lines(asked, Platform(name="p"), ["x;touch X", "GOOD"])[-3]
        == f"for name in {MARK} GOOD; do"
    )


def test_singularity_is_started_by_its_own_name() -> None:
    platform = Platform(name="p", container="singularity", container_args=("--rocm",))
    assert container_command(["e"], deployment(image="/i"), platform, "/", [])[:4] == [
        *("singularity", "exec", "--cleanenv", "--rocm"),
    ]
