"""aegis.yaml: what is planned, for the platform named, as `aegis submit` takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from aegis.planner.emit.choice import served_by_aegis
from aegis.planner.emit.deployment import Memory, deployment_of
from aegis.planner.emit.queues import choose
from aegis.planner.problem import Parallel
from aegis.spec.platform import Platform, Queue
from aegis.spec.platforms import BUILT_IN, Site, load_platform

from .conftest import HOSTILE, candidate, pair, plan_of, servers, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aegis.planner.emit.deployment import Deployed

    from .conftest import Outcome

SITE = Site((BUILT_IN,), "laptop", lambda _: False)
PLATFORMS = sorted({file.stem for file in BUILT_IN.glob("*.yaml")} - {"local"})  # too few GPUs here


def deployed(platform: str | None = None, replicas: int = 8, **changes: Any) -> Deployed:
    site = load_platform(platform, SITE) if platform else None
    return deployment_of(servers(**changes), replicas, site, Memory(30.1, 141.0, "h200_sxm"))


@pytest.fixture
def submit(
    aegis: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Outcome]:
    """Return what `aegis submit --dry-run` says of a file."""

    def run(text: str) -> Outcome:
        file = tmp_path / "aegis.yaml"
        file.write_text(text)
        monkeypatch.setenv("AEGIS_ACCOUNT", "project")
        monkeypatch.chdir(tmp_path)
        return aegis("submit", "--config", str(file), "--dry-run")

    return run


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_aegis_submits_it_as_it_is(platform: str, backend: str, submit: Callable[[str], Outcome]) -> None:
    done = submit(deployed(platform, backend=backend).to_yaml())
    assert done.code == 0, done.err
    assert "tensor_parallel_size: 4" in done.out


@pytest.mark.parametrize("backend", ["vllm", "sglang"])
def test_a_hostile_model_stays_one_word(
    backend: str, submit: Callable[[str], Outcome], tmp_path: Path
) -> None:
    done = submit(deployed("polaris", model=HOSTILE, backend=backend).to_yaml((HOSTILE,)))
    assert done.code == 0, done.err
    assert not (tmp_path / "x").exists()


def test_sizes_are_keys_and_limits_are_arguments() -> None:
    (entry,) = deployed().deployment.models
    assert (entry.model, entry.engine, entry.instances, entry.tensor_parallel_size) == ("org/m", "vllm", 8, 4)
    assert entry.extra_vllm_args == (
        *("--max-model-len", "4032", "--max-num-seqs", "48", "--max-num-batched-tokens", "3072"),
    )
    assert not any("parallel" in arg for arg in entry.extra_vllm_args)


def test_an_engine_that_aegis_does_not_serve_is_replaced_and_told() -> None:
    made = deployed(backend="trtllm")
    assert made.deployment.models[0].engine == "vllm"
    assert "planned for trtllm 1.3.0rc20, which Aegis does not serve" in made.notes[0]


def test_a_queue_that_takes_it_is_named() -> None:
    small, large = deployed("aurora"), deployed("aurora", replicas=900)
    assert (small.deployment.queue, small.deployment.walltime) == ("debug-scaling", "01:00:00")
    assert "3 nodes of 12; queue debug-scaling takes 2 to 256 nodes" in small.notes[-1]
    assert large.deployment.queue == "prod"


def test_no_queue_that_takes_it_is_told_with_the_nearest() -> None:
    queues = (Queue(name="a", max_nodes=4), Queue(name="b", min_nodes=100, max_nodes=200))
    slot = choose(Platform(name="site", queues=queues), 50)
    assert slot.queue is None
    assert slot.said == "NO QUEUE of site takes 50 nodes: at most 4 (a); at least 100 (b)"
    assert "NO QUEUE" in " ".join(deployed("aurora", replicas=100_000).notes)


def test_the_usual_time_is_cut_where_the_queue_allows_less() -> None:
    short = Platform(
        name="site", defaults={"walltime": "08:00:00"}, queues=(Queue(name="a", max_walltime="02:00:00"),)
    )
    assert choose(short, 1)[:2] == ("a", "02:00:00")
    assert choose(replace(short, queues=()), 1)[:2] == (None, "08:00:00")


def test_devices_that_are_others_or_too_small_are_told() -> None:
    site = load_platform("aurora", SITE)
    notes = deployment_of(servers(), 8, site, Memory(70.0, 141.0, "h200_sxm")).notes
    assert any("IT DOES NOT FIT: a GPU holds 70.0 GiB, and a tile of aurora has 64" in note for note in notes)
    assert any("planned for h200_sxm, and a tile of aurora is pvc_tile" in note for note in notes)
    same = deployment_of(servers(), 8, site, Memory(30.0, 64.0, "pvc_tile")).notes
    assert not any("planned for" in note or "NOT FIT" in note for note in same)


def test_a_server_that_crosses_nodes_is_told() -> None:
    wide = servers(candidate(workers(parallel=Parallel(tp=8))))
    polaris, frontier = (
        deployment_of(wide, 1, load_platform(name, SITE)).notes for name in ("polaris", "frontier")
    )
    assert (
        "A SERVER SPANS 2 nodes of polaris and was planned within 1 of 8 GPUs: it will be slower" in polaris
    )
    assert not any("SPANS" in note for note in frontier)


def test_a_generic_profile_is_told_its_devices() -> None:
    assert deployed("generic-slurm").deployment.gpus_per_node == 8
    assert deployed("frontier").deployment.gpus_per_node is None


def test_attention_data_parallelism_of_sglang_counts_its_gpus_once() -> None:
    split = Parallel(tp=2, dp=4, moe_tp=8)
    made = deployed(chosen=candidate(workers(backend="sglang", parallel=split)), backend="sglang")
    (entry,) = made.deployment.models
    assert (entry.tensor_parallel_size, entry.data_parallel_size, entry.devices) == (2, 4, 8)
    assert "--enable-dp-attention" in entry.extra_sglang_args


def test_disaggregated_becomes_the_best_aggregated_of_the_same_plan() -> None:
    split, whole = pair(), candidate()
    choice = served_by_aegis(plan_of(split, whole), 0, split)
    assert (choice.candidate, choice.planned) == (whole, True)
    assert "Aegis has no router" in choice.notes[0]
    assert "(630.56 tokens/s/GPU)" in choice.notes[0]


def test_what_limits_the_figures_is_told() -> None:
    shown = plan_of(candidate())
    missed = replace(
        shown.answers[0], meets_targets=False, why_none="the nearest has 30 ms", notes=("estimated",)
    )
    choice = served_by_aegis(replace(shown, answers=(missed,)), 0, missed.best[0])
    assert choice.notes == ("IT MISSES ITS TARGETS: the nearest has 30 ms", "estimated")


def test_disaggregated_alone_becomes_its_decode_workers_and_says_that_nobody_planned_this() -> None:
    split = pair()
    choice = served_by_aegis(plan_of(split), 0, split)
    assert [each.role for each in choice.candidate.workers] == ["agg"]
    assert (choice.candidate.gpus, choice.replicas) == (4, 8)
    assert "HAS NOT BEEN PLANNED" in choice.notes[0]
    assert not any("Planned:" in line for line in choice.head())


def test_both_groups_of_a_pair_are_deployed_with_their_connector(submit: Callable[[str], Outcome]) -> None:
    made = deployment_of(servers(pair()), 4, load_platform("polaris", SITE), None)
    prefill, decode = made.deployment.models
    assert (prefill.instances, prefill.devices, decode.instances, decode.devices) == (16, 1, 4, 4)
    for entry in (prefill, decode):
        assert "--kv-transfer-config" in entry.extra_vllm_args
    done = submit(made.to_yaml())
    assert done.code == 0, done.err


def test_a_comment_never_becomes_a_key(submit: Callable[[str], Outcome]) -> None:
    text = deployed("polaris").to_yaml(("name: x\nqueue: y", "walltime: no"))
    assert submit(text).code == 0
    assert all(line.startswith("#") for line in text.partition("\n\n")[0].splitlines())
