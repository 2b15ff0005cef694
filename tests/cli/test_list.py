"""`aegis list`: the catalog as people and as scripts read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Outcome

    Run = Callable[..., Outcome]

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
MODELS = str(VEC_INF / "models.yaml")
ENTRY = "{model_family: F, model_type: LLM, gpus_per_node: 1, num_nodes: 1, vocab_size: 10}"


@pytest.mark.parametrize("flag", ["--json", "--json-mode"])
def test_names_as_vec_inf_lists_them(aegis: Run, flag: str) -> None:
    outcome = aegis("list", "--config", MODELS, flag)
    assert outcome.code == 0
    assert json.loads(outcome.out) == json.loads((VEC_INF / "list.json").read_text())


@pytest.mark.parametrize("recording", sorted(VEC_INF.glob("list_*.json")), ids=lambda path: path.stem)
def test_a_model_as_vec_inf_shows_it(aegis: Run, recording: Path) -> None:
    name = recording.stem.removeprefix("list_")
    outcome = aegis("list", name, "--config", MODELS, "--json-mode")
    assert (outcome.code, outcome.err) == (0, "")
    expected = json.loads(recording.read_text())
    shown = json.loads(outcome.out)
    assert shown == expected
    assert list(shown) == list(expected)


def test_the_table_goes_type_by_type(aegis: Run) -> None:
    outcome = aegis("list")
    assert (outcome.code, outcome.err) == (0, "")
    head, *rows = [line.split() for line in outcome.out.splitlines()]
    assert head == ["NAME", "FAMILY", "TYPE", "GPUS", "NODES", "VOCABULARY", "CONTEXT"]
    types = ["LLM", "VLM", "Text_Embedding", "Reward_Modeling", "OCR", "Audio"]
    assert list(dict.fromkeys(row[2] for row in rows)) == types
    assert ["Meta-Llama-3.1-70B-Instruct", "Meta-Llama-3.1", "LLM", "4", "1", "128256", "65536"] in rows


@pytest.mark.parametrize("kind", ["OCR", "ocr", "text-embedding", "Reward_Modeling"])
def test_one_type(aegis: Run, kind: str) -> None:
    rows = aegis("list", "--type", kind).out.splitlines()[1:]
    assert rows
    assert {row.split()[2].lower() for row in rows} == {kind.lower().replace("-", "_")}
    names = json.loads(aegis("list", "--type", kind, "--json").out)
    assert sorted(names) == sorted(row.split()[0] for row in rows)


def test_an_unknown_type_is_a_mistake(aegis: Run) -> None:
    outcome = aegis("list", "--type", "LM")
    assert outcome.code == 2
    assert "did you mean" in outcome.err


def test_the_details_of_a_model(aegis: Run) -> None:
    lines = aegis("list", "Meta-Llama-3.1-70B-Instruct").out.splitlines()
    facts = {line.split()[0]: line.split()[-1] for line in lines}
    assert facts["model_family"] == "Meta-Llama-3.1"
    assert facts["--max-model-len"] == "65536"
    assert "qos" not in facts


@pytest.mark.parametrize("name", ["Meta-Llama-3.1-70B-instruct", "$(touch x)", "--", "a\nb"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_unknown_model_is_not_found(aegis: Run, name: str, flags: list[str]) -> None:
    outcome = aegis("list", *flags, "--", name)
    assert (outcome.code, outcome.out) == (4, "")
    assert "the catalog has no model" in outcome.err
    assert "hint: " in outcome.err


def test_a_bad_entry_is_warned_of_and_the_rest_is_listed(
    aegis: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"models:\n  own: {ENTRY}\n  bad: {{gpus_per_node: x}}\n")
    monkeypatch.setenv("VEC_INF_CONFIG", str(file))
    outcome = aegis("list", "--json")
    assert outcome.code == 0
    names = json.loads(outcome.out)
    assert {"own", "Qwen3-8B"} <= set(names)
    assert "bad" not in names
    assert f"warning: {file}:3: `gpus_per_node` should be a whole number, not `x`" in outcome.err
    outcome = aegis("list", "bad")
    assert outcome.code == 2
    assert f"{file}:3" in outcome.err


def test_a_users_own_file_is_found(aegis: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "aegis").mkdir()
    (tmp_path / "aegis" / "models.yaml").write_text(f"models: {{own: {ENTRY}}}\n")
    assert "own" in json.loads(aegis("list", "--json").out)


def test_control_characters_of_a_file_do_not_reach_the_terminal(aegis: Run, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    own = ENTRY.replace("F", '"F\\e[31m"')
    file.write_text(f'models: {{own: {own}, "b\\e[31m": 1}}\n')
    outcome = aegis("list", "--config", str(file))
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert "\x1b" not in aegis("list", "own", "--config", str(file)).out
