"""Past the end of the tables: what is refused by the rules of 0.12.0 and answered in the mode HYBRID of `aegis`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.errors import AegisError
from aegis.planner.estimator import AIC_012, CORRECTED, Estimator
from aegis.planner.operations import AllReduce, Collective, Gemm, Moe, NoData, query
from aegis.planner.operations import Measured as Block
from aegis.planner.perf.measured import Measured
from aegis.planner.perf.reach import Reach
from aegis.planner.problem import Load, Parallel, Tuning
from aegis.planner.single import Asked, worker_of
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables
from aegis.planner.task import Formats, WorkerQuestion

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Leaf, Query
    from aegis.planner.problem import Backend, DatabaseMode
    from aegis.planner.tables.slices import Key

R1, GLM, MINIMAX = "deepseek-ai/DeepSeek-R1", "zhipuai/GLM-5", "MiniMaxAI/MiniMax-M2.5"
EP8, EP16 = Parallel(tp=8, moe_ep=8), Parallel(tp=16, moe_ep=16)
TP8 = Parallel(tp=8, moe_tp=8)
NVFP4, FP8 = Formats(gemm="nvfp4", moe="nvfp4"), Formats(gemm="fp8", moe="fp8")
LOAD = Load(isl=2000, osl=500)
AT = query(tokens=np.array([1, 64, 4096]), batch=4, length=1000)
EXPERTS = Moe(
    name="moe",
    hidden=7168,
    inter=2048,
    topk=8,
    experts=256,
    moe_tp=64,
    moe_ep=1,
    attention_dp=1,
    quant="nvfp4",
    distribution="power_law_1.01",
)


def worker(
    model: str,
    system: str,
    backend: Backend,
    split: Parallel,
    *,
    formats: Formats = Formats(),  # noqa: B008 - frozen
    mode: DatabaseMode = "HYBRID",
    estimator: Estimator = CORRECTED,
) -> Worker:
    asked = WorkerQuestion(model=model, system=system, backends=(backend,), formats=formats)
    question = Asked(asked, split, LOAD, Tuning(), estimator, database_mode=mode)
    return worker_of(question)


def reach(system: str, backend: Backend, node_gpus: int | None = None) -> Reach:
    described, tables = load_system(system), open_tables(system, backend)
    described = replace(described, gpus_per_node=node_gpus or described.gpus_per_node)
    return Reach(Measured(described, tables, "HYBRID"), tables, backend)


@pytest.mark.parametrize(
    ("model", "system", "backend", "split", "formats", "note"),
    [
        # one NVLink domain over many nodes
        (R1, "gb200", "trtllm", EP8, Formats(), r"of 8 GPUs were measured: those of 4 stand in$"),
        (R1, "gb300", "sglang", Parallel(dp=32, moe_ep=32), NVFP4, r"of 32 GPUs were measured: those of 4"),
        # slower links between nodes
        (R1, "h100_sxm", "trtllm", EP16, Formats(), "those of 8 stand in, 9 times slower over the links"),
        (MINIMAX, "h100_sxm", "vllm", Parallel(tp=4, dp=4, moe_ep=16), FP8, "those of 8 stand in"),
        # splits and formats
        (R1, "gb200", "trtllm", Parallel(tp=64, moe_tp=64), NVFP4, r"split 64 x 1 .* split 32 x 1 stand in"),
        (GLM, "b200_sxm", "sglang", TP8, NVFP4, r"nearest stands in \(fp8_block for nvfp4\)"),
        (GLM, "h200_sxm", "sglang", TP8, Formats(gemm="fp8", moe="fp8_block"), r"\(fp8_block for fp8\)"),
    ],
)
def test_what_the_tables_lack_is_estimated_with_a_note(
    *, model: str, system: str, backend: Backend, split: Parallel, formats: Formats, note: str
) -> None:
    one = worker(model, system, backend, split, formats=formats)
    assert 0 < float(one.prefill(1, LOAD.isl)) < 10_000
    assert 0 < float(one.decode(1, LOAD.isl)) < float(one.decode(256, LOAD.isl)) < 1_000
    assert re.search(note, "\n".join(one.performance.notes))
    refusing: tuple[tuple[DatabaseMode, Estimator], ...] = (("SILICON", CORRECTED), ("HYBRID", AIC_012))
    for mode, estimator in refusing:
        with pytest.raises(AegisError):
            worker(
                *(model, system, backend, split), formats=formats, mode=mode, estimator=estimator
            ).breakdown("mixed", LOAD, batch=4, context_tokens=LOAD.isl)


def test_who_is_refused_experts_over_nodes_hears_how_they_are_estimated() -> None:
    with pytest.raises(AegisError, match="on several nodes of 8: no transport") as refused:
        worker(R1, "h100_sxm", "trtllm", EP16, mode="SILICON")
    assert refused.value.hint == "--database-mode HYBRID estimates it"


@pytest.mark.parametrize("split", [Parallel(tp=36, moe_tp=36), Parallel(tp=4, moe_tp=8)])
def test_what_cannot_be_stays_refused(split: Parallel) -> None:
    with pytest.raises(AegisError, match=r"cannot be divided by tp 36|attention and experts take the same"):
        worker(R1, "gb200", "trtllm", split)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B-FP8", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3.2"])
def test_what_the_tables_answer_stays_as_it_is(model: str) -> None:
    split = Parallel(tp=4, moe_tp=1 if "32B" in model else 4)
    found = [
        worker(model, "h200_sxm", "sglang", split, mode=mode).breakdown(
            "mixed", LOAD, batch=16, context_tokens=LOAD.isl
        )
        for mode in ("SILICON", "HYBRID")
    ]
    assert found[0] == found[1]


def test_experts_split_finer_than_any_measured_are_no_faster_and_coarser_ones_take_their_work() -> None:
    here = reach("gb200", "trtllm")
    nearest = here.latency(replace(EXPERTS, moe_tp=32), AT)
    assert here.notes == ()
    assert here.latency(EXPERTS, AT) == pytest.approx(nearest)
    # 256 experts by 3 were not measured either: a split of less work than 2 and of more than 4
    third = here.latency(replace(EXPERTS, moe_tp=1, moe_ep=3), AT)
    assert (third >= here.latency(replace(EXPERTS, moe_tp=1, moe_ep=4), AT)).all()
    assert len(here.notes) == 2


@pytest.mark.parametrize(
    "message",
    [
        AllReduce(name="ar", gpus=16, width=4096.0),
        Collective(name="ag", kind="all_gather", gpus=16, width=4096.0),
    ],
)
def test_a_collective_grows_from_the_largest_group_by_its_share(message: AllReduce | Collective) -> None:
    wide = reach("h100_sxm", "trtllm", node_gpus=16)
    part = wide.latency(message, AT) / wide.latency(replace(message, gpus=8), AT)
    assert part == pytest.approx(15 / 16 * 8 / 7)
    usual = reach("h100_sxm", "trtllm")
    part = usual.latency(message, AT) / usual.latency(replace(message, gpus=8), AT)
    assert part == pytest.approx(9 * 15 / 16 * 8 / 7)  # over the links between nodes
    assert wide.notes == ("no collectives of 16 GPUs were measured: those of 8 stand in",)


def test_sparse_attention_takes_the_lane_that_is_most_alike() -> None:
    def block(lane: str, gemm: str) -> Block:
        kind = (("lane", lane), ("kv_cache", "fp8"), ("gemm", gemm), ("architecture", "GlmMoeDsaForCausalLM"))
        return Block(name="a", table="dsa_generation_module", phase="generation", key=(*kind, ("heads", 8)))

    here = reach("b300_sxm", "sglang")
    for asked, taken in (
        (block("full", "nvfp4"), block("full", "fp8_block")),
        (block("skip", "fp8_block"), block("skip", "bfloat16")),  # its kind of layer before its format
    ):
        assert here.latency(asked, AT) == pytest.approx(here.latency(taken, AT))
    assert len(here.notes) == 2


class Nothing:
    """Tables without a row."""

    system, backend, version, lossless = "h100_sxm", "vllm", "0", True

    def keys(self, _: str) -> list[Key]:
        return []

    def load(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(
    "operation",
    [
        Gemm(name="gemm", n=4096, k=4096, quant="fp8"),
        replace(EXPERTS, quant="fp8_block", moe_tp=8),
        AllReduce(name="ar", gpus=4, width=4096.0),
    ],
)
def test_a_formula_is_the_last_resort(operation: Leaf) -> None:
    system, at = load_system("h100_sxm"), AT
    here = Reach(Measured(system, Nothing(), "HYBRID"), Nothing(), "vllm")
    assert (here.latency(operation, at) > 0).all()
    assert here.notes == (
        f"{operation.name}: nothing like it was measured on h100_sxm; a formula estimates it",
    )


def test_what_nothing_is_known_of_has_no_data() -> None:
    block = Block(name="strange", table="kda", phase="context", key=())
    at: Query = AT
    with pytest.raises(NoData, match="no rule for `kda`"):
        reach("h100_sxm", "vllm").latency(block, at)
