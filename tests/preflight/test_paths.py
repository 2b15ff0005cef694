"""What the deployment names must be there, be writable, and be a port that a user may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aegis.engines import engine
from aegis.preflight.files import LocalFiles

from .conftest import LLAMA_8B, write_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Desk

HOSTILE = ["$(touch x)", "a b", "it's", 'say "x"', "a\nb", "; rm x", "-n", "*", "~nobody-of-that-name", "ü"]
MAKE = "make it, or --force if only the nodes have it"


def told(desk: Desk, **keys: Any) -> list[str]:
    return desk.told(**{"model": "org/m", "engine": "sim", **keys})


def test_an_ordinary_deployment_misses_nothing(desk: Desk) -> None:
    assert told(desk) == []
    assert sorted(path.name for path in desk.folder.iterdir()) == ["profiles"]


def test_a_working_directory_that_is_not_there(desk: Desk) -> None:
    assert told(desk, work_dir="gone") == [
        "!--work-dir: the working directory is not there: ~/gone (make it, or choose another)"
    ]


def test_a_folder_of_the_endpoints_file_that_is_not_there(desk: Desk) -> None:
    hint = "choose another with --endpoints-file"
    assert told(desk, endpoints_file="gone/e.txt") == [
        f"!--endpoints-file: the folder of the endpoints file is not there: ~/gone (make it, or {hint})"
    ]
    (desk.folder / "dir").mkdir()
    assert told(desk, endpoints_file="dir") == [
        f"!--endpoints-file: the endpoints file is a directory: ~/dir ({hint})"
    ]
    assert told(desk, endpoints_file="dir/e.txt") == []
    assert told(desk, endpoints_file="{run_dir}/e.txt") == []
    assert told(desk, endpoints_file="e-{job}.txt") == []
    assert len(told(desk, endpoints_file="gone/e-{job}.txt")) == 1


class Locked(LocalFiles):
    """A machine with a folder that this user may not write; root, who may run tests, writes anywhere."""

    def writable(self, folder: str) -> bool:
        return "locked" not in folder and super().writable(folder)


def test_a_folder_that_cannot_be_written(desk: Desk) -> None:
    (desk.folder / "locked").mkdir()
    desk.files = Locked()
    assert told(desk, endpoints_file="locked/e.txt", log_dir="locked/logs/deep") == [
        (
            "!--endpoints-file: the folder of the endpoints file cannot be written: ~/locked "
            "(choose another with --endpoints-file)"
        ),
        (
            "!--log-dir: ~/locked cannot be written, so there is no place for the logs in ~/locked/logs/deep "
            "(choose another with --log-dir)"
        ),
    ]


def test_a_place_for_logs_that_cannot_be_made(desk: Desk) -> None:
    (desk.folder / "file").write_text("")
    said = "!--log-dir: ~/file is no directory, so there is no place for the logs in ~/file/logs (choose another with --log-dir)"
    assert told(desk, log_dir="file/logs") == [said]
    assert told(desk, log_dir="new/deep/logs") == []


def test_weights_that_are_not_there(desk: Desk) -> None:
    hint = "(give the directory that holds config.json, or a Hugging Face cache entry (models--ORG--NAME))"
    assert told(desk, engine="vllm", model_source="gone") == [
        f"!--model-source: the weights of org/m are not there: ~/gone {hint}"
    ]
    assert told(desk, engine="vllm", model="./gone") == [
        f"!--model: the weights of ./gone are not there: ~/gone {hint}"
    ]
    assert told(desk, engine="vllm", model_source="gone", download_weights=True) == []
    assert told(desk, engine="vllm", model_source="gone", skip_staging=True) == []
    assert told(desk, model_source="gone") == []


def test_a_cache_entry_without_a_complete_snapshot(desk: Desk) -> None:
    (desk.folder / "entry" / "snapshots" / "aaa").mkdir(parents=True)
    assert told(desk, engine="vllm", model_source="entry") == [
        (
            "!--model-source: ~/entry is a Hugging Face cache entry without a complete snapshot "
            "(download the model again, or name the snapshot's directory)"
        )
    ]


def test_a_directory_that_is_no_model(desk: Desk) -> None:
    (desk.folder / "empty").mkdir()
    assert told(desk, engine="vllm", model_source="empty") == [
        "--model-source: ~/empty holds no config.json (give the directory of a model in Hugging Face's format)"
    ]


def test_weights_of_which_a_part_is_missing(desk: Desk) -> None:
    folder = write_model(desk.folder / "m", LLAMA_8B, shards=3)
    assert told(desk, engine="vllm", model="./m") == []
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model-00002-of-00003.safetensors").symlink_to("../blobs/gone")
    assert told(desk, engine="vllm", model="./m") == [
        (
            "--model: 1 file of weights of ./m not there: model-00002-of-00003.safetensors in ~/m "
            "(download the model again)"
        )
    ]


@pytest.mark.parametrize(
    ("key", "what"),
    [("venv", "virtual environment"), ("conda_env", "conda environment"), ("image", "image")],
)
def test_environments_that_are_not_there_may_be_on_the_nodes(
    desk: Desk, gpus: Callable[..., str], key: str, what: str
) -> None:
    keys = {name: f"no-{name}" for name in (key, "aegis_env")}
    found = told(desk, platform=gpus(), bind=["/gone:/data", ".:/work"], **keys)
    assert found == [
        f"--{key.replace('_', '-')}: the {what} is not there: ~/no-{key} ({MAKE})",
        f"--aegis-env: the environment of aegis is not there: ~/no-aegis_env ({MAKE})",
        f"--bind: the path to bind is not there: /gone ({MAKE})",
    ]


def test_here_what_is_not_there_is_missing_for_sure(desk: Desk) -> None:
    assert told(desk, venv="gone") == [
        "!--venv: the virtual environment is not there: ~/gone (make it, or name another)"
    ]


def test_an_image_may_be_fetched(desk: Desk) -> None:
    assert told(desk, image="docker://vllm/vllm-openai:latest") == []


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_an_environment_without_the_engine(desk: Desk, gpus: Callable[..., str], name: str) -> None:
    keys: dict[str, Any] = {"engine": name, "venv": "env", "platform": gpus()}
    (desk.folder / "env" / "bin").mkdir(parents=True)
    program = engine(name).program
    assert told(desk, **keys) == [
        f"--venv: the program `{program}` of the virtual environment is not there: ~/env/bin/{program} ({MAKE})"
    ]
    (desk.folder / "env" / "bin" / program).write_text("")
    assert told(desk, **keys) == []


def test_an_environment_without_aegis(desk: Desk) -> None:
    (desk.folder / "env").mkdir()
    (said,) = told(desk, aegis_env="env")
    assert "the program `python` of the environment of aegis is not there: ~/env/bin/python" in said


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_names(desk: Desk, gpus: Callable[..., str], name: str) -> None:
    keys: dict[str, Any] = {
        "engine": "vllm",
        "platform": gpus(),
        "model_source": f"./{name}",
        "venv": f"./{name}",
    }
    assert len(told(desk, **keys)) == 2
    write_model(desk.folder / name, LLAMA_8B)
    (desk.folder / name / "bin").mkdir()
    (desk.folder / name / "bin" / "vllm").write_text("")
    assert told(desk, **keys) == []


@pytest.mark.parametrize("key", ["model_source", "venv", "work_dir", "log_dir", "endpoints_file", "image"])
@pytest.mark.parametrize("name", ["a\0b", "/" * 5000 + "x", "x" * 5000])
def test_a_name_that_no_file_can_have_is_no_crash(desk: Desk, key: str, name: str) -> None:
    found = told(desk, engine="vllm", **{key: name})
    assert found or key in ("log_dir", "endpoints_file")


def test_ports_that_belong_to_root(desk: Desk) -> None:
    assert told(desk, port_start=80, registry_port=443) == [
        "--port-start: `port_start` 80 is below 1024, where only root may serve (use 8000)",
        "--registry-port: `registry_port` 443 is below 1024, where only root may serve (use 8471)",
    ]


def test_ports_beyond_the_last(desk: Desk) -> None:
    assert told(desk, port_start=64472) == []
    assert told(desk, port_start=64473) == [
        (
            "!--port-start: 1 server on a node from port 64473 on need ports up to 65536, beyond 65535 "
            "(use a port_start of at most 64472)"
        )
    ]
    (said,) = told(desk, port_start=64000, instances=12)
    assert "12 servers on a node from port 64000 on need ports up to 65767, beyond 65535" in said
    assert desk.told("model: m\nengine: sim\ninstances: 12\nport_start: 64000\n", nodes=12) == []
