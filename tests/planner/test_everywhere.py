"""One question, asked of many machines."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from aegis.errors import ConfigError, DeploymentError
from aegis.planner import everywhere
from aegis.planner.estimator import CORRECTED
from aegis.planner.everywhere import (
    Offer,
    Ranked,
    Wish,
    check_load,
    platform_places,
    rank,
    sizes,
    system_places,
)
from aegis.planner.problem import Load, Targets
from aegis.planner.size import Need
from aegis.spec.platforms import Site, load_platform

SYSTEMS = ["a40", "b200_sxm", "h200_sxm", "mi250x"]  # of many
WISH = Wish(
    model="LLAMA3.1_8B",
    load=Load(isl=2000, osl=300),
    targets=Targets(ttft=1000, tpot=50),
    estimator=CORRECTED,
    backend="vllm",
)


def offers(*systems: str, rate: float = 20, **changed: Any) -> tuple[Offer, ...]:
    return sizes(system_places(systems), replace(WISH, **changed), Need(rate=rate))


def test_platforms_are_as_many_places_as_they_have_kinds_of_devices() -> None:
    site = Site.here({})
    places = platform_places([load_platform(name, site) for name in ("aurora", "perlmutter", "local")])
    assert [(each.name, each.system) for each in places if each.name == "aurora"] == [("aurora", "pvc_tile")]
    assert {each.system for each in places if each.name == "perlmutter"} == {"a100_sxm", "a100_40"}
    assert all(each.gpus_per_node > 1 for each in places)
    assert not any(each.name == "local" for each in places)


def test_the_place_with_the_fewest_nodes_comes_first() -> None:
    found = offers("l40s", "h100_sxm", rate=100)
    assert [each.place.system for each in found] == ["h100_sxm", "l40s"]
    nodes = [each.sizing.nodes for each in found if each.sizing]
    assert nodes == sorted(nodes)
    assert all(each.sizing and each.sizing.capacity >= 100 for each in found)


def test_a_place_that_cannot_says_why_and_comes_last() -> None:
    found = offers("b60", "h100_sxm", backend="sglang")
    assert found[-1].sizing is None
    assert "b60 has no tables of sglang" in str(found[-1].why_none)
    slow = offers("a40", targets=Targets(ttft=1000, tpot=1))
    assert slow[0].sizing is None
    assert "the nearest has" in str(slow[0].why_none)


def test_estimated_places_have_a_band() -> None:
    (found,) = offers("mi250x")
    assert found.uncertainty > 0
    assert any("estimated" in note for note in found.notes)


def test_unknown_systems_are_told() -> None:
    with pytest.raises(ConfigError, match="unknown system `h100`") as caught:
        system_places(["h100"])
    assert caught.value.hint == "did you mean `h100_pcie` or `h100_sxm`?"


@pytest.fixture(autouse=True)
def _few_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everywhere, "system_names", lambda: SYSTEMS)


@pytest.fixture
def ranked() -> tuple[Ranked, ...]:
    return rank(replace(WISH, backend="any"), 8)


def test_systems_are_ranked_by_what_they_deliver(ranked: tuple[Ranked, ...]) -> None:
    assert {each.system for each in ranked} == set(SYSTEMS)
    assert [each.throughput for each in ranked] == sorted((each.throughput for each in ranked), reverse=True)
    best = ranked[0]
    assert best.plan is not None
    assert best.plan.meets_targets
    assert best.why_none is None
    missed = [each for each in ranked if each.throughput < 0]
    assert all(each.why_none for each in missed)


def test_a_ranking_tells_of_the_tables_that_its_best_rests_on(ranked: tuple[Ranked, ...]) -> None:
    by_system = {each.system: each for each in rank(replace(WISH, model="Qwen/Qwen3-32B-FP8"), 8)}
    assert any("the table of gemm (fp8_block) is slower" in note for note in by_system["h200_sxm"].notes)
    assert not any("by backend" in note for each in ranked for note in each.notes)


def test_what_is_wrong_everywhere_is_told_once() -> None:
    wrong = replace(WISH, load=Load(isl=0, osl=1), model="LAMA")
    assert {problem.where for problem in check_load(wrong)} == {"isl", "osl", "model"}
    with pytest.raises(DeploymentError) as caught:
        rank(wrong, 8)
    assert len(caught.value.problems) == 3


def test_nothing_found_ranks_below_targets_missed() -> None:
    ranked = rank(replace(WISH, targets=Targets(ttft=1000, tpot=0.1)), 1)
    assert all(each.throughput == -math.inf for each in ranked)
