"""A whole plan, from a question to ranked configurations: against recordings, and where there is no answer."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import aegis
from aegis.errors import ConfigError, DeploymentError
from aegis.planner.estimator import GUIDE
from aegis.planner.plan import Plan, plan
from aegis.planner.problem import Mtp

FIXTURES = Path(__file__).parents[1] / "fixtures" / "aiconfigurator"
QWEN = "Qwen/Qwen3-32B-FP8"


@cache
def recorded() -> dict[str, dict[str, Any]]:
    with gzip.open(FIXTURES / "grid-0.12.0.json.gz") as stream:
        return {each["id"]: each for each in json.load(stream)["cases"]}


def asked(case: dict[str, Any]) -> Plan:
    args = dict(case["args"])
    args["strict"] = args.pop("strict_sla", False)
    return plan(
        args.pop("model_path"), args.pop("total_gpus"), args.pop("system"), estimator="aic-0.12", **args
    )


@pytest.fixture(scope="module")
def example() -> Plan:
    """The guide's example, with the interpolation of its time."""
    return plan("QWEN3_32B", 32, "h200_sxm", isl=3000, osl=512, ttft=1000, tpot=10, estimator="guide")


def test_the_guide_s_example_chooses_as_the_guide_does(example: Plan) -> None:
    assert example.chosen is not None
    assert example.best is not None
    assert example.answers[example.chosen].name == "disagg"
    assert (example.best.ttft, example.best.tpot) == (202.653, 8.07)
    assert f"{example.throughput(example.chosen):.2f}" == "913.82"
    assert f"{example.ratio:.2f}" == "1.43"
    assert example.meets_targets


def test_the_faster_interpolation_is_within_three_thousandths(example: Plan) -> None:
    linear = replace(GUIDE, exact=False)
    fast = plan("QWEN3_32B", 32, "h200_sxm", isl=3000, osl=512, ttft=1000, tpot=10, estimator=linear)
    for exact, near in zip(example.answers, fast.answers, strict=True):
        for one, other in zip(exact.best, near.best, strict=True):
            assert other.cluster_throughput(32) == pytest.approx(one.cluster_throughput(32), rel=3e-3)


@pytest.mark.parametrize(
    "name",
    [
        *("A_q32fp8_h100_sxm_trtllm", "A_l8_a100_sxm_vllm", "A_l8_l40s_sglang", "A_l70_gb200_vllm", "B_10"),
        *("B_12", "D_prefix1000", "D_reqlat12000", "D_fgmf0.5", "D_rtx6000_q32"),
    ],
)
def test_plans_are_those_that_were_recorded(name: str) -> None:
    case = recorded()[name]
    found = asked(case)
    rows = found.to_dict()
    assert found.chosen is not None
    assert found.answers[found.chosen].name == case["chosen"]
    for mode, ranked in case["best"].items():
        split = "parallel" if mode == "agg" else "(d)parallel"
        assert [row[split] for row in rows[mode]] == [row[split] for row in ranked]
        have, wanted = ([row["tokens/s/gpu_cluster"] for row in table] for table in (rows[mode], ranked))
        assert have[:1] == pytest.approx(wanted[:1], rel=1e-3)
        assert have == pytest.approx(wanted, rel=3e-3)


def test_where_the_recorded_tool_found_nothing_the_reason_is_told() -> None:
    answers = asked(recorded()["B_14"]).answers
    assert all(not each.best for each in answers)
    assert all("first token within 100 ms: the nearest has TTFT 12" in str(each.why_none) for each in answers)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "qwen3_32"}, "model: `qwen3_32` is no model that is known (did you mean `QWEN3_32B`?"),
        ({"system": "h200_smx"}, "system: unknown system `h200_smx` (did you mean `h200_sxm`?)"),
        ({"decode_system": "h20_sxm"}, "decode.system: unknown system `h20_sxm`"),
        ({"total_gpus": 0}, "total_gpus: 0 is too few"),
        ({"total_gpus": -5}, "total_gpus: -5 is too few"),
        ({"isl": 0}, "isl: 0 is too few"),
        ({"osl": 1}, "osl: 1 output tokens have no time per output token"),
        ({"prefix": 4000}, "prefix: 4000 cached tokens of 4000"),
        ({"ttft": 0}, "ttft: 0 ms is no target"),
        ({"tpot": float("nan")}, "tpot: nan ms is no target"),
        ({"request_latency": -1}, "request_latency: -1 ms is no target"),
        ({"isl": 100_000}, "isl: 100000 + 1000 tokens are beyond the 40960"),
        (
            {"system": "b60", "backend": "trtllm"},
            "backend: b60 has no tables of trtllm (it has tables of: vllm)",
        ),
        ({"system": "mi250x", "backend": "trtllm"}, "backend: mi250x has no tables of trtllm"),
        ({"system": "l40s", "estimator": "guide"}, "no tables of the guide's time of l40s"),
        ({"top_n": 0}, "top_n: 0 is too few"),
        ({"total_gpus": 8.5}, "total_gpus: 8.5 is no whole number"),
        ({"isl": "3000"}, "isl: '3000' is no whole number"),
        ({"total_gpus": 10**12}, "total_gpus: 1000000000000 is too many"),
        ({"isl": 10**12}, "isl: 1000000000000 is too many"),
        ({"database_mode": "SILICONE"}, "unknown database_mode `SILICONE`"),
        ({"mtp": Mtp(drafted=1, accept_rates=(1.5,))}, "accepted: more tokens are accepted than drafted"),
        ({"free_gpu_memory_fraction": 1.5}, "free_gpu_memory_fraction: 1.5 is no share"),
        ({"estimator": "guid"}, "unknown estimator `guid`"),
        ({"backend": "sglan"}, "unknown backend `sglan`"),
    ],
)
def test_what_cannot_be_asked_is_told(given: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {"model": "QWEN3_32B", "total_gpus": 32, "system": "h200_sxm"}
    with pytest.raises(ConfigError) as caught:
        plan(**(usual | given))
    assert said in caught.value.message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(DeploymentError) as caught:
        plan("QWEN3_32B", -1, "h200_sxm", isl=0, osl=0, ttft=-1)
    assert [each.where for each in caught.value.problems] == ["total_gpus", "isl", "osl", "ttft"]


def test_a_model_that_fits_nowhere_says_how_much_it_needs() -> None:
    answers = plan("DEEPSEEK_V3", 2, "h200_sxm").answers
    assert not any(each.best for each in answers)
    assert "fits on no GPU" in str(answers[1].why_none)
    assert "GiB of one h200_sxm GPU, which has 141.0 GiB" in str(answers[1].why_none)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"database_mode": "SOL"}, "speed of light"),
        ({"database_mode": "HYBRID"}, "where tables end"),
        ({"database_mode": "SOL", "estimator": "guide"}, "SOL changes nothing"),
        ({"mtp": Mtp(drafted=1)}, "has no layer that drafts tokens"),
    ],
)
def test_what_figures_rest_on_is_noted(given: dict[str, Any], said: str) -> None:
    notes = plan("QWEN3_32B", 8, "h200_sxm", **given).answers[1].notes
    assert any(said in note for note in notes)


def test_an_architecture_that_is_not_known_is_noted(tmp_path: Path) -> None:
    config = {
        "architectures": ["NewForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    answers = plan(str(tmp_path), 4, "h100_sxm").answers
    assert any("NewForCausalLM is not known" in note for note in answers[0].notes)
    odd = config | {"num_key_value_heads": 5}  # only tp 4 leaves heads that were measured
    (tmp_path / "config.json").write_text(json.dumps(odd))
    answers = plan(str(tmp_path), 4, "h100_sxm").answers
    assert answers[0].why_none == "the smallest replica takes 8 GPUs, and there are 4"
    assert answers[1].best


def test_a_table_that_is_missing_is_named_by_its_columns() -> None:
    why = str(plan("google/gemma-4-26B-A4B", 16, "h200_sxm").answers[1].why_none)
    assert "head_size 256, window 1024 in the tables of trtllm" in why
    assert "--database-mode HYBRID" in why


def test_formats_that_no_table_has_are_told() -> None:
    assert "no fp8_block in the tables of trtllm" in str(plan(QWEN, 16, "a100_sxm").answers[0].why_none)


def test_targets_that_nothing_meets_name_the_nearest() -> None:
    found = plan("QWEN3_32B", 1, "h200_sxm", tpot=5)
    disagg, agg = found.answers
    assert not found.meets_targets
    assert disagg.why_none == "prefill and decode take 2 GPUs at least"
    assert found.best == agg.best[0]
    assert f"the nearest has {agg.best[0].tpot:.2f} ms" in str(agg.why_none)
    assert agg.best[0].tpot == min(each.tpot for each in agg.candidates)


def test_strict_targets_leave_nothing_that_misses_them() -> None:
    found = plan("QWEN3_32B", 8, "h200_sxm", tpot=0.5, strict=True)
    assert found.best is None
    assert found.chosen is None
    assert all(each.why_none for each in found.answers)


def test_any_backend_takes_the_best_and_tells_of_each() -> None:
    backends = ("trtllm", "vllm", "sglang")
    found = plan(QWEN, 16, "h200_sxm", backend="any")
    single = {name: plan(QWEN, 16, "h200_sxm", backend=name) for name in backends}
    for index, answer in enumerate(found.answers):
        best = max(each.throughput(index) for each in single.values())
        assert found.throughput(index) == pytest.approx(best)
        assert any(all(f"{name} " in note for name in backends) for note in answer.notes)


def test_a_system_without_trtllm_takes_what_it_has() -> None:
    found = plan("LLAMA3.1_8B", 8, "b60")
    assert found.best is not None
    assert {each.backend for each in found.best.workers} == {"vllm"}
    assert any("vllm is taken" in note for note in found.answers[0].notes)


def test_decode_workers_may_run_elsewhere() -> None:
    found = plan(QWEN, 16, "b200_sxm", decode_system="h200_sxm", ttft=300, tpot=50, isl=4000, osl=500)
    assert {tuple(w.system for w in each.workers) for each in found.answers[0].best} == {
        ("b200_sxm", "h200_sxm")
    }


def test_an_older_version_that_is_not_there_gives_way_to_the_nearest() -> None:
    found = plan(QWEN, 8, "h200_sxm", backend_version="0.20.0")
    assert any("no tables of trtllm 0.20.0" in note for note in found.answers[0].notes)


def test_a_plan_becomes_a_data_frame_and_html(example: Plan) -> None:
    frame = example.to_pandas()
    assert list(frame["experiment"].unique()) == ["disagg", "agg"]
    assert list(frame[frame["experiment"] == "agg"]["rank"]) == [1, 2, 3, 4, 5]
    assert "<td>913.82</td>" in example._repr_html_()


def test_the_public_name_is_lazy() -> None:
    assert aegis.plan is plan
