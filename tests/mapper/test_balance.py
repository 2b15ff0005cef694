"""Which instance takes the next row, and how many at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.targets import Target
from aegis.mapper.balance import LONGEST_PAUSE, LOOKED_AT, Balance, Lane, Limits


def targets(count: int, *models: str) -> list[Target]:
    return [Target("h", port, models) for port in range(1, count + 1)]


def balance(*of: Target, **limits: int) -> Balance:
    made = Balance(Limits(**limits))
    made.update(of)
    return made


def lane(**limits: int) -> Lane:
    return balance(*targets(1), **limits).lanes[0]


def fill(made: Balance, model: str = "", now: float = 0.0) -> Counter[Target]:
    taken: Counter[Target] = Counter()
    while found := made.choose(model, now):
        found.take()
        taken[found.target] += 1
    return taken


@given(count=st.integers(1, 3 * LOOKED_AT), fixed=st.integers(1, 5))
def test_all_room_is_used_and_no_more(count: int, fixed: int) -> None:
    made = balance(*targets(count), fixed=fixed)
    assert fill(made) == Counter(dict.fromkeys(targets(count), fixed))
    first = made.lanes[0]
    made.release(first)
    assert made.choose("", 0.0) is first


def test_rows_are_spread_evenly() -> None:
    made = balance(*targets(3), fixed=10)
    for _ in range(7):
        found = made.choose("", 0.0)
        assert found
        found.take()
    assert sorted(each.outstanding for each in made.lanes) == [2, 2, 3]


def test_models_go_where_they_are_served() -> None:
    a, b, any_ = Target("h", 1, ("a",)), Target("h", 2, ("b", "c")), Target("h", 3, ())
    made = balance(a, b, any_, fixed=1)
    assert set(fill(made, "c")) == {b, any_}
    assert set(fill(made)) == {a}
    assert made.choose("unknown", 0.0) is None


def test_a_row_goes_elsewhere_after_a_failure_if_there_is_an_elsewhere() -> None:
    made = balance(*targets(2), fixed=1)
    first, second = made.lanes
    assert made.choose("", 0.0, avoid=first) is second
    second.take()
    assert made.choose("", 0.0, avoid=first) is None
    made.update([first.target])
    assert made.choose("", 0.0, avoid=first) is first


def test_instances_come_and_go_and_keep_what_is_known_of_them() -> None:
    made = balance(*targets(2))
    first, second = made.lanes
    first.limit = 99
    assert made.update([first.target, Target("h", 9, ())]) == [second]
    assert (second.gone, made.lanes[0], len(made.lanes)) == (True, first, 2)
    assert second.target not in made


def test_who_fails_rests_longer_each_time_and_then_gets_one_row() -> None:
    made = balance(*targets(1), fixed=8)
    failing = made.lanes[0]
    failing.hear("failed", 0.0)
    failing.hear("failed", 0.0)
    assert made.choose("", 0.0)
    now, rests = 0.0, []
    for _ in range(9):
        failing.hear("failed", now)
        failing.hear("failed", now)  # what was sent with it
        rests.append(made.wakes_at(now) - now)
        assert made.choose("", now) is None
        now += rests[-1]
        assert sum(fill(made, now=now).values()) == 1
        failing.outstanding = 0
    assert rests == sorted(rests)
    assert (rests[0], rests[-1]) == (0.5, LONGEST_PAUSE)
    failing.hear("answered", now)
    assert sum(fill(made, now=now).values()) == 8


def test_nobody_there_is_left_alone_at_once() -> None:
    made = balance(*targets(1))
    made.lanes[0].hear("unreachable", 0.0)
    assert made.choose("", 0.1) is None
    assert made.choose("", 0.6)


def test_an_instance_that_keeps_no_row_waiting_is_given_more_until_it_does() -> None:
    """A server with room for 100: the rows that it is given settle a little above."""
    one = lane(start=16)
    for _ in range(20):
        one.outstanding = int(one.limit)
        one.take()
        running = min(one.outstanding, 100)
        one.report(running, one.outstanding - running)
    assert 100 <= one.limit <= 100 + 100 / 8 + 60
    one.report(100, 3)
    kept = one.limit
    one.outstanding = 0
    one.report(50, 0)
    assert one.limit <= kept * 1.5 + 1  # it grew once at most: nothing asked for more


def test_an_instance_shared_with_others_is_given_less_but_something() -> None:
    one = lane(start=16)
    for _ in range(20):
        one.report(100, 500)
    assert one.limit == 1


def test_without_reports_it_grows_until_it_is_busy_and_then_gently() -> None:
    one = lane(start=4)
    for _ in range(40):
        while one.load(10.0) < 1:
            one.take()
        one.outstanding -= 1
        one.hear("answered", 10.0)
    assert one.limit == 44
    one.hear("busy", 11.0)
    one.hear("busy", 11.1)  # sent together
    assert one.limit == 22
    assert one.load(11.05) > 1  # a short rest
    one.outstanding = 22
    one.take()
    one.hear("answered", 12.0)
    assert 22 < one.limit < 23


def test_who_is_busy_for_long_rests_longer() -> None:
    one = lane()
    now, rests = 0.0, []
    for _ in range(2000):
        one.hear("busy", now)
        rests.append(one.paused_until - now)
        now = one.paused_until
    assert rests[0] == 0.1
    assert rests[-1] == pytest.approx(LONGEST_PAUSE)
    one.hear("answered", now)
    one.hear("busy", now)
    assert one.paused_until - now == pytest.approx(0.1)


def test_a_server_says_how_long_it_rests() -> None:
    one = lane()
    one.hear("busy", 0.0, 7.0)
    assert one.load(6.9) > 1
    assert one.load(7.1) == 0


def test_a_fixed_limit_stays() -> None:
    one = lane(fixed=5)
    one.outstanding = 4
    one.take()
    one.hear("answered", 0.0)
    one.hear("busy", 5.0)
    one.report(1, 0)
    one.report(1, 90)
    assert one.limit == 5
