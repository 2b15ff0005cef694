"""What binds a plan."""

from __future__ import annotations

from typing import Any

import pytest

from aegis import plan
from aegis.planner.estimator import PLAIN
from aegis.planner.report.binding import report
from aegis.planner.why import Why, why


def reasons(**given: Any) -> dict[str, Why]:
    usual: dict[str, Any] = {"model": "LLAMA3.1_8B", "total_gpus": 8, "system": "h100_sxm"}
    found = why(plan(**({"isl": 2000, "osl": 300} | usual | given)))
    return {each.name: each for each in found}


@pytest.fixture(scope="module")
def tight() -> dict[str, Why]:
    return reasons(tpot=10)


def test_shares_of_a_step_add_up(tight: dict[str, Why]) -> None:
    assert [step.name for step in tight["agg"].steps] == ["mixed", "decode"]
    assert [step.name for step in tight["disagg"].steps] == ["prefill", "decode"]
    for reason in tight.values():
        for step in reason.steps:
            assert sum(step.shares.values()) == pytest.approx(1)
            assert 0 < step.reached <= 1


def test_a_tight_target_binds_and_a_looser_one_gives_more(tight: dict[str, Why]) -> None:
    reason = tight["agg"]
    assert reason.binds == "TPOT target"
    assert reason.next_batch is not None
    assert reason.next_batch > reason.best.workers[-1].batch
    gains = [looser.gain for looser in reason.looser]
    assert gains == sorted(gains)
    assert gains
    assert all(looser.candidate.tpot <= looser.target for looser in reason.looser)


def test_every_other_split_has_a_reason(tight: dict[str, Why]) -> None:
    agg = tight["agg"]
    splits = {lost.split for lost in agg.lost}
    assert agg.best.workers[0].parallel not in splits
    assert len(splits) == 3  # of tp 1, 2, 4, 8
    assert all(lost.reason for lost in agg.lost)


def test_prefill_workers_that_deliver_less_bind_the_replica() -> None:
    reason = reasons(tpot=10, estimator=PLAIN)["disagg"]
    assert reason.binds == "rate matching"
    prefill, decode = (float(word.rstrip(",")) for word in reason.detail.split() if word[0].isdigit())
    assert prefill < decode
    assert reason.best.requests_per_s == pytest.approx(prefill, rel=0.01)


def test_the_whole_request_can_bind() -> None:
    agg = reasons(request_latency=3000)["agg"]
    assert agg.binds == "request latency target"
    assert all(looser.candidate.request_latency <= looser.target for looser in agg.looser)


def test_without_a_target_memory_or_the_largest_batch_binds() -> None:
    found = reasons(model="meta-llama/Llama-3.1-70B", total_gpus=4, ttft=1e6, tpot=1e4)
    assert found["agg"].binds in {"memory", "saturation", "largest batch tried"}
    assert any("does not fit: weights" in lost.reason for lost in found["agg"].lost)


@pytest.mark.parametrize(
    "given", [{"estimator": "guide"}, {"backend": "any"}, {"system": "mi250x", "tpot": 60}]
)
def test_other_rules_and_systems_have_reasons_too(given: dict[str, Any]) -> None:
    text = report(tuple(reasons(**given).values()))
    assert "bound by" in text or "saturat" in text or "largest batch" in text
    assert "decode step" in text


def test_where_nothing_is_found_nothing_binds() -> None:
    assert not reasons(tpot=0.1, strict=True)
