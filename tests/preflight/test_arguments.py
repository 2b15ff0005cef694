"""What would fail after the queue, or show a secret, is refused before it."""

from __future__ import annotations

import pytest

from aegis.preflight import check_entry
from aegis.spec.deployment import EngineName, ModelEntry

ORIGINS = {
    "extra_vllm_args": "f.yaml:3",
    "extra_sglang_args": "f.yaml:4",
    "extra_sim_args": "--extra-sim-args",
    "env": "f.yaml:5",
}


def problems(entry: ModelEntry) -> list[str]:
    return [str(problem) for problem in check_entry(entry, ORIGINS)]


def entry(*args: str, engine: EngineName = "vllm") -> ModelEntry:
    by_engine = {"vllm": "extra_vllm_args", "sglang": "extra_sglang_args", "sim": "extra_sim_args"}
    return ModelEntry(model="m", engine=engine, **{by_engine[engine]: args})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "flag", "key"),
    [
        (("--port", "1"), "--port", "port_start"),
        (("--port=1",), "--port", "port_start"),
        (("--served-model-name", "x"), "--served-model-name", "served_model_name"),
        (("--served_model_name", "x"), "--served-model-name", "served_model_name"),
        (("--tensor_parallel_size=2",), "--tensor-parallel-size", "tensor_parallel_size"),
        (("-tp", "2"), "-tp", "tensor_parallel_size"),
        (("-pp=2",), "-pp", "pipeline_parallel_size"),
        (("--data-parallel-size", "2"), "--data-parallel-size", "data_parallel_size"),
    ],
)
def test_flags_that_keys_set_are_refused(args: tuple[str, ...], flag: str, key: str) -> None:
    assert problems(entry(*args)) == [f"f.yaml:3: `{flag}` of m is set by aegis (use the key `{key}`)"]


def test_each_engine_has_its_own_reserved_flags() -> None:
    assert problems(entry("--tp", "2", engine="sglang")) == [
        "f.yaml:4: `--tp` of m is set by aegis (use the key `tensor_parallel_size`)"
    ]
    assert (
        "--extra-sim-args: `--port` of m is set by aegis" in problems(entry("--port", "2", engine="sim"))[0]
    )


@pytest.mark.parametrize(
    "arg", ["--portable", "--max-model-len", "port", "--host-memory=1", "--api-keys", "-t"]
)
def test_other_arguments_pass(arg: str) -> None:
    assert problems(entry(arg)) == []


@pytest.mark.parametrize(
    ("arg", "variable"),
    [("--api-key", "VLLM_API_KEY"), ("--api_key=s", "VLLM_API_KEY"), ("--hf-token=s", "HF_TOKEN")],
)
def test_secrets_in_arguments_are_refused_and_not_repeated(arg: str, variable: str) -> None:
    (problem,) = problems(entry(arg, "sk-123"))
    assert problem.endswith(
        f"would show a secret to every user of the node (export {variable}, it is passed on)"
    )
    assert "sk-123" not in problem
    assert "=s" not in problem


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "my_password", "APIKEY", "CLIENT_SECRET"])
def test_secrets_in_the_environment_of_the_file_are_refused(name: str) -> None:
    (problem,) = problems(ModelEntry(model="m", env={name: "hush"}))
    assert problem.startswith(f"f.yaml:5: `env: {name}` would write a secret into the job script")
    assert "hush" not in problem


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "PASSWORD_FILE", "KEY"])
def test_other_variables_pass(name: str) -> None:
    assert problems(ModelEntry(model="m", env={name: "x"})) == []


def test_arguments_that_no_shell_has_split_are_found() -> None:
    assert problems(entry("--max-model-len 32768", "--a=b c", "two words", '--json={"a": 1}')) == [
        "f.yaml:3: `--max-model-len 32768` is a single argument (write the value as a list item of its own)"
    ]


def test_a_model_that_looks_like_a_flag_is_refused() -> None:
    [problem] = check_entry(ModelEntry(model="--version", served_model_name="-x"), {"model": "a.yaml:1"})
    assert str(problem).startswith("a.yaml:1: `--version` looks like a flag")
