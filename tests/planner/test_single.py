"""One configuration by itself: how it is asked for, and what its steps are made of."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aegis.errors import ConfigError
from aegis.planner.estimator import CORRECTED, ESTIMATORS, MECHANISM, PLAIN, Estimator
from aegis.planner.problem import Load, Parallel, Tuning
from aegis.planner.report.steps import bar, report, summary
from aegis.planner.single import Asked, Estimate, estimate, experiment_of, worker_of
from aegis.planner.task import Formats, WorkerQuestion

LOAD = Load(isl=2000, osl=300)
LLAMA = WorkerQuestion(model="LLAMA3.1_8B", system="h100_sxm")
MIXTRAL = WorkerQuestion(model="MOE_Mixtral8x7B", system="h200_sxm")


def asked(worker: WorkerQuestion = LLAMA, load: Load = LOAD, **others: Any) -> Asked:
    sizes = {name: others.pop(name) for name in list(others) if name in Parallel.__struct_fields__}
    split = Parallel(**{"moe_ep": 0, **sizes})
    estimator: str | Estimator = others.pop("estimator", "aegis")
    if isinstance(estimator, str):
        estimator = ESTIMATORS[estimator]
    return Asked(worker=worker, split=split, load=load, tuning=Tuning(), estimator=estimator, **others)


def estimated(question: Asked, batch: int = 8, context_tokens: int | None = None) -> Estimate:
    worker = worker_of(question)
    return estimate(worker, question.load, Tuning(), batch=batch, context_tokens=context_tokens)


@pytest.fixture(scope="module")
def example() -> Estimate:
    return estimated(asked(tp=2), batch=32)


@pytest.mark.parametrize("estimator", ["aegis", PLAIN, "aic-0.12", "guide"])
def test_operations_add_up_to_their_steps(estimator: str | Estimator) -> None:
    found = estimated(asked(tp=2, estimator=estimator))
    assert [step.name for step in found.steps] == ["prefill", "mixed", "decode"]
    for step in found.steps:
        assert sum(part.ms for part in step.parts) == pytest.approx(step.ms)
    worker = worker_of(asked(tp=2, estimator=estimator))
    assert found.steps[0].ms == pytest.approx(float(worker.prefill(1, LOAD.isl)), rel=1e-6)
    assert found.steps[1].ms == pytest.approx(float(worker.mixed(LOAD.isl, 7, LOAD)), rel=1e-6)
    hosted = [part for step in found.steps for part in step.parts if part.kind == "host"]
    assert bool(hosted) is (estimator == "aegis")
    assert {part.bound for part in hosted} <= {"host"}


def test_no_operation_is_faster_than_the_hardware() -> None:
    """In a server they overlap: as measured there, one may take less than its limit."""
    for step in estimated(asked(tp=2, estimator=PLAIN), batch=32).steps:
        assert all(part.ideal <= part.ms * 1.001 for part in step.parts)
        assert {part.bound for part in step.parts if part.kind == "link"} == {"link"}


def test_prefill_is_bound_by_compute_and_decode_by_memory(example: Estimate) -> None:
    gemms = {
        step.name: {part.bound for part in step.parts if part.kind == "gemm" and "logits" not in part.name}
        for step in example.steps
    }
    assert gemms["prefill"] == {"compute"}
    assert gemms["decode"] == {"memory"}


def test_figures_agree_with_each_other(example: Estimate) -> None:
    assert example.request_latency == pytest.approx(example.ttft + 299 * example.tpot)
    assert example.tokens_per_s_gpu == pytest.approx(example.tokens_per_s / 2)
    assert example.tokens_per_s_user == pytest.approx(1000 / example.tpot)
    assert example.fits
    assert sum(example.memory.values()) < example.capacity


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_what_prompts_take_of_a_token_is_reckoned_as_the_token_is(batch: int) -> None:
    """What measured deployments leave over is of both, so that the share does not know it."""
    corrected, before = (estimated(asked(tp=2, estimator=each), batch) for each in (CORRECTED, MECHANISM))
    assert corrected.tpot != before.tpot
    assert corrected.prefill_share == pytest.approx(before.prefill_share, abs=1e-9)


def test_a_larger_batch_holds_more_and_is_slower(example: Estimate) -> None:
    larger = estimated(asked(tp=2), batch=64)
    assert larger.memory["kv_cache"] == pytest.approx(2 * example.memory["kv_cache"])
    assert larger.tpot > example.tpot
    assert larger.tokens_per_s > example.tokens_per_s


def test_experts_take_the_gpus_that_attention_takes() -> None:
    search = experiment_of(asked(MIXTRAL, tp=4, moe_tp=2)).searches[0][0]
    assert search.splits == (Parallel(tp=4, moe_tp=2, moe_ep=2),)
    assert experiment_of(asked(tp=4)).searches[0][0].splits == (Parallel(tp=4),)


def test_formats_have_the_guide_s_names_too() -> None:
    worker = replace(LLAMA, formats=Formats(gemm="float16", kv_cache="fp8", fmha="fp8"))
    experiment = experiment_of(asked(worker))
    quantization = experiment.searches[0][0].quantization
    assert (quantization.gemm, quantization.kv_cache, quantization.fmha) == ("bfloat16", "fp8", "fp8")
    assert not any(note.startswith("weights") for note in experiment.notes)


def test_what_was_chosen_is_noted() -> None:
    notes = experiment_of(asked(replace(LLAMA, version="0.1"))).notes
    assert any("no tables of trtllm 0.1" in note for note in notes)


@pytest.mark.parametrize(
    ("worker", "others", "said"),
    [
        (LLAMA, {"dp": 2}, "dp: LLAMA3.1_8B has no experts"),
        (LLAMA, {"tp": 2, "moe_ep": 2}, "moe_ep: LLAMA3.1_8B has no experts"),
        (replace(LLAMA, formats=Formats(moe="fp8")), {}, "moe: LLAMA3.1_8B has no experts"),
        (replace(LLAMA, formats=Formats(kv_cache="fp7")), {}, "kv_cache: `fp7` is no number format"),
        (replace(LLAMA, model="LAMA3.1_8B"), {"dp": 2}, "model: `LAMA3.1_8B` is no model"),
        (LLAMA, {"tp": 3}, "32 attention heads of LLAMA3.1_8B cannot be divided by tp 3"),
        (MIXTRAL, {"tp": 4, "moe_tp": 3}, "tp x dp x cp is moe_tp x moe_ep"),
        (MIXTRAL, {"tp": 2, "dp": 2}, "trtllm splits attention by tp or by dp, not by both"),
        (
            replace(MIXTRAL, backends=("vllm",)),
            {"tp": 4, "moe_tp": 2},
            "vllm splits experts by moe_tp or by moe_ep",
        ),
        (MIXTRAL, {"tp": 2, "cp": 2}, "cp goes with tp 1 and dp 1 only"),
        (LLAMA, {"load": Load(isl=0, osl=10)}, "isl: 0 is too few"),
    ],
)
def test_what_cannot_be_split_or_stored_so_is_told(
    worker: WorkerQuestion, others: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        worker_of(asked(worker, **others))
    assert said in caught.value.message


@pytest.mark.parametrize(("batch", "context_tokens"), [(1, 4000), (2, 4000), (4, 8000)])
def test_a_chunk_leaves_a_request_that_decodes(batch: int, context_tokens: int) -> None:
    with pytest.raises(ConfigError, match="requests are in flight"):
        estimated(asked(), batch=batch, context_tokens=context_tokens)


def test_the_report_names_formats_and_fills_its_bars(example: Estimate) -> None:
    text = report(example)
    assert text.startswith("h100_sxm trtllm tp 2: 2 GPUs, batch 32, 2000 context tokens\n")
    formats = example.quantization
    assert f"weights {formats.gemm}, KV cache {formats.kv_cache}, prefill attention {formats.fmha}" in text
    assert all(len(bar(step)) == 60 for step in example.steps)
    assert "h host: scheduling, sampling, launching" in text
    assert "1 GPU, batch 8" in report(estimated(asked()))


def test_several_batches_are_a_line_each(example: Estimate) -> None:
    head, rows = summary([example, estimated(asked(tp=2), batch=10**5)])
    assert len(head) == len(rows[0]) == len(rows[1])
    assert head[-3:] == ("MEMORY", "80 %", "MEASURED")
    assert rows[1][-3].endswith("does not fit")
    head, rows = summary([estimated(asked(tp=2, estimator=PLAIN))])
    assert head[-1] == "MEMORY"
    assert len(rows[0]) == len(head)
