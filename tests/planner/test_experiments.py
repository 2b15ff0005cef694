"""Files of experiments: the guide's examples, newer flat ones, and files with mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from aegis.errors import ConfigError, DeploymentError
from aegis.planner.defaults import fill
from aegis.planner.estimator import GUIDE
from aegis.planner.experiments import read_questions
from aegis.planner.plan import run

if TYPE_CHECKING:
    from aegis.planner.task import Experiment

EXAMPLES = Path(__file__).parents[1] / "fixtures" / "planner" / "experiments"
AGG = {
    "serving_mode": "agg",
    "model_name": "QWEN3_32B",
    "total_gpus": 8,
    "system_name": "h200_sxm",
}
DISAGG = {**AGG, "serving_mode": "disagg"}


def written(tmp_path: Path, **experiments: Any) -> Path:
    file = tmp_path / "exp.yaml"
    file.write_text(yaml.safe_dump(experiments, sort_keys=False))
    return file


def experiment(tmp_path: Path, values: dict[str, Any]) -> Experiment:
    return fill(read_questions(written(tmp_path, exp=values)))[0]


def problems(file: Path) -> list[str]:
    with pytest.raises(DeploymentError) as caught:
        fill(read_questions(file))
    return [str(each).partition(file.name)[2] for each in caught.value.problems]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_is_read_and_answered(file: Path) -> None:
    found = run(fill(read_questions(file)))
    assert [each.name for each in found.answers] == [each.name for each in found.experiments]
    assert all(each.best or each.why_none for each in found.answers)
    assert found.best is not None


def test_the_guide_s_full_experiment_means_what_it_says() -> None:
    by_name = {each.name: each for each in fill(read_questions(EXAMPLES / "example.yaml"))}
    assert list(by_name) == [
        "exp_agg_full",
        "exp_agg_simplified",
        "exp_disagg_full",
        "exp_disagg_simplified",
    ]
    full = by_name["exp_disagg_full"]
    prefill, decode = full.searches[0]
    assert (full.mode, full.total_gpus, full.targets.tpot) == ("disagg", 32, 40.0)
    assert prefill.quantization.gemm == "fp8_block"
    assert prefill.quantization.kv_cache == "bfloat16"  # float16 in the file
    assert {split.gpus for split in prefill.splits} == {4, 8}
    assert {split.dp for split in prefill.splits} == {1}
    assert {split.dp for split in decode.splits} == {1, 4, 8}
    assert full.replica.gpus == (*range(8, 129, 8),)
    assert (full.replica.max_gpus, full.replica.max_prefill_workers) == (128, 32)
    assert (full.tuning.prefill_latency, full.tuning.decode_latency) == (1.1, 1.08)
    assert (full.mtp.drafted, full.mtp.accepted) == (1, 0.85)
    assert any("0.20.0" in note for note in full.notes)
    assert by_name["exp_agg_simplified"].searches[0][0].quantization.moe == "w4afp8"
    wide = by_name["exp_disagg_simplified"]
    assert wide.searches[0][0].system == "gb200"
    assert (wide.wide_ep, wide.replica.max_gpus, max(wide.replica.gpus)) == (True, 512, 512)
    assert wide.mtp.accepted == pytest.approx(0.85 + 0.85 * 0.3)


def test_flat_files_mean_the_same_as_sections(tmp_path: Path) -> None:
    sections = {
        **DISAGG,
        "config": {
            "nextn": 1,
            "prefill_worker_config": {"gemm_quant_mode": "fp8", "tp_list": [2], "num_gpu_per_worker": [2]},
            "decode_worker_config": {"kvcache_quant_mode": "fp8", "tp_list": [4]},
            "replica_config": {"max_prefill_worker": 3},
            "advanced_tuning_config": {"decode_max_batch_size": 64},
        },
    }
    flat = {
        "serving_mode": "disagg",
        "total_gpus": 8,
        "prefill_model_path": "QWEN3_32B",
        "decode_model_path": "QWEN3_32B",
        "prefill_system_name": "h200_sxm",
        "decode_system_name": "h200_sxm",
        "nextn": 1,
        "nextn_accepted": 0.85,
        "prefill_gemm_quant_mode": "fp8",
        "prefill_tp_candidates": [2],
        "prefill_num_gpu_candidates": [2],
        "decode_kvcache_quant_mode": "fp8",
        "decode_tp_candidates": [4],
        "max_prefill_workers": 3,
        "decode_max_batch_size": 64,
    }
    one, other = experiment(tmp_path, sections), experiment(tmp_path, flat)
    assert one.searches == other.searches
    assert (one.replica, one.tuning, one.mtp.accepted) == (other.replica, other.tuning, other.mtp.accepted)


def test_profiles_set_number_formats_and_single_keys_win(tmp_path: Path) -> None:
    config = {"worker_config": {"fmha_quant_mode": "float16"}}
    found = experiment(tmp_path, {**AGG, "profiles": ["fp8_default"], "config": config})
    formats = found.searches[0][0].quantization
    assert (formats.gemm, formats.kv_cache, formats.fmha) == ("fp8", "fp8", "bfloat16")


def test_replace_takes_no_lists_from_the_defaults(tmp_path: Path) -> None:
    config = {"worker_config": {"tp_list": [4]}}
    patched = experiment(tmp_path, {**AGG, "mode": "patch", "config": {}})
    replaced = experiment(tmp_path, {**AGG, "mode": "replace", "config": config})
    assert len(patched.searches[0][0].splits) == 4
    assert [split.tp for split in replaced.searches[0][0].splits] == [4]


def test_experiments_run_in_the_order_of_the_list(tmp_path: Path) -> None:
    file = written(tmp_path, exps=["b", "a"], a=AGG, b=DISAGG, broken={"serving_mode": "neither"})
    assert [each.name for each in read_questions(file)] == ["b", "a"]


def test_the_guide_s_rules_draft_a_token_of_deepseek(tmp_path: Path) -> None:
    file = written(tmp_path, exp={**DISAGG, "model_name": "DEEPSEEK_V3", "total_gpus": 32})
    assert fill(read_questions(file, estimator=GUIDE))[0].mtp.drafted == 1
    assert fill(read_questions(file))[0].mtp.drafted == 0


def test_every_problem_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text("""\
exps: [one, two, three]
one:
  serving_mode: agg
  model_name: QWEN3_32
  total_gpus: many
  system_nam: h200_sxm
  profiles: [fp8_defualt]
two:
  serving_mode: disagg
  model_name: QWEN3_32B
  total_gpus: 8
  system_name: h200_sxm
  isl: 0
  config:
    prefill_worker_config:
      gemm_quant_mode: fp9
      tp_lst: [1]
    worker_config:
      tp_list: [0]
""")
    assert problems(file) == [
        ":1: no experiment `three` in this file",
        ":5: `total_gpus` should be a whole number, not `many`",
        ":6: unknown key `system_nam` (did you mean `system_name`?)",
        ":17: unknown key `tp_lst` (did you mean `tp_list`?)",
        ":19: `tp_list[0]` should be a whole number >= 1, not `0`",
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**AGG, "system_name": None}, ":1: `system_name` is missing (add `system_name`)"),
        ({**AGG, "model_name": "QWEN3_32"}, ":3: `QWEN3_32` is no model that is known"),
        ({**AGG, "isl": 0}, ":6: 0 is too few"),
        ({**AGG, "profiles": ["fp8_defualt"]}, ":6: no profile `fp8_defualt` (did you mean `fp8_default`?)"),
        ({**AGG, "gemm_quant_mode": "fp9"}, ":6: `fp9` is no number format"),
        ({**AGG, "decode_tp_candidates": [1]}, ":6: an experiment that is agg has no decode workers"),
        ({**DISAGG, "agg_tp_candidates": [1]}, ":6: an experiment that is disagg has no agg workers"),
        ({**DISAGG, "decode_system_name": "h200"}, ":6: unknown system `h200`"),
        (
            {**DISAGG, "decode_model_path": "LLAMA3.1_8B"},
            ":6: QWEN3_32B and LLAMA3.1_8B are different models",
        ),
        ({**AGG, "num_gpu_candidates": [3]}, ":6: no split of QWEN3_32B has a size that is allowed"),
    ],
)
def test_a_problem_is_told_with_its_line(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    assert problems(written(tmp_path, exp=values))[0].startswith(said)


def test_mistyped_switches_are_read_as_meant_and_told(tmp_path: Path) -> None:
    found = experiment(tmp_path, {**AGG, "model_name": "DEEPSEEK_V3", "enable_wide_ep": "ture"})
    assert found.wide_ep
    assert any("`enable_wide_ep: ture` is read as true" in note for note in found.notes)


@pytest.mark.parametrize("text", ["", "[]", "exps: []", "a: [unclosed"])
def test_files_that_hold_no_experiments_are_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text(text)
    with pytest.raises(DeploymentError, match=r"exp.yaml:[12]"):
        read_questions(file)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "none.yaml")
