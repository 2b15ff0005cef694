"""Continuous batching with the step times of a plan: pure, in a time of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.engines.simulator.steps import Group, Sequence, at, milliseconds
from aegis.errors import ConfigError
from aegis.spec.step_times import Grid, StepTimes, read_step_times

from .conftest import CHAT, Sim, chat, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LENGTH = 100
# Decoding takes 10 ms and 1 ms for each request and 0.01 ms for each token of length; prefilling 0.1 ms a token.
TIMES = StepTimes(
    context_tokens=64,
    decode_length=LENGTH,
    decode=Grid(rows=(1, 8), columns=(0, LENGTH), ms=((11.0, 12.0), (18.0, 19.0))),
    mixed=Grid(rows=(0, 64), columns=(0, 8), ms=((0.0, 19.0), (6.4, 25.4))),
)


def wide(**changes: Any) -> StepTimes:
    values = {name: getattr(TIMES, name) for name in StepTimes.__struct_fields__}
    return StepTimes(**{**values, **changes})


def tokens_of(group: Group) -> float:
    """Take one step; return its milliseconds."""
    step = group.step()
    assert step is not None
    group.finish(step)
    return step.seconds * 1000


@given(st.integers(1, 8), st.floats(0, 300), st.integers(0, 200))
def test_straight_lines_lie_between_the_points_and_beyond(
    running: int, length: float, prefilled: int
) -> None:
    decode = 10 + running + 0.01 * length
    assert at(TIMES.decode, running, length) == pytest.approx(decode)
    if prefilled:
        mixed = 0.1 * prefilled + 19.0 / 8 * running + 0.01 * (length - LENGTH)
        assert milliseconds(TIMES, prefilled, running, length) == pytest.approx(max(0.0, mixed))


def test_a_grid_of_one_point_is_a_constant() -> None:
    one = Grid(rows=(4,), columns=(7,), ms=((3.0,),))
    assert at(one, 100, 0) == 3.0


def test_a_prompt_is_prefilled_in_chunks_and_gives_the_first_token() -> None:
    group = Group(TIMES)
    request = Sequence(prompt=100, output=3)
    group.add(request)
    assert tokens_of(group) == pytest.approx(6.4)
    assert request.made == 0
    assert tokens_of(group) == pytest.approx(3.6)
    assert request.made == 1
    assert tokens_of(group) == pytest.approx(10 + 1 + 1.01)
    assert tokens_of(group) == pytest.approx(10 + 1 + 1.02)
    assert (request.made, request.left, group.step(), group.requests) == (3, 0, None, 0)


def test_decoding_goes_on_while_others_prefill() -> None:
    group = Group(TIMES)
    first, second = Sequence(prompt=64, output=9), Sequence(prompt=64, output=9)
    group.add(first)
    tokens_of(group)
    group.add(second)
    assert tokens_of(group) == pytest.approx(6.4 + 19 / 8 + 0.01 * (65 - LENGTH))
    assert (first.made, second.made) == (2, 1)


def test_two_prompts_share_a_step_in_order_of_arrival() -> None:
    group = Group(TIMES)
    requests = [Sequence(prompt=40, output=1) for _ in range(3)]
    for each in requests:
        group.add(each)
    tokens_of(group)
    assert [each.made for each in requests] == [1, 0, 0]
    tokens_of(group)
    assert [each.made for each in requests] == [1, 1, 1]  # 16 of the second, 40 of the third


def test_cached_tokens_are_skipped_but_the_last() -> None:
    group = Group(TIMES)
    group.add(Sequence(prompt=64, cached=64, output=1))
    assert tokens_of(group) == pytest.approx(0.1)


def test_accepted_drafts_make_more_tokens_of_a_step() -> None:
    group = Group(wide(tokens_per_step=1.5))
    request = Sequence(prompt=10, output=8)
    group.add(request)
    made = []
    while group.step():
        tokens_of(group)
        made.append(request.made)
    assert made == [1, 2, 4, 5, 7, 8]


def test_who_leaves_is_not_waited_for() -> None:
    group = Group(TIMES)
    requests = [Sequence(prompt=10, output=5) for _ in range(2)]
    for each in requests:
        group.add(each)
    tokens_of(group)
    step = group.step()
    group.remove(requests[0])
    assert step
    group.finish(step)
    assert [each.made for each in requests] == [1, 2]
    group.remove(requests[1])
    assert group.step() is None


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=12),
    st.floats(1, 3),
)
def test_every_request_gets_its_tokens_and_wakes_for_the_last(
    asked: list[tuple[int, int, int]], per_step: float
) -> None:
    group = Group(wide(tokens_per_step=per_step))
    requests = [Sequence(prompt=prompt, output=output, rows=rows) for prompt, output, rows in asked]
    woken: list[int] = []
    for index, request in enumerate(requests):
        request.each_token = False
        request.wake = lambda index=index: woken.append(index)
        group.add(request)
    while group.step():
        assert tokens_of(group) >= 0
    assert [request.made for request in requests] == [output for _, output, _ in asked]
    for index, (_, output, _) in enumerate(asked):
        assert 1 <= woken.count(index) <= min(2, output)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "Invalid enum value 'other'"),
        ({"decode": {"rows": [2, 1], "columns": [1], "ms": [[1.0], [1.0]]}}, "`rows` must ascend"),
        ({"mixed": {"rows": [1], "columns": [1], "ms": [[1.0, 2.0]]}}, "1 rows of 1 numbers"),
        ({"groups": 0}, "groups"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    grid = {"rows": [1], "columns": [1], "ms": [[1.0]]}
    good = {
        "format": "aegis-step-times-1",
        "context_tokens": 1,
        "decode_length": 1,
        "decode": grid,
        "mixed": grid,
    }
    file = tmp_path / "step_times.json"
    file.write_text(json.dumps(good))
    assert read_step_times(file).groups == 1
    file.write_text(json.dumps({**good, **change}))
    with pytest.raises(ConfigError) as caught:
        read_step_times(file)
    assert said in caught.value.message
    assert str(file) in caught.value.message


def test_a_server_says_what_is_wrong_with_its_file(sim: Callable[..., Sim], tmp_path: Path) -> None:
    server = sim("--step-times", str(tmp_path / "none.json"))
    assert server.exit_code() == 2
    assert "No such file" in server.log
    both = sim("--step-times", str(tmp_path / "none.json"), "--ttft-ms", "1")
    assert both.exit_code() == 2
    assert "leave out --ttft-ms" in both.log


@pytest.fixture
def step_file(tmp_path: Path) -> Path:
    file = tmp_path / "times.json"
    file.write_bytes(msgspec.json.encode(wide(groups=2)))
    return file


def test_a_server_in_step_answers_as_any_other(sim: Callable[..., Sim], step_file: Path) -> None:
    server = sim("--step-times", str(step_file), "--time-scale", "0.1", "--jitter", "0.1")
    plain = server.ask(CHAT, chat(20))
    assert plain.json["usage"]["completion_tokens"] == 20
    assert len(server.ask(CHAT, chat(20, stream=True, n=2)).events) == 2 + 2 * 20
    assert server.ask("/v1/embeddings", {"input": ["a b", "c"]}).status == 200
    assert server.metric("generation_tokens_total") == 20 + 2 * 20
    assert server.metric("request_success_total") == 1 + 2 + 1  # each choice counts
    assert server.metric("num_requests_running") == 0


def test_a_client_that_leaves_frees_its_place_in_the_step(sim: Callable[..., Sim], step_file: Path) -> None:
    server = sim("--step-times", str(step_file), "--max-num-seqs", "1")
    held = [server.send(CHAT, chat(100_000 // 4, stream=True)) for _ in range(2)]  # one for each group
    wait_until(server.running(2))
    for each in held:
        each.close()
    wait_until(server.running(0))
    assert server.ask(CHAT, chat(2)).status == 200


def test_nothing_moves_while_the_engine_hangs(sim: Callable[..., Sim], step_file: Path) -> None:
    server = sim("--step-times", str(step_file))
    server.ask("/sim/fault", {"hang": True})
    waiting = server.send(CHAT, chat(3))
    wait_until(server.running(1))
    assert server.metric("generation_tokens_total") == 0
    server.ask("/sim/fault", {"hang": False})
    assert waiting.getresponse().status == 200
    waiting.close()
