"""How a sweep finds its loads: against servers whose saturation is known."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aegis.bench.sweep.search import Rules, Seen, end_of, knee, next_level, saturated

LIMITS = st.floats(0.5, 300)
RULES = Rules(most=256)


def server(limit: float, noise: float = 0.0, breaks: float = math.inf, target: float = 0.0) -> object:
    """A server that holds `limit` requests at once; more of them wait. It fails from `breaks` on."""

    def at(level: float) -> Seen:
        busy = min(level, limit) * (1 + noise * math.sin(37 * level))
        latency = level / min(level, limit)
        return Seen(level, busy, latency, meets=latency <= target, broken=level >= breaks)

    return at


def sweep(at: object, rules: Rules = RULES, seen: tuple[Seen, ...] = ()) -> list[Seen]:
    found = list(seen)
    while (level := next_level(found, rules)) is not None:
        assert level not in {each.level for each in found}
        assert rules.start <= level <= rules.most
        found.append(at(level))  # type: ignore[operator]
        assert len(found) < 40
    return found


@given(limit=LIMITS, noise=st.floats(0, 0.02))
def test_it_ends_and_finds_the_knee(limit: float, noise: float) -> None:
    found = sweep(server(limit, noise))
    levels = [each.level for each in found]
    assert all(level == int(level) for level in levels)
    at = knee(sorted(found)).level
    most = min(limit, RULES.most)
    assert 0.85 * most - 1 <= at <= 1.5 * most + 1
    assert max(each.throughput for each in found) >= 0.9 * most or max(levels) == RULES.most


@given(limit=LIMITS, rates=st.floats(0.01, 4))
def test_rates_are_found_alike(limit: float, rates: float) -> None:
    rules = Rules(start=rates, most=rates * 2**12, whole=False)
    found = sweep(server(limit), rules)
    assert end_of(found, rules).startswith(("saturated from", "still growing"))


@given(limit=LIMITS, cut=st.integers(0, 12))
def test_a_sweep_that_was_cut_off_goes_on_alike(limit: float, cut: int) -> None:
    at = server(limit)
    whole = sweep(at)
    assert sweep(at, seen=tuple(whole[:cut])) == whole


@given(limit=LIMITS, breaks=st.integers(1, 300))
def test_nothing_is_measured_far_beyond_a_load_that_breaks_a_server(limit: float, breaks: int) -> None:
    found = sweep(server(limit, breaks=breaks))
    broken = [each.level for each in found if each.broken]
    assert max((each.level for each in found), default=0) < 2 * max(breaks, 1) or not broken
    if broken:
        assert end_of(found, RULES) == f"requests fail at {max(broken):g}"


@given(limit=st.floats(8, 200), target=st.floats(1.05, 3))
def test_the_edge_of_the_targets_is_closed_in_on(limit: float, target: float) -> None:
    found = sweep(server(limit, target=target))
    meeting = max(each.level for each in found if each.meets)
    missing = min((each.level for each in found if not each.meets), default=None)
    if missing is not None:
        assert missing / meeting <= 1.5 or missing - meeting == 1


def test_levels_that_were_asked_for_stay() -> None:
    at = server(16.0)
    given_before = tuple(at(level) for level in (3.0, 100.0))  # type: ignore[operator]
    found = {each.level for each in sweep(at, seen=given_before)}
    assert {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 3.0, 100.0} <= found


def test_saturation_is_less_throughput_at_more_waiting() -> None:
    before = Seen(4, 100, 1.0)
    assert saturated(before, Seen(8, 104, 1.9), RULES)
    assert not saturated(before, Seen(8, 106, 1.9), RULES)
    assert not saturated(before, Seen(8, 104, 1.1), RULES)  # it may be the client
    assert next_level([], RULES) == 1.0
    assert end_of([], RULES) == "not complete"
    assert end_of([Seen(1, 1, 1)], Rules(most=1)) == "still growing at 1"
