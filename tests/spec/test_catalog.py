"""Files of models: vec-inf's format verbatim, one wrong entry spoils no other, and how files lie upon each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError, DeploymentError, NotFoundError
from aegis.spec.catalog.environment import read_environment
from aegis.spec.catalog.files import read_models
from aegis.spec.catalog.lookup import SHIPPED, Catalog, load_catalog
from aegis.spec.document import parse_document

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
LETTERS = st.characters(codec="ascii")
GOOD = "{model_family: F, model_type: LLM, gpus_per_node: 1, num_nodes: 1, vocab_size: 10}"


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def loaded(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> Catalog:
    """Load a file alone."""
    return load_catalog(environ or {}, written(tmp_path, "m.yaml", text), shared=tmp_path / "none")


def upon(text: str, tmp_path: Path, **environ: str) -> Catalog:
    """Load a file upon the shipped one."""
    file = written(tmp_path, "m.yaml", text)
    return load_catalog({"AEGIS_MODEL_CONFIG": str(file), **environ}, shared=tmp_path / "none")


# ------------------------------------------------------------------------------------- vec-inf's files, verbatim


def test_the_catalog_of_vec_inf_is_read_verbatim() -> None:
    catalog = load_catalog({}, VEC_INF / "models.yaml")
    assert catalog.names() == json.loads((VEC_INF / "list.json").read_text())
    assert len(catalog.names()) == 98
    assert not catalog.problems
    assert not catalog.wrong


@pytest.mark.parametrize("recording", sorted(VEC_INF.glob("list_*.json")), ids=lambda path: path.stem)
def test_a_model_is_shown_as_vec_inf_shows_it(recording: Path) -> None:
    entry = load_catalog({}, VEC_INF / "models.yaml").entry(recording.stem.removeprefix("list_"))
    expected = json.loads(recording.read_text())
    shown = entry.as_config()
    assert shown == expected
    assert list(shown) == list(expected)


def test_a_batch_config_is_read_verbatim() -> None:
    catalog = load_catalog({}, VEC_INF / "run" / "batch_config.yaml")
    assert catalog.names() == ["Meta-Llama-3.1-8B-Instruct", "Qwen2.5-7B-Instruct"]
    assert catalog.entry("Qwen2.5-7B-Instruct").sglang_args == {"--tensor-parallel-size": 2}


def test_misspelt_keys_are_told_and_passed_over() -> None:
    warnings = load_catalog({}, VEC_INF / "models.yaml").warnings
    assert len(warnings) == 3
    assert all(
        "unknown key `mem-per-node` is passed over (did you mean `mem_per_node`?)" in w for w in warnings
    )
    assert re.search(r"models\.yaml:\d+: Llama-4-Maverick-17B-128E-Instruct: ", warnings[0])


# ------------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{}", "m.yaml:3: bad has no `model_family` (add `model_family:`)"),
        (GOOD.replace("LLM", "LM"), "m.yaml:3: `model_type` cannot be `LM` (did you mean `VLM`?)"),
        (
            GOOD.replace("gpus_per_node: 1", "gpus_per_node: x"),
            "`gpus_per_node` should be a whole number, not `x`",
        ),
        (GOOD.replace("num_nodes: 1", "num_nodes: 0"), "`num_nodes` should be a whole number >= 1, not `0`"),
        (GOOD.replace("num_nodes: 1, ", ""), "m.yaml:3: bad has no `num_nodes`"),
        (GOOD[:-1] + ", time: 08:00}", "`08:00` is no walltime"),
        (GOOD[:-1] + ", mem_per_node: 64}", "`64` is no amount of memory (write it as 64G)"),
        (GOOD[:-1] + ", vllm_args: [--a]}", "`vllm_args` should be a mapping, not a list"),
        (
            GOOD[:-1] + ", vllm_args: {max-model-len: 8}}",
            "`max-model-len` is no flag of an engine (write `--max-model-len`)",
        ),
        (GOOD[:-1] + ", engine: vlm}", "`engine` cannot be `vlm` (did you mean `vllm`?)"),
        (GOOD[:-1] + ", model_family: G}", "`model_family` is given twice"),
        ("12", "expected a mapping of keys to values, not a number"),
    ],
)
def test_a_bad_entry_is_reported_and_spoils_no_other(tmp_path: Path, entry: str, problem: str) -> None:
    catalog = loaded(f"models:\n  good: {GOOD}\n  bad: {entry}\n  other: {GOOD}\n", tmp_path)
    assert catalog.names() == ["good", "other"]
    assert catalog.entry("good").vocab_size == 10
    told = "\n".join(catalog.doubts())
    assert problem.replace("m.yaml", str(tmp_path / "m.yaml")) in told
    with pytest.raises(DeploymentError):
        catalog.entry("bad")


@pytest.mark.parametrize("name", ["../x", "-x", "a b", "a/b", "$(touch x)", '"a\\nb"', ".x", "caf\u00e9"])
def test_names_are_safe_in_paths_and_command_lines(tmp_path: Path, name: str) -> None:
    catalog = loaded(f"models:\n  good: {GOOD}\n  {name}: {GOOD}\n", tmp_path)
    assert catalog.names() == ["good"]
    assert "is no name for a model" in catalog.doubts()[0]


def test_words_stay_words(tmp_path: Path) -> None:
    text = GOOD[:-1] + ", time: 12:00:00, account: 0123, partition: no, qos: '', env: {A: 1, B: true}}"
    entry = loaded(f"models: {{x1: {text}}}", tmp_path).entry("x1")
    assert (entry.time, entry.account, entry.partition, entry.qos) == ("12:00:00", "0123", "no", None)
    assert entry.env == {"A": "1", "B": "true"}


def test_leniency(tmp_path: Path) -> None:
    text = GOOD.replace(", vocab_size: 10", "").replace("gpus_per_node: 1", "gpus_per_node: 3")
    entry = loaded(f"models: {{x1: {text[:-1]}, time: 1-12:00:00, mem_per_node: 1.5T}}}}", tmp_path).entry(
        "x1"
    )
    assert (entry.vocab_size, entry.gpus_per_node, entry.time, entry.mem_per_node) == (
        None,
        3,
        "1-12:00:00",
        "1.5T",
    )


def test_flags_are_known_by_one_name(tmp_path: Path) -> None:
    text = GOOD[:-1] + ", vllm_args: {-tp: 2, --max_model_len: 8}, sglang_args: {--tp-size: 4}}"
    entry = loaded(f"models: {{x1: {text}}}", tmp_path).entry("x1")
    assert entry.vllm_args == {"--tensor-parallel-size": 2, "--max-model-len": 8}
    assert entry.sglang_args == {"--tensor-parallel-size": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no `models:`"),
        ("models: 1", "no `models:`"),
        ("models: [{model: x}]", "this is a deployment, not a file of models"),
        ("model: x", "this is a deployment"),
        ("models: {a: [}", "not valid YAML"),
    ],
)
def test_a_file_named_outright_has_to_be_one(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DeploymentError, match=re.escape(said)):
        loaded(text, tmp_path)


def test_a_file_named_outright_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog({}, tmp_path / "none.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["models", "x", "model_type", "vllm_args", "env", "time", "num_nodes"])
                | st.text(LETTERS, max_size=5),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_is_read_without_a_crash(value: Any) -> None:
    document = parse_document(json.dumps(value), "f.yaml")
    catalog = Catalog([read_models(document)], read_environment([]), [])
    for name in catalog.names():
        assert catalog.entry(name).as_config()
    assert all(isinstance(doubt, str) for doubt in catalog.doubts())


# ------------------------------------------------------------------------------------------------ several files


def test_a_users_file_merges_deeply(tmp_path: Path) -> None:
    catalog = upon(
        "models:\n"
        "  Meta-Llama-3.1-70B-Instruct:\n"
        "    qos: m2\n"
        "    vllm_args: {--max-num-seqs: 64, --max-model-len: null}\n"
        "    env: {A: 1}\n"
        f"  own: {GOOD}\n",
        tmp_path,
    )
    entry = catalog.entry("Meta-Llama-3.1-70B-Instruct")
    assert (entry.qos, entry.model_family, entry.gpus_per_node) == ("m2", "Meta-Llama-3.1", 4)
    assert entry.vllm_args == {"--tensor-parallel-size": 4, "--max-num-seqs": 64}
    assert entry.sglang_args == {"--tensor-parallel-size": 4, "--context-length": 65536}
    assert entry.env == {"A": "1"}
    assert "own" in catalog.names()
    origin = catalog.layer("Meta-Llama-3.1-70B-Instruct")["vllm_args"].origin
    assert re.fullmatch(rf"{re.escape(str(SHIPPED))}:\d+, {re.escape(str(tmp_path / 'm.yaml'))}:4", origin)


def test_null_takes_away(tmp_path: Path) -> None:
    catalog = upon("models:\n  Qwen3-8B: {hf_model: null, vllm_args: null}\n  Qwen3-14B: null\n", tmp_path)
    assert catalog.entry("Qwen3-8B").hf_model is None
    with pytest.raises(NotFoundError):
        catalog.entry("Qwen3-14B")


def test_later_files_win(tmp_path: Path) -> None:
    names = ["shared", "home", "directory", "old", "new", "ours"]
    files = {
        name: written(tmp_path / name, "models.yaml", "models: {Qwen3-8B: {%s}}\n")
        for name in ("shared", "directory", "old", "new", "ours")
    }
    files["home"] = written(
        tmp_path / "home" / ".config" / "aegis", "models.yaml", "models: {Qwen3-8B: {%s}}\n"
    )
    keys = ["account", "qos", "partition", "nodelist", "exclude", "log_dir"]
    for index, name in enumerate(names):
        told = ", ".join(f"{key}: {name}" for key in keys[index:])
        files[name].write_text(f"models: {{Qwen3-8B: {{{told}}}}}\n")
    environ = {
        "HOME": str(tmp_path / "home"),
        "VEC_INF_CONFIG_DIR": str(tmp_path / "directory"),
        "VEC_INF_CONFIG": str(files["old"]),
        "VEC_INF_MODEL_CONFIG": str(files["new"]),
        "AEGIS_MODEL_CONFIG": str(files["ours"]),
    }
    written(
        tmp_path / "shared", "environment.yaml", f"paths: {{cached_model_config_path: {files['shared']}}}\n"
    )
    entry = load_catalog(environ, shared=tmp_path / "shared").entry("Qwen3-8B")
    assert [getattr(entry, key) for key in keys] == names


@pytest.mark.parametrize("variable", ["VEC_INF_CONFIG", "VEC_INF_MODEL_CONFIG", "AEGIS_MODEL_CONFIG"])
def test_a_file_that_a_variable_names_in_vain_is_a_warning(tmp_path: Path, variable: str) -> None:
    catalog = load_catalog({variable: str(tmp_path / "none.yaml")}, shared=tmp_path)
    assert catalog.warnings == [
        f"{variable}: there is no file {tmp_path / 'none.yaml'}; the catalog is without it"
    ]
    assert "Qwen3-8B" in catalog.names()


def test_a_directory_that_a_variable_names_in_vain_is_a_warning(tmp_path: Path) -> None:
    (warning,) = load_catalog({"VEC_INF_CONFIG_DIR": str(tmp_path)}, shared=tmp_path / "none").warnings
    assert "has neither models.yaml nor environment.yaml" in warning


def test_a_broken_file_of_a_user_leaves_the_others(tmp_path: Path) -> None:
    catalog = upon("models: {a: [}\n", tmp_path)
    assert "Qwen3-8B" in catalog.names()
    assert "not valid YAML" in catalog.doubts()[0]


def test_a_wrong_word_of_a_user_keeps_the_shipped_model_from_being_used_unnoticed(tmp_path: Path) -> None:
    catalog = upon("models: {Qwen3-8B: {gpus_per_node: two}}\n", tmp_path)
    assert "Qwen3-8B" not in catalog.names()
    with pytest.raises(DeploymentError, match=r"m\.yaml:1: `gpus_per_node` should be a whole number"):
        catalog.entry("Qwen3-8B")


def test_an_unknown_model_is_guessed() -> None:
    with pytest.raises(NotFoundError) as error:
        load_catalog({}).entry("Qwen3-8b")
    assert error.value.hint == "did you mean `Qwen3-8B`?"


def test_a_model_is_found_by_its_id_on_the_hub() -> None:
    assert load_catalog({}).entry("Qwen/Qwen3-8B").model_name == "Qwen3-8B"


# ---------------------------------------------------------------------------------------------- environment.yaml


def environment(tmp_path: Path, text: str, models: str = f"models: {{x1: {GOOD}}}") -> Catalog:
    written(tmp_path, "environment.yaml", text)
    written(tmp_path, "models.yaml", models)
    return load_catalog({"VEC_INF_CONFIG_DIR": str(tmp_path)}, shared=tmp_path / "none")


def test_the_environment_of_vec_inf_is_read_verbatim() -> None:
    found = read_environment([VEC_INF / "environment.yaml"])
    assert not found.problems
    assert not found.warnings
    assert found.defaults["cpus_per_task"].value == 16
    assert found.image("sglang").value == "/model-weights/vec-inf-shared/vector-inference-sglang_latest.sif"
    assert found.modules
    assert found.modules.value == ("apptainer",)
    assert {key: each.value for key, each in found.required.items()} == {
        "account": "VEC_INF_ACCOUNT",
        "work_dir": "VEC_INF_WORK_DIR",
    }


def test_defaults_lie_below_every_entry(tmp_path: Path) -> None:
    catalog = environment(
        tmp_path,
        "default_args: {time: 01:00:00, cpus_per_task: '8', qos: ''}\n",
        f"models: {{x1: {GOOD}, x2: {GOOD[:-1]}, time: 02:00:00}}}}",
    )
    assert [catalog.entry(name).time for name in ("x1", "x2")] == ["01:00:00", "02:00:00"]
    assert catalog.entry("x1").cpus_per_task == 8
    assert catalog.layer("x1")["time"].origin == f"{tmp_path / 'environment.yaml'}:1"


def test_a_section_in_part_leaves_the_rest(tmp_path: Path) -> None:
    shared = written(tmp_path / "shared", "environment.yaml", "default_args: {qos: a, account: b}\n").parent
    written(tmp_path / "own", "environment.yaml", "default_args: {qos: c}\npaths:\n")
    entry = load_catalog({"VEC_INF_CONFIG_DIR": str(tmp_path / "own")}, shared=shared).entry("Qwen3-8B")
    assert (entry.qos, entry.account) == ("c", "b")


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("default_arg: {}\n", "unknown key `default_arg` is passed over (did you mean `default_args`?)"),
        ("default_args: {tim: 1}\n", "unknown key `tim` is passed over (did you mean `time`?)"),
        ("default_args: 1\n", "`default_args` should be a mapping"),
        ("default_args: {cpus_per_task: many}\n", "`cpus_per_task` should be a whole number, not `many`"),
        ("limits: {max_num_nodes: x}\n", "`max_num_nodes` should be a whole number, not `x`"),
        ("[]\n", "expected a mapping of sections"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, doubt: str) -> None:
    catalog = environment(tmp_path, text)
    assert any(doubt in each for each in catalog.doubts())
    assert "x1" in catalog.names()


def test_limits_and_types_of_the_site_hold(tmp_path: Path) -> None:
    catalog = environment(
        tmp_path,
        "limits: {max_gpus_per_node: 4}\nmodel_types: [Robot]\n",
        f"models: {{x1: {GOOD.replace('LLM', 'Robot')}, x2: {GOOD.replace('gpus_per_node: 1', 'gpus_per_node: 8')}}}",
    )
    assert catalog.entry("x1").model_type == "Robot"
    with pytest.raises(DeploymentError, match="`gpus_per_node` is 8; the site allows 4"):
        catalog.entry("x2")


def test_what_the_site_s_limits_forbid_of_ours_is_one_line(tmp_path: Path) -> None:
    catalog = environment(
        tmp_path,
        "limits: {max_gpus_per_node: 1}\n",
        f"models: {{x2: {GOOD.replace('gpus_per_node: 1', 'gpus_per_node: 8')}}}",
    )
    own, ours = catalog.doubts()
    assert "`gpus_per_node` is 8; the site allows 1" in own
    assert re.fullmatch(
        r"\d\d+ models that come with aegis need more than the site allows: .*environment.yaml:1", ours
    )
