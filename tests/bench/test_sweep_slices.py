"""Which part of a load counts, and its noise: requests whose server is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.targets import Target
from aegis.bench.load import Outcome
from aegis.bench.prompts import Prompt
from aegis.bench.records import Records
from aegis.bench.sweep.slices import cut, figures, noise
from aegis.bench.work import Work

TOKENS = 10


def load(
    starts: list[float], ends: list[float], concurrency: int = 0, errors: int = 0
) -> tuple[Work, Outcome]:
    """Requests of 5 + 10 tokens whose first token comes after a tenth of their time; the last ones fail."""
    count = len(starts)
    start, end = np.array(starts, float), np.array(ends, float)
    took = end - start
    failed = np.arange(count) >= count - errors
    records = Records(
        prompt=np.arange(count),
        start=start,
        ttft=np.where(failed, np.nan, took / 10),
        latency=np.where(failed, np.nan, took),
        input_tokens=np.full(count, 5),
        output_tokens=np.full(count, TOKENS),
        gaps=np.zeros(count, int),
        itl=np.empty(0),
        errors=tuple("cut" if each else "" for each in failed),
    )
    work = Work(
        target=Target("h", 1, ("m",)),
        model="m",
        prompts=(Prompt("a", TOKENS),) * count,
        concurrency=concurrency,
        arrivals=() if concurrency else tuple(starts),
    )
    return work, Outcome(records, float(np.max(end, initial=0.0)))


def rounds(users: int, count: int, warm: float = 3.0) -> tuple[Work, Outcome]:
    """Users in step, 1 s a request; the first round is slower, and the last user of the last round goes home late."""
    ends = [warm + turn for turn in range(count) for _ in range(users)]
    starts = [0.0 if not turn else warm + turn - 1 for turn in range(count) for _ in range(users)]
    return load(starts, ends, users)


@given(users=st.integers(1, 20), count=st.integers(4, 30))
def test_the_first_and_the_last_round_do_not_count(users: int, count: int) -> None:
    found = cut(*rounds(users, count))
    told = figures([found])
    assert told["request_throughput"] == pytest.approx(users, rel=1e-6)
    assert told["output_throughput"] == pytest.approx(users * TOKENS, rel=1e-6)
    assert told["total_token_throughput"] == pytest.approx(users * (TOKENS + 5), rel=1e-6)
    assert told["mean_e2el_ms"] == pytest.approx(1000)
    assert told["completed"] <= users * (count - 1)


def test_a_queue_that_grows_is_no_throughput() -> None:
    """10 requests/s arrive at a server that answers 2: what waits is not served."""
    starts = [index / 10 for index in range(100)]
    work, outcome = load(starts, [(index + 1) / 2 for index in range(100)])
    answers = np.array([(index + 1) / 2 for index in range(100)])
    records = outcome.records
    outcome = Outcome(
        Records(
            **{name: getattr(records, name) for name in Records.__struct_fields__ if name != "ttft"},
            ttft=answers - 0.5 - records.start,
        ),
        outcome.ended,
    )
    assert figures([cut(work, outcome)])["request_throughput"] == pytest.approx(2, rel=0.01)


def test_servers_are_added_and_their_requests_pooled() -> None:
    slow, fast = cut(*rounds(1, 12)), cut(*rounds(3, 12))
    together = figures([slow, fast])
    assert together["request_throughput"] == pytest.approx(4)
    assert together["completed"] == figures([slow])["completed"] + figures([fast])["completed"]
    assert noise([slow, fast])["output_throughput"] == pytest.approx(0, abs=1e-6)


def test_noise_is_the_standard_error_of_the_slices() -> None:
    draw = np.random.default_rng(1)
    errors = []
    means = []
    for _ in range(60):
        took = draw.gamma(20, 1 / 20, 120)
        ends = np.cumsum(took)
        slices = cut(*load([0.0, *ends[:-1].tolist()], ends.tolist(), 1))
        errors.append(noise([slices])["mean_e2el_ms"])
        means.append(figures([slices])["mean_e2el_ms"])
    assert np.median(errors) == pytest.approx(np.std(means), rel=0.35)


@pytest.mark.parametrize(
    "made",
    [rounds(4, 1), rounds(4, 2), load([0.0], [1.0]), load([0.0, 1.0], [1.0, 2.0]), load([], [])],
)
def test_too_little_counts_whole_and_has_no_noise(made: tuple[Work, Outcome]) -> None:
    slices = cut(*made)
    assert figures([slices])["completed"] <= len(made[1].records)
    assert noise([slices]) == {}


def test_failures_are_no_throughput() -> None:
    slices = cut(*load([0.0] * 8, [1.0] * 8, 8, errors=8))
    assert figures([slices])["request_throughput"] == 0
