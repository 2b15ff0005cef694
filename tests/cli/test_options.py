"""The flags of a deployment: one for each key, and arguments for the engine without any quoting."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.cli.config import show
from aegis.cli.options import SPREAD, spread
from aegis.spec.resolve import GLOBAL_TYPES, MODEL_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

# For every key: what the file says, what the variable says (None: it cannot be given so), what the flag says.
TOP: dict[str, tuple[Any, str | None, list[str], Any]] = {
    "name": ("file", "variable", ["flag"], "flag"),
    "platform": ("polaris", "frontier", ["aurora"], "aurora"),
    "scheduler": ("slurm", "local", ["pbs"], "pbs"),
    "walltime": ("01:00:00", "02:00:00", ["03:00:00"], "03:00:00"),
    "queue": ("file", "variable", ["flag"], "flag"),
    "account": ("file", "variable", ["0123"], "0123"),
    "qos": ("file", "variable", ["flag"], "flag"),
    "nodes": (1, "2", ["3"], 3),
    "gpus_per_node": (1, "2", ["3"], 3),
    "resource_type": ("file", "variable", ["flag"], "flag"),
    "cpus_per_node": (1, "2", ["3"], 3),
    "mem_per_node": ("1G", "2G", ["3G"], "3G"),
    "constraint": ("file", "variable", ["flag"], "flag"),
    "nodelist": ("file", "variable", ["flag"], "flag"),
    "exclude": ("file", "variable", ["flag"], "flag"),
    "directives": (["--file"], None, ["--flag=1"], ["--flag=1"]),
    "filesystems": ("file", "variable", ["flag"], "flag"),
    "port_start": (9000, "9100", ["9200"], 9200),
    "registry_port": (9001, "9101", ["9201"], 9201),
    "hf_home": ("/file", "/variable", ["/flag"], "/flag"),
    "conda_env": ("/file", "/variable", ["/flag"], "/flag"),
    "venv": ("/file", "/variable", ["/flag"], "/flag"),
    "modules": (["file"], None, ["flag"], ["flag"]),
    "image": ("/file", "/variable", ["/flag"], "/flag"),
    "bind": (["/file"], None, ["/flag"], ["/flag"]),
    "work_dir": ("/file", "/variable", ["/flag"], "/flag"),
    "aegis_env": ("/file", "/variable", ["/flag"], "/flag"),
    "startup_timeout": (1, "2", ["3"], 3),
    "max_restarts": (1, "2", ["0"], 0),
    "endpoints_file": ("file", "variable", ["flag"], "flag"),
    "log_dir": ("/file", "/variable", ["/flag"], "/flag"),
    "skip_staging": (False, "false", [], True),
    "stager": ("mpi", "none", ["tcp"], "tcp"),
    "map": ("a --output b", "c --output d", ["e --output f"], "e --output f"),
    "prebuilt": ("/file", "/variable", ["/flag"], "/flag"),
    "gateways": (1, "2", ["per-node"], "per-node"),
    "gateway_port": (9002, "9102", ["9202"], 9202),
    "gateway_keys": ("/file", "/variable", ["/flag"], "/flag"),
    "service": ("file", "variable", ["flag"], "flag"),
    "keep_alive": (False, "false", [], True),
    "until": ("1-00:00:00", "2-00:00:00", ["2027-01-31T08:00"], "2027-01-31T08:00"),
    "overlap": ("00:01:00", "00:02:00", ["00:03:00"], "00:03:00"),
    "spare_nodes": (1, "2", ["3"], 3),
    "wait": (False, "false", [], True),
}
MODEL: dict[str, tuple[Any, str | None, list[str], Any]] = {
    "model": ("org/file", "org/variable", ["org/flag"], "org/flag"),
    "served_model_name": ("file", "variable", ["flag"], "flag"),
    "engine": ("vllm", "sglang", ["sim"], "sim"),
    "instances": (1, "2", ["3"], 3),
    "tensor_parallel_size": (1, "2", ["3"], 3),
    "pipeline_parallel_size": (1, "2", ["3"], 3),
    "data_parallel_size": (1, "2", ["3"], 3),
    "distributed_executor": ("mp", "mp", ["ray"], "ray"),
    "model_source": ("/file", "/variable", ["/flag"], "/flag"),
    "download_weights": (False, "false", [], True),
    "extra_vllm_args": (["--file"], None, ["--flag", "1"], ["--flag", "1"]),
    "extra_sglang_args": (["--file"], None, ["--flag", "1"], ["--flag", "1"]),
    "extra_sim_args": (["--file"], None, ["--flag", "1"], ["--flag", "1"]),
    "env": ({"A": "file"}, None, ["A=flag"], {"A": "flag"}),
}
CASES = {**TOP, **MODEL}
NEEDS: dict[str, dict[str, Any]] = {  # what else has to be said for a key to mean anything
    "gateway_port": {"gateways": 1},
    "gateway_keys": {"gateways": 1},
    "keep_alive": {"walltime": "01:00:00"},
    "until": {"keep_alive": True, "walltime": "01:00:00"},
    "overlap": {"keep_alive": True, "walltime": "01:00:00"},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_key_has_a_case() -> None:
    assert set(TOP) == set(GLOBAL_TYPES)
    assert set(MODEL) == set(MODEL_TYPES)


def shown(outcome: Outcome, key: str) -> tuple[Any, str]:
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    if key in TOP:
        return answer["deployment"][key], answer["origins"][key]
    return answer["deployment"]["models"][0][key], answer["origins"][f"models[0].{key}"]


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("key", CASES)
def test_flag_beats_variable_beats_file(
    aegis: Callable[..., Outcome], key: str, in_list: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_file, in_variable, words, by_flag = CASES[key]
    entry = {"model": "m", "engine": key.split("_")[1] if key.startswith("extra_") else "vllm"}
    top: dict[str, Any] = {"models": [entry]} if in_list else entry
    (entry if key in MODEL else top)[key] = in_file
    top |= NEEDS.get(key, {})
    lines = [f"{name}: {json.dumps(value)}" for name, value in top.items()]
    (tmp_path / "f.yaml").write_text("\n".join(lines))
    line = next(
        n
        for n, text in enumerate(lines, 1)
        if text.startswith("models:" if in_list and key in MODEL else key)
    )
    command = ["config", "show", "--config", "f.yaml", "--json", "--origin"]

    assert shown(aegis(*command), key) == (in_file, f"f.yaml:{line}")
    if in_variable is not None:
        monkeypatch.setenv(f"AEGIS_{key.upper()}", in_variable)
        value, origin = shown(aegis(*command), key)
        assert (str(value).lower(), origin) == (in_variable.lower(), f"AEGIS_{key.upper()}")
        assert shown(aegis(*command, "--no-environment"), key) == (in_file, f"f.yaml:{line}")
    flag = f"--{key.replace('_', '-')}"
    value, origin = shown(aegis(*command, flag, *words), key)
    assert (value, origin.rpartition(", ")[2]) == (by_flag, flag)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--gateway"], 1),
        (["--gateway", "--gateways", "2"], 2),
        (["--gateways", "2", "--gateway"], 1),
        (["--gateways", "0"], 0),
        ([], "per-node"),
    ],
)
def test_one_gateway_has_a_flag_of_its_own(
    aegis: Callable[..., Outcome], tmp_path: Path, words: list[str], count: object
) -> None:
    (tmp_path / "f.yaml").write_text("model: m\ngateways: per-node\n")
    said = aegis("config", "show", "--config", "f.yaml", "--json", *words)
    assert json.loads(said.out)["gateways"] == count


@pytest.mark.parametrize("key", [key for key, (value, *_) in CASES.items() if value is False])
def test_a_switch_is_turned_off_by_its_negative(
    aegis: Callable[..., Outcome], key: str, tmp_path: Path
) -> None:
    (tmp_path / "f.yaml").write_text(f"model: m\n{key}: true\n")
    flag = f"--no-{key.replace('_', '-')}"
    value, _ = shown(aegis("config", "show", "--config", "f.yaml", "--json", "--origin", flag), key)
    assert value is False


OWN = {"--queue", "--wait", "--no-wait", "-A", "--model"}
FLAGS = {f"--{name.replace('_', '-')}" for name in SPREAD}


def taken(*line: str, flag: str = "--extra-vllm-args") -> list[str]:
    return [arg.removeprefix(f"{flag}=") for arg in spread(list(line), OWN) if arg.startswith(f"{flag}=")]


@pytest.mark.parametrize(
    ("line", "args", "rest"),
    [
        ("X --max-model-len 32768 --queue debug", ["--max-model-len", "32768"], ["--queue", "debug"]),
        ("--queue debug X --a 1 --no-wait", ["--a", "1"], ["--queue", "debug", "--no-wait"]),
        ("X --a 1 -A proj", ["--a", "1"], ["-A", "proj"]),
        ("X --a 1 --queue=debug", ["--a", "1"], ["--queue=debug"]),
        ("X --a --queued", ["--a", "--queued"], []),
        ("X '--a 1 --b 2' --wait", ["--a", "1", "--b", "2"], ["--wait"]),
        ("X=--a X=1", ["--a", "1"], []),
        ("X=--a 1 --wait", ["--a", "1"], ["--wait"]),
        ("X='--a 1'", ["--a", "1"], []),
        ("""X '--a '"'"'x y'"'"' --b 2'""", ["--a", "x y", "--b", "2"], []),
        ("""X --json '{"a": 1, "b": [2, 3]}' --c""", ["--json", '{"a": 1, "b": [2, 3]}', "--c"], []),
        ("""X '--json={"a": -1, "b": "c d"}'""", ['--json={"a": -1, "b": "c d"}'], []),
        ("X '--list=[1, 2]'", ["--list=[1, 2]"], []),
        ("X '--name=two words'", ["--name=two words"], []),
        ("X '--a=1 --b=2'", ["--a=1", "--b=2"], []),
        ("X 'two words'", ["two words"], []),
        ("X '--a b' c", ["--a b", "c"], []),  # a shell has split it already
        ("X --a X --b", ["--a", "--b"], []),
        ("X --a -- --wait", ["--a"], ["--", "--wait"]),
        ("X=--queue X=debug", ["--queue", "debug"], []),  # how to give the engine a flag that is ours too
        ("X", [], []),
    ],
)
def test_everything_up_to_the_next_flag_of_ours_goes_to_the_engine(
    line: str, args: list[str], rest: list[str]
) -> None:
    words = [word.replace("X", "--extra-vllm-args") for word in shlex.split(line)]
    result = spread(words, OWN)
    assert result == [
        *([] if line.startswith("X") else rest[:2]),
        *(f"--extra-vllm-args={arg}" for arg in args),
        *(rest if line.startswith("X") else rest[2:]),
    ]


def test_each_engine_has_its_own() -> None:
    line = ["--extra-vllm-args", "--a", "--extra-sim-args", "--b", "1", "--extra-sglang-args", "--c"]
    assert taken(*line) == ["--a"]
    assert taken(*line, flag="--extra-sim-args") == ["--b", "1"]
    assert taken(*line, flag="--extra-sglang-args") == ["--c"]


def test_an_open_quote_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError, match="No closing quotation"):
        spread(["--extra-vllm-args", "--name it's"], OWN)


argument = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
) | st.sampled_from(
    [
        "--max-model-len",
        "-tp",
        "-",
        "---",
        "{}",
        '{"a": 1, "b": "c d"}',
        "--x={ }",
        "a,b",
        "--no-x",
        " ",
        "-A2",
    ]
)


@given(st.lists(argument, min_size=2, max_size=6), st.booleans())
def test_any_arguments_that_are_not_ours_survive(args: list[str], equals: bool) -> None:
    theirs = [arg for arg in args if arg.partition("=")[0] not in OWN | FLAGS and arg != "--"]
    if len(theirs) < 2:
        return
    first = [f"--extra-vllm-args={theirs[0]}"] if equals else ["--extra-vllm-args", theirs[0]]
    assert taken("--wait", *first, *theirs[1:], "--queue", "debug") == theirs


def test_through_the_command_line(aegis: Callable[..., Outcome]) -> None:
    override = '{"rope_scaling": {"type": "yarn", "factor": 2.0}, "x": "a b"}'
    line = [
        "--model",
        "m",
        "--extra-vllm-args",
        "--hf-overrides",
        override,
        "--enforce-eager",
        "--queue",
        "q",
    ]
    answer = json.loads(aegis("config", "show", "--json", *line).out)
    assert answer["models"][0]["extra_vllm_args"] == ["--hf-overrides", override, "--enforce-eager"]
    assert answer["queue"] == "q"


def test_every_key_is_a_flag_with_a_sentence() -> None:
    options = {param.name: param for param in show.params if isinstance(param, click.Option)}
    for key in CASES:
        assert (options[key].help or "").endswith("."), key


def test_short_names(aegis: Callable[..., Outcome]) -> None:
    line = ["--model", "m", "-A", "proj", "--time", "02:00:00", "--partition", "gpu"]
    answer = json.loads(aegis("config", "show", "--json", *line).out)
    assert (answer["account"], answer["walltime"], answer["queue"]) == ("proj", "02:00:00", "gpu")


@pytest.mark.parametrize("pair", ["A", "=x", ""])
def test_env_needs_a_name_and_a_value(aegis: Callable[..., Outcome], pair: str) -> None:
    outcome = aegis("config", "show", "--model", "m", "--env", pair)
    assert outcome.code == 2
    assert "is not NAME=VALUE" in outcome.err


def test_env_keeps_equals_signs(aegis: Callable[..., Outcome]) -> None:
    answer = json.loads(
        aegis("config", "show", "--json", "--model", "m", "--env", "A=b=c", "--env", "B=").out
    )
    assert answer["models"][0]["env"] == {"A": "b=c", "B": ""}


def test_a_token_on_the_command_line_is_warned_of_and_not_shown(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("config", "show", "--model", "m", "--hf-token", "hf_secret", "--origin")
    assert outcome.code == 0
    assert "HF_TOKEN" in outcome.err
    assert "hf_secret" not in outcome.out + outcome.err
