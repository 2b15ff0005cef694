from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aegis.fleet.agent.load import parse_metrics
from aegis.fleet.agent.vitals import Policy, Probe, Vitals

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vllm"
NAMES = {
    "running": ["vllm:num_requests_running"],
    "waiting": ["vllm:num_requests_waiting"],
    "prompt_tokens": ["vllm:prompt_tokens_total"],
    "generation_tokens": ["vllm:generation_tokens_total"],
    "kv_cache": ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
}
PATIENCE = {
    "startup_timeout": 100.0,
    "wedge_timeout": 20.0,
    "restart_after": 30.0,
    "settled_after": 50.0,
    "canary_interval": 15.0,
}
GOOD = Probe(health=True, canary=True, running=0, tokens=0)
SILENT = Probe(health=False)


def vitals(now: float = 0.0) -> Vitals:
    return Vitals(Policy(**PATIENCE), now)


def healthy_vitals(now: float = 0.0) -> Vitals:
    found = vitals(now)
    assert found.observe(now, GOOD) == "healthy"
    return found


def busy(tokens: float, running: float = 3) -> Probe:
    return Probe(health=True, running=running, tokens=tokens)


def test_health_alone_is_not_enough() -> None:
    found = vitals()
    assert found.canary_due(0.0, None)
    for now in range(10):
        assert found.observe(now, Probe(health=True)) == "starting"
    assert found.reason == "waiting for the first answer"
    assert found.observe(11.0, GOOD) == "healthy"
    assert found.reason == ""


def test_starting_says_what_it_waits_for() -> None:
    found = vitals()
    assert found.observe(1.0, Probe(health=False, detail="nothing listens on port 8000 yet")) == "starting"
    assert found.reason == "nothing listens on port 8000 yet"
    assert found.observe(2.0, Probe(health=True, canary=False, detail="code 500")) == "starting"
    assert "one-token request" in found.reason
    assert "code 500" in found.reason


def test_a_start_that_takes_too_long_is_due() -> None:
    found = vitals()
    found.observe(99.0, SILENT)
    assert found.restart_due(99.9) == ""
    assert "100 s after its start" in found.restart_due(100.0)
    assert "no answer from /health" in found.restart_due(100.0)


def test_one_slow_answer_is_no_illness_and_two_are() -> None:
    found = healthy_vitals()
    assert found.observe(1.0, SILENT) == "healthy"
    assert found.last_good == 0.0
    assert found.observe(2.0, busy(1)) == "healthy"
    assert found.observe(3.0, SILENT) == "healthy"
    assert found.observe(4.0, SILENT) == "unhealthy"
    assert found.reason == "no answer from /health"
    assert found.since == 4.0


def test_wedged_when_requests_run_and_no_token_moves() -> None:
    found = healthy_vitals()
    assert found.observe(1.0, busy(5)) == "healthy"
    assert found.observe(20.9, busy(5)) == "healthy"
    assert found.observe(21.0, busy(5)) == "unhealthy"
    assert found.reason == "wedged: 3 requests running and no token for over 20 s"
    assert found.restart_due(50.9) == ""
    assert "wedged" in found.restart_due(51.0)
    assert found.observe(52.0, busy(6)) == "healthy"
    assert found.restart_due(90.0) == ""
    assert found.since == 52.0


def test_moving_tokens_an_idle_engine_and_unknown_metrics_are_not_wedged() -> None:
    found = healthy_vitals()
    for now in range(1, 200, 7):
        assert found.observe(now, busy(now)) == "healthy"
    for now in range(200, 400, 7):
        assert found.observe(now, busy(0, running=0)) == "healthy"
    assert found.observe(401.0, busy(0, running=2)) == "healthy"  # the clock starts with the first request
    for now in range(402, 600, 7):
        assert found.observe(now, Probe(health=True)) == "healthy"


def test_a_failed_canary_is_asked_again_at_once_and_recovery_is_believed() -> None:
    found = healthy_vitals()
    assert found.observe(16.0, Probe(health=True, canary=False, running=0, tokens=0)) == "unhealthy"
    assert found.canary_due(16.1, 0)
    assert found.observe(17.0, Probe(health=True)) == "unhealthy"  # health alone cures nothing
    assert found.observe(18.0, GOOD) == "healthy"
    assert not found.canary_due(18.1, 0)


def test_only_an_idle_instance_gets_canaries() -> None:
    found = healthy_vitals()
    assert not found.canary_due(14.9, 0)
    assert found.canary_due(15.0, 0)
    assert not found.canary_due(1000.0, 7)


def test_settled_after_a_healthy_time() -> None:
    found = healthy_vitals()
    assert not found.settled(49.9)
    assert found.settled(50.0)
    found.observe(51.0, SILENT)
    found.observe(52.0, SILENT)
    assert not found.settled(1000.0)


class Life(RuleBasedStateMachine):
    """Any sequence of probes: what must hold whatever an engine does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.vitals = vitals()
        self.before = "starting"
        self.answered = False
        self.silent = 0
        self.turned = 0.0

    @rule(
        wait=st.floats(0.0, 40.0),
        health=st.booleans(),
        canary=st.sampled_from([None, True, False]),
        running=st.sampled_from([None, 0.0, 1.0, 9.0]),
        tokens=st.sampled_from([None, 0.0, 1.0, 2.0]),
    )
    def look(
        self, wait: float, health: bool, canary: bool | None, running: float | None, tokens: float | None
    ) -> None:
        self.now += wait
        if not health:  # as the agent asks: no health, no more questions
            canary = running = tokens = None
        self.answered |= canary is True
        self.silent = 0 if health else self.silent + 1
        self.before = self.vitals.status
        probe = Probe(health=health, canary=canary, running=running, tokens=tokens)
        status = self.vitals.observe(self.now, probe)
        if status != self.before:
            self.turned = self.now
        if canary is True:
            assert status == "healthy"
        if canary is False:
            assert status != "healthy"
        if self.silent > 1:
            assert status != "healthy"
        if self.silent == 1 and self.before == "healthy":
            assert status == "healthy"

    @invariant()
    def never_healthy_before_an_answer(self) -> None:
        if not self.answered:
            assert self.vitals.status == "starting"
        if self.before != "starting":
            assert self.vitals.status != "starting"

    @invariant()
    def since_is_the_last_turn(self) -> None:
        assert self.vitals.since == self.turned
        assert self.vitals.last_good is None or self.vitals.last_good <= self.now

    @invariant()
    def a_restart_is_due_exactly_when_patience_is_over(self) -> None:
        for later in (0.0, 29.0, 31.0, 101.0):
            now = self.now + later
            overdue = {
                "starting": now >= 100.0,
                "unhealthy": now - self.turned >= 30.0,
                "healthy": False,
            }[self.vitals.status]
            assert bool(self.vitals.restart_due(now)) == overdue
            assert self.vitals.settled(now) == (self.vitals.status == "healthy" and now - self.turned >= 50.0)

    @invariant()
    def what_is_wrong_is_said(self) -> None:
        assert bool(self.vitals.reason) == (self.vitals.status != "healthy")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(first=st.floats(0.0, 10.0), most=st.floats(0.0, 100.0), failures=st.integers(0, 900))
def test_pauses_grow_and_are_bounded(first: float, most: float, failures: int) -> None:
    policy = Policy(backoff_first=first, backoff_most=most)
    assert 0.0 <= policy.backoff(failures) <= policy.backoff(failures + 1) <= most


def test_the_first_pauses_double() -> None:
    policy = Policy(backoff_first=1.0, backoff_most=5.0)
    assert [policy.backoff(number) for number in range(6)] == [1.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_crash_loop_of_years_does_not_overflow() -> None:
    assert Policy().backoff(100_000) == Policy().backoff_most


# ------------------------------------------------------------------------------------------- metrics


def test_the_metrics_page_of_a_real_server() -> None:
    found = parse_metrics((FIXTURES / "metrics.txt").read_text(), NAMES)
    assert found == {
        "running": 0.0,
        "waiting": 0.0,
        "prompt_tokens": 3399.0,
        "generation_tokens": 2024.0,
        "kv_cache": 0.0,
    }


def test_labels_are_summed() -> None:
    page = (
        'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a}b"} 3.0 1700000000\n'
        "vllm:num_requests_waiting 4\n"
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 40\n'
    )
    assert parse_metrics(page, NAMES) == {"running": 5.0, "waiting": 4.0}


def test_the_older_name_is_known_too() -> None:
    assert parse_metrics('vllm:gpu_cache_usage_perc{engine="0"} 0.5\n', NAMES) == {"kv_cache": 0.5}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "", "x", "1.0.0"])
def test_what_is_no_number_is_left_out(value: str) -> None:
    page = f'vllm:kv_cache_usage_perc{{engine="0"}} {value}\nvllm:num_requests_running 1\n'
    found = parse_metrics(page, NAMES)
    assert found == {"running": 1.0}
    json.dumps(found, allow_nan=False)


def test_labels_may_hold_line_separators() -> None:
    assert parse_metrics('vllm:num_requests_running{m="a\u2028\x85b"} 7\n', NAMES) == {"running": 7.0}


@given(st.text())
@settings(deadline=None)
def test_any_text_is_a_page(text: str) -> None:
    parse_metrics(text, NAMES)
    parse_metrics(f"vllm:num_requests_running{text}", NAMES)


def test_a_long_page_is_read_in_time() -> None:
    page = ("vllm:num_requests_running{" + "x" * 300 + "\n") * 10_000
    started = time.perf_counter()
    parse_metrics(page, NAMES)
    assert time.perf_counter() - started < 1.0
