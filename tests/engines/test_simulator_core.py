"""The pure parts of the simulated engine."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.cli.sim import repeat_flags, spelled_out
from aegis.engines.simulator.engine import BLOCK, Batch, PrefixCache, Step, Ticket, constant, jittered
from aegis.engines.simulator.metrics import Histogram, length_buckets
from aegis.engines.simulator.text import embedding, pieces, plan, token_id

# Each step: a request of so many tokens comes, or (None) one of those there leaves.
STEPS = st.lists(st.one_of(st.integers(0, 12), st.none()), max_size=60)


@given(st.integers(1, 4), st.integers(12, 30), STEPS, st.randoms(use_true_random=False))
def test_the_batch_keeps_its_bounds_and_the_queue_its_order(
    slots: int, kv: int, steps: list[int | None], rng: Random
) -> None:
    batch = Batch(slots, kv)
    there: list[Ticket] = []  # in order of arrival
    for step in steps:
        if step is not None:
            there.append(batch.enter(step))
        elif there:
            gone = there.pop(rng.randrange(len(there)))
            before = [ticket for ticket in there if ticket.running]
            started = batch.leave(gone)
            assert started == [ticket for ticket in there if ticket.running and ticket not in before]
        running = [ticket for ticket in there if ticket.running]
        waiting = [ticket for ticket in there if not ticket.running]
        assert (batch.running, batch.waiting) == (len(running), len(waiting))
        assert batch.kv_used == sum(ticket.kv_tokens for ticket in running) <= kv
        assert batch.running <= slots
        if waiting:  # the first one waits because it does not fit, the others wait behind it
            assert batch.running == slots or batch.kv_used + waiting[0].kv_tokens > kv
            last_started = max((there.index(ticket) for ticket in running), default=-1)
            assert last_started < there.index(waiting[0])
    for ticket in there:
        batch.leave(ticket)
    assert (batch.running, batch.waiting, batch.kv_used) == (0, 0, 0)


def test_what_can_never_fit_does_not_enter() -> None:
    with pytest.raises(ValueError, match="can never fit"):
        Batch(1, 10).enter(11)


@given(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1), st.integers())
def test_jitter_stays_within_its_bounds(ttft: float, itl: float, jitter: float, seed: int) -> None:
    step = jittered(constant(ttft, itl), jitter, Random(seed))(1, 1)
    for value, mean in zip(step, (ttft, itl), strict=True):
        assert mean * (1 - jitter) - 1e-9 <= value <= mean * (1 + jitter) + 1e-9


def test_jitter_keeps_the_mean_and_repeats_with_its_seed() -> None:
    def draw() -> list[Step]:
        step_time = jittered(constant(0.1, 0.01), 0.5, Random(7))
        return [step_time(1, 1) for _ in range(2000)]

    assert sum(step.itl for step in draw()) / 2000 == pytest.approx(0.01, rel=0.03)
    assert draw() == draw()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5), st.lists(st.text(max_size=5), max_size=3))
def test_an_answer_is_the_sum_of_its_tokens(limit: int, natural: int, offset: int, stops: list[str]) -> None:
    output = plan(limit, natural, offset, tuple(stops))
    full = plan(limit, natural, offset)
    assert "".join(output.tokens) == output.text
    assert len(full.tokens) == min(limit, natural) == len(pieces(full.text))
    assert full.finish_reason == ("stop" if natural <= limit else "length")
    assert "simulated" in plan(9, 9, offset).text
    if output.stop_reason is None:
        assert output == full
    else:
        assert output.stop_reason in stops
        assert output.finish_reason == "stop"
        assert full.text.startswith(output.text + output.stop_reason)
        assert not any(stop in output.text for stop in stops if stop)


@given(st.text())
def test_tokens_hold_every_visible_character(text: str) -> None:
    found = pieces(text)
    assert "".join(found) == "".join(text.split())
    assert all(0 <= token_id(piece) < 32768 for piece in found)


@given(st.text(), st.integers(1, 64))
def test_embeddings_are_unit_vectors_and_repeat(text: str, size: int) -> None:
    vector = embedding(text, size)
    assert len(vector) == size
    assert math.sqrt(sum(value * value for value in vector)) == pytest.approx(1, abs=1e-5)
    assert vector == embedding(text, size)


@given(st.lists(st.integers(0, 2), max_size=100), st.integers(0, 100))
def test_a_repeated_prefix_is_found_in_whole_blocks(prompt: list[int], shared: int) -> None:
    cache = PrefixCache(10_000)
    cache.hits(prompt)
    other = [*prompt[:shared], *([9] * (100 - shared))]
    assert cache.hits(other) == min(shared, len(prompt)) // BLOCK * BLOCK


def test_the_prefix_cache_forgets_what_was_used_longest_ago() -> None:
    cache = PrefixCache(2 * BLOCK)
    old, new = [1] * BLOCK, [2] * BLOCK
    assert (cache.hits(old), cache.hits(new), cache.hits(old)) == (0, 0, BLOCK)
    assert cache.hits([3] * BLOCK) == 0
    assert (cache.hits(new), cache.hits([3] * BLOCK)) == (0, BLOCK)


@given(st.lists(st.floats(0, 50)))
def test_buckets_are_cumulative(values: list[float]) -> None:
    histogram = Histogram((1.0, 10.0))
    for value in values:
        histogram.observe(value)
    assert histogram.buckets() == [
        ("1.0", sum(value <= 1 for value in values)),
        ("10.0", sum(value <= 10 for value in values)),
        ("+Inf", len(values)),
    ]


def test_length_buckets_end_at_the_longest_sequence() -> None:
    assert length_buckets(60) == (1, 2, 5, 10, 20, 50)


def test_flags_are_read_as_vllm_reads_them() -> None:
    given_flags = ["m", "--served-model-name", "a", "b", "--api-key=k", "--x", "1", "2"]
    assert repeat_flags(given_flags) == [
        *("m", "--served-model-name", "a", "--served-model-name", "b", "--api-key=k", "--x", "1", "2"),
    ]
    assert [spelled_out(arg) for arg in ("-n", "-dpn", "--a_b=c_d", "x_y")] == [
        *("--nnodes", "-dpn", "--a-b=c_d", "x_y"),
    ]
