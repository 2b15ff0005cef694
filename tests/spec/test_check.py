from __future__ import annotations

from typing import Any

import pytest

from aegis.spec.check import check_mapping, choices, field_types
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.document import parse_document
from aegis.spec.platform import Platform

MODEL = field_types(ModelEntry)
TOP = field_types(Deployment)


def check(text: str, types: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    values, problems = check_mapping(parse_document(text, "f.yaml"), (), types)
    return values, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    "text", ["0123", "1e5", "0o17", "1.10", "true", "no", "01:00:00", "-1", ".inf", "0x1F"]
)
def test_a_text_keeps_what_the_file_says(text: str) -> None:
    assert check(f"account: {text}", TOP) == ({"account": text}, [])
    assert check(f"env: {{A: {text}}}", MODEL) == ({"env": {"A": text}}, [])
    assert check(f"extra_vllm_args: [--a, {text}]", MODEL) == ({"extra_vllm_args": ("--a", text)}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: ''", "`model` is empty"),
        ("model: [x]", "`model` should be text, not a list"),
        ("model:", "`model` should be text, not nothing"),
        ("model_source: {a: b}", "`model_source` should be text, not a mapping"),
        ("instances: 0", "`instances` should be a whole number >= 1, not `0`"),
        ("instances: '2'", "`instances` should be a whole number, not `2` (remove the quotes)"),
        ("instances: 1.0", "`instances` should be a whole number, not `1.0`"),
        ("instances: true", "`instances` should be a whole number, not `true`"),
        (
            "download_weights: 'true'",
            "`download_weights` should be true or false, not `true` (remove the quotes)",
        ),
        ("engine: vlm", "`engine` cannot be `vlm` (did you mean `vllm`?)"),
        ("engine: tgi", "`engine` cannot be `tgi` (one of sglang, sim, vllm)"),
        ("engine: [vllm]", "`engine` should be text, not a list (did you mean `vllm`?)"),
        (
            "extra_vllm_args: --a 1",
            "`extra_vllm_args` should be a list, not `--a 1` (write one list item per argument)",
        ),
        ("instances: " + "x" * 99, f"`instances` should be a whole number, not `{'x' * 60}…`"),
        ('instances: "a\\nb\\e"', "`instances` should be a whole number, not `a\\nb\\x1b`"),
        ("bogus: 1", "unknown key `bogus`"),
        ("Model: x", "unknown key `Model` (did you mean `model`?)"),
    ],
)
def test_a_problem_is_one_clear_line(text: str, problem: str) -> None:
    assert check(text, MODEL) == ({}, [f"f.yaml:1: {problem}"])


def test_every_wrong_item_of_a_list_or_mapping_is_found_on_its_line() -> None:
    text = "extra_vllm_args:\n  - ok\n  - [a]\n  - null\nenv:\n  A: x\n  B: [1]\n  C:\n"
    assert check(text, MODEL) == (
        {},
        [
            "f.yaml:3: `extra_vllm_args[1]` should be text, not a list",
            "f.yaml:4: `extra_vllm_args[2]` should be text, not nothing",
            "f.yaml:7: `env.B` should be text, not a list",
            "f.yaml:8: `env.C` should be text, not nothing",
        ],
    )


def test_the_good_values_beside_a_problem_are_returned() -> None:
    values, problems = check("model: x\ninstances: 0\nengine: sim", MODEL)
    assert values == {"model": "x", "engine": "sim"}
    assert len(problems) == 1


def test_lists_in_lists_are_checked_too() -> None:
    document = parse_document("engine_args:\n  vllm: [--a, [b]]\n", "f.yaml")
    _, problems = check_mapping(document, (), field_types(Platform))
    assert [str(problem) for problem in problems] == [
        "f.yaml:2: `engine_args.vllm[1]` should be text, not a list"
    ]


def test_choices() -> None:
    assert choices(TOP["scheduler"]) == ("local", "pbs", "slurm")
    assert choices(TOP["account"]) == ()
