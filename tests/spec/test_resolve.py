"""The layers and their order: default < platform < file < environment < flag."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import ConfigError, DeploymentError
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import Resolved, resolve

DEPLOYMENTS = Path(__file__).parents[1] / "fixtures" / "deployments"
SITE = Site((BUILT_IN,), "laptop", lambda _: False)
LLAMA_70B = {
    "model": "meta-llama/Llama-3.3-70B-Instruct",
    "instances": 2,
    "tensor_parallel_size": 6,
    "model_source": "/flare/datasets/model-weights/hub/models--meta-llama--Llama-3.3-70B-Instruct",
    "extra_vllm_args": ("--max-model-len", "32768"),
    "engine": "vllm",
}
LLAMA_8B = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "instances": 1,
    "tensor_parallel_size": 1,
    "model_source": None,
    "extra_vllm_args": (),
}
TOP = {
    "port_start": 8000,
    "hf_home": "/tmp/hf_home",
    "walltime": "01:00:00",
    "account": "MyProject",
    "filesystems": "flare:home",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(text: str, *, environ: dict[str, str] | None = None, **flags: Any) -> Resolved:
    Path("f.yaml").write_text(text)
    return resolve(Path("f.yaml"), flags, environ or {}, SITE)


def problems(text: str, *, environ: dict[str, str] | None = None, **flags: Any) -> list[str]:
    with pytest.raises(DeploymentError) as error:
        resolved(text, environ=environ, **flags)
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize(("name", "models"), [("single", [LLAMA_70B]), ("several", [LLAMA_70B, LLAMA_8B])])
def test_the_two_files_of_the_design_load_verbatim(name: str, models: list[dict[str, Any]]) -> None:
    deployment = resolve(DEPLOYMENTS / f"{name}.yaml", {}, {}, SITE).deployment
    assert {key: getattr(deployment, key) for key in TOP} == TOP
    for entry, expected in zip(deployment.models, models, strict=True):
        assert {key: getattr(entry, key) for key in expected} == expected


def test_origins_are_exact(here: Path) -> None:
    shutil.copy(DEPLOYMENTS / "several.yaml", "f.yaml")
    environ = {"AEGIS_ACCOUNT": "Other", "AEGIS_INSTANCES": "3", "AEGIS_QUEUE": "debug"}
    flags = {"queue": "prod", "tensor_parallel_size": "4", "platform": "aurora"}
    origins = resolve(Path("f.yaml"), flags, environ, SITE).origins
    assert {key: value for key, value in origins.items() if value != "default"} == {
        "platform": "--platform",
        "scheduler": "platform aurora",
        "walltime": "f.yaml:3",
        "queue": "--queue",
        "account": "AEGIS_ACCOUNT",
        "filesystems": "f.yaml:5",
        "port_start": "f.yaml:1",
        "hf_home": "f.yaml:2",
        "models[0].model": "f.yaml:8",
        "models[0].instances": "AEGIS_INSTANCES",
        "models[0].tensor_parallel_size": "--tensor-parallel-size",
        "models[0].model_source": "f.yaml:11",
        "models[0].extra_vllm_args": "f.yaml:12",
        "models[1].model": "f.yaml:15",
        "models[1].instances": "AEGIS_INSTANCES",
        "models[1].tensor_parallel_size": "--tensor-parallel-size",
    }


def test_the_platform_lies_below_the_file(here: Path) -> None:
    below = resolved("model: m\nplatform: aurora\n")
    assert below.deployment.walltime == "01:00:00"
    assert below.origins["walltime"] == below.origins["filesystems"] == "platform aurora"
    above = resolved("model: m\nplatform: aurora\nwalltime: 02:00:00\n")
    assert above.deployment.walltime == "02:00:00"
    assert above.origins["walltime"] == "f.yaml:3"


def test_what_was_detected_says_so(here: Path) -> None:
    found = resolved("model: m")
    assert (found.deployment.platform, found.origins["platform"]) == ("local", "detected")
    assert (found.deployment.scheduler, found.origins["scheduler"]) == ("local", "platform local")


def test_top_level_model_keys_are_defaults_of_every_entry(here: Path) -> None:
    text = (
        "engine: sim\nenv: {A: 1, B: 2}\nmodels:\n  - model: m\n  - {model: n, engine: vllm, env: {B: 3}}\n"
    )
    first, second = resolved(text).deployment.models
    assert (first.engine, first.env) == ("sim", {"A": "1", "B": "2"})
    assert (second.engine, second.env) == ("vllm", {"A": "1", "B": "3"})


def test_environment_variables_of_servers_merge_and_name_both_origins(here: Path) -> None:
    found = resolved("model: m\nenv: {A: 1, B: 2}\n", env={"B": "3"})
    assert found.deployment.models[0].env == {"A": "1", "B": "3"}
    assert found.origins["models[0].env"] == "f.yaml:2, --env"


def test_an_empty_variable_is_unset(here: Path) -> None:
    assert resolved("model: m\nqueue: q\n", environ={"AEGIS_QUEUE": ""}).deployment.queue == "q"


def test_null_in_the_file_is_no_value(here: Path) -> None:
    found = resolved("model: m\nqueue: null\naccount:\nplatform: aurora\nwalltime: ~\n")
    assert (found.deployment.queue, found.origins["queue"]) == (None, "default")
    assert found.origins["walltime"] == "platform aurora"


@pytest.mark.parametrize("flag", ["null", "no", "1e5", "0123", "true"])
def test_text_given_as_a_flag_stays_text(here: Path, flag: str) -> None:
    assert resolved("model: m", queue=flag).deployment.queue == flag


def test_problems_of_file_environment_and_flags_come_together(here: Path) -> None:
    found = problems(
        "model: m\nqueu: q\nwalltime: 5\n", environ={"AEGIS_WAIT": "yes"}, instances="many", port_start="0"
    )
    assert found == [
        "--instances: `instances` should be a whole number, not `many`",
        "--port-start: `port_start` should be a whole number >= 1, not `0`",
        "AEGIS_WAIT: `wait` should be true or false, not `yes`",
        "f.yaml:2: unknown key `queu` (did you mean `queue`?)",
        "f.yaml:3: `5` is no walltime (write HH:MM:SS, such as 01:00:00)",
    ]


def test_problems_are_in_the_order_of_lines(here: Path) -> None:
    found = problems("model: m\n" + "".join(f"x{n}: 1\n" for n in range(11)))
    assert [problem.split(":")[1] for problem in found] == [str(line) for line in range(2, 13)]


def test_a_flag_that_mends_the_file_still_hears_of_the_mistake(here: Path) -> None:
    assert problems("model: m\ninstances: 0\n", instances="2")


@pytest.mark.parametrize(
    ("text", "flags", "problem"),
    [
        (
            "models: [{model: a}, {model: b}]",
            {"model": "c"},
            "--model: the file lists 2 models, so it is not clear which one to replace (give a file with one model, or none)",
        ),
        ("account: x", {}, "f.yaml:1: no model is given (set `model:` in the file or pass --model)"),
        (
            "model: m\nport_start: 8471\nregistry_port: 8471",
            {},
            "f.yaml:3: `registry_port` and `port_start` are the same port",
        ),
        (
            "model: m\nregistry_port: 8080",
            {"gateways": "1", "gateway_port": "8080"},
            "--gateway-port: `gateway_port` and `registry_port` are the same port",
        ),
        ("model: m\ngateways: two", {}, "f.yaml:2: `gateways` cannot be `two` (a number, or per-node)"),
        (
            "model: m\ngateways: per_node\ngateway_keys: k",
            {},
            "f.yaml:2: `gateways` cannot be `per_node` (did you mean `per-node`?)",
        ),
        (
            "model: m\ngateways: true",
            {},
            "f.yaml:2: `gateways` should be a whole number or text, not `true` (a number, or per-node)",
        ),
        (
            "model: m\ngateway_keys: k",
            {},
            "f.yaml:2: `gateway_keys` is given, but no gateway is asked for (set `gateways: 1`, or `gateways: per-node`)",
        ),
        ("model: m", {"queue": "caf\udce9"}, "--queue: `queue` is not UTF-8 text"),
        (
            "model: m",
            {"extra_vllm_args": ("a", "\udcff")},
            "--extra-vllm-args: `extra_vllm_args` is not UTF-8 text",
        ),
        ("model: m", {"env": {"A": "\udcff"}}, "--env: `env` is not UTF-8 text"),
        (
            "model: m",
            {"log_dir": "~nobody-here/x"},
            "--log-dir: `~nobody-here/x`: there is no such home directory",
        ),
        ("model: m", {"platform": "auora"}, "--platform: unknown platform `auora` (did you mean `aurora`?)"),
    ],
)
def test_meaning_that_types_cannot_check(here: Path, text: str, flags: dict[str, Any], problem: str) -> None:
    assert problems(text, **flags) == [problem]


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ("gateways: 2", None, 2),
        ("gateways: per-node", None, "per-node"),
        ("gateways: per-node", "0", 0),
        ("gateways: 2", "per-node", "per-node"),
        ("account: a", None, None),
    ],
)
def test_how_many_gateways(here: Path, text: str, given: str | None, found: object) -> None:
    assert resolved(f"model: m\n{text}", gateways=given).deployment.gateways == found


def test_what_an_environment_says_of_all_gateways_asks_for_none(here: Path) -> None:
    environ = {"AEGIS_GATEWAY_KEYS": "/keys", "AEGIS_GATEWAY_PORT": "9000"}
    without = resolved("model: m", environ=environ)
    assert (without.deployment.gateway_keys, without.deployment.gateway_port) == (None, None)
    assert without.origins["gateway_keys"] == "default"
    found = resolved("model: m\ngateways: 1", environ=environ).deployment
    assert (found.gateway_keys, found.gateway_port) == ("/keys", 9000)


def test_one_model_of_a_file_may_be_replaced(here: Path) -> None:
    assert resolved("models: [{model: a}]", model="b").deployment.models[0].model == "b"


def test_no_file_is_needed() -> None:
    found = resolve(None, {"model": "m", "engine": "sim"}, {}, SITE)
    assert found.origins["models[0].model"] == "--model"
    with pytest.raises(DeploymentError, match="--model: no model is given"):
        resolve(None, {}, {}, SITE)


def test_a_missing_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        resolve(Path("nowhere.yaml"), {}, {}, SITE)


def test_a_token_is_shown_to_nobody(here: Path) -> None:
    found = resolved("model: m\nhf_token: hf_file\n")
    assert found.hf_token
    assert found.hf_token.reveal() == "hf_file"
    assert "hf_file" not in repr(found)
    assert "f.yaml:2: a token in a file" in found.warnings[0]
    found = resolved("model: m\nhf_token: hf_file\n", environ={"HF_TOKEN": "hf_environment"})
    assert found.hf_token
    assert found.hf_token.reveal() == "hf_environment"


def test_walltimes_have_one_form(here: Path) -> None:
    assert resolved("model: m\nwalltime: 1-2:00:00\n").deployment.walltime == "26:00:00"
    assert resolved("model: m\nwalltime: 12:00:00\n").deployment.walltime == "12:00:00"


@pytest.mark.parametrize(
    ("kept", "other"), [("image", "venv"), ("image", "conda_env"), ("venv", "conda_env")]
)
def test_an_engine_is_in_one_place(kept: str, other: str) -> None:
    with pytest.raises(DeploymentError) as caught:
        resolve(None, {"model": "m", kept: "/a", other: "/b"}, {}, SITE)
    (problem,) = caught.value.problems
    assert problem.message == f"`{other}` and `{kept}` both say where the engine is"
