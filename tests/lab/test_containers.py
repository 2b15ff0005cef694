"""Engines in containers, behind modules and in virtual environments: real launches, with stand-ins for what a site has.

`apptainer` is the stand-in of tests/fixtures/bin, as strict about its words as the real one. The engine in the image is
called `vllm` and takes vLLM's arguments: it is the simulated one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .conftest import chat, wait_until

if TYPE_CHECKING:
    import subprocess

    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
APPTAINER = Path(__file__).parents[1] / "fixtures" / "bin" / "apptainer"
# Shows what it sees to the test, then is the simulated engine; --stubborn has a part in a session of its own
VLLM = """#!{python}
import json, os, subprocess, sys
args = sys.argv[2:]
with open(os.path.join({image!r}, "environ"), "w") as file:
    json.dump([dict(os.environ), sys.argv[1], args], file)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
os.execv({python!r}, [{python!r}, "-P", "-m", "aegis", "sim", *args])
"""
MODULE = 'module() { [ "$2" = good ] && LOADED=$2 && export LOADED; }'


@pytest.fixture
def image(lab: Lab) -> Path:
    """An image, and apptainer on the PATH that a login shell has."""
    programs = lab.path / "programs"
    programs.mkdir()
    shutil.copy(APPTAINER, programs / "apptainer")
    # /etc/profile sets PATH anew; the user's own profile comes last
    (lab.path / "home" / ".bash_profile").write_text(
        f'PATH="{programs}:{Path(sys.executable).parent}:$PATH"\n'
    )
    made = lab.path / "an image, of vLLM"
    (made / "bin").mkdir(parents=True)
    vllm = made / "bin" / "vllm"
    vllm.write_text(VLLM.format(python=sys.executable, image=str(made)))
    vllm.chmod(0o755)
    return made


def launch(lab: Lab, setup: tuple[str, ...] = (), **keys: Any) -> subprocess.Popen[str]:
    profile = {
        "name": "site",
        "launcher": "local",
        "setup": list(setup),
        "node": {"devices": 2, "mask_variable": "CUDA_VISIBLE_DEVICES"},
        "container_args": ["--nv"],
    }
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    weights = lab.path / "wei,ghts"
    weights.mkdir()
    defaults = {"model": "./m", "served_model_name": "m", "model_source": str(weights), "engine": "vllm"}
    hf_home = {"hf_home": str(lab.path / "hf")}
    return lab.start(
        "launch", "--config", lab.deployment(platform="site.yaml", **{**defaults, **hf_home, **keys})
    )


def test_an_engine_in_a_container_serves_and_ends_whole(lab: Lab, image: Path) -> None:
    lab.environ |= {"HF_TOKEN": "hf_very_secret", "CUDA_VISIBLE_DEVICES": "4,7", "PYTHONSTARTUP": "/poison"}
    value = "a,b='\"\n$(touch X)"
    process = launch(lab, image=str(image), env={"HOSTILE": value}, instances=2)
    endpoints = wait_until(lambda: lab.output(process).out.split() if process.poll() is None else ["dead"])
    assert len(endpoints) == 2, lab.output(process).err
    for endpoint in endpoints:
        assert chat(endpoint, "m")["choices"]
    environ, verb, args = json.loads((image / "environ").read_text())
    assert verb == "serve"
    assert args[0].startswith(str(lab.path / "hf" / "aegis" / "wei,ghts-"))  # staged
    assert environ["HOSTILE"] == value
    assert environ["HF_TOKEN"] == "hf_very_secret"
    assert environ["HF_HOME"] == str(lab.path / "hf")
    assert environ["CUDA_VISIBLE_DEVICES"] in {"4", "7"}  # of those that were granted
    assert "PYTHONSTARTUP" not in environ
    assert not [each for each in lab.processes() if "hf_very_secret" in each.command]
    assert not list(lab.path.rglob("X"))
    assert [each for each in lab.processes() if "time.sleep(600)" in each.command]
    process.terminate()
    assert process.wait(40) == 0, lab.output(process).err
    wait_until(lab.is_empty, "every process is gone", 15)


def test_an_engine_that_dies_in_its_container_is_started_again(lab: Lab, image: Path) -> None:
    process = launch(lab, image=str(image))
    wait_until(lambda: lab.output(process).out)
    (engine,) = (
        each for each in lab.processes() if " sim " in each.command and "apptainer" not in each.command
    )
    engine.kill()
    wait_until(lambda: "healthy again (start 2)" in lab.output(process).err)
    inside = [each for each in lab.processes() if "time.sleep(600)" in each.command]
    assert len(inside) == 1  # what the first start left behind in the container is gone


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image": "/no/such.sif", "stager": "none"}, "the image cannot be opened: /no/such.sif"),
        (
            {"bind": ["/no/such folder"]},
            "not on this node, so not to be bound into the container: /no/such folder",
        ),
        ({"engine": "sglang"}, "engine not found: python3 is not in the image"),
    ],
)
def test_what_is_missing_ends_the_launch_with_its_reason(
    keys: dict[str, Any], said: str, lab: Lab, image: Path
) -> None:
    if "engine" in keys:  # an image without any Python
        text = (lab.path / "programs" / "apptainer").read_text()
        (lab.path / "programs" / "apptainer").write_text(text.replace("/bin:/usr/bin:/bin", "/bin"))
    process = launch(lab, **{"image": str(image), **keys})
    assert process.wait(30) == 1
    assert said in lab.output(process).err


def test_a_module_that_cannot_be_loaded_ends_the_launch_with_its_name(lab: Lab, image: Path) -> None:
    process = launch(lab, (MODULE,), image=str(image), modules=["good", "b a'd"])
    assert process.wait(30) == 1
    assert "module b a'd cannot be loaded" in lab.output(process).err


def test_modules_come_before_the_container(lab: Lab, image: Path) -> None:
    process = launch(lab, (MODULE,), image=str(image), modules=["good"])
    wait_until(lambda: lab.output(process).out)


def test_a_virtual_environment_behind_modules_is_first_on_the_path(lab: Lab, image: Path) -> None:
    process = launch(lab, (MODULE,), venv=str(image), modules=["good"])
    wait_until(lambda: lab.output(process).out)
    environ, *_ = json.loads((image / "environ").read_text())
    assert environ["PATH"].startswith(f"{image}/bin:")
    assert (environ["LOADED"], environ["VIRTUAL_ENV"]) == ("good", str(image))
