from __future__ import annotations

from itertools import pairwise

from aegis.planner.estimator import AIC_012, CORRECTED
from aegis.planner.problem import Load, Targets
from aegis.planner.search.targets import pairs

LOAD = Load(isl=3000, osl=501)


def test_the_whole_frontier_is_swept() -> None:
    tpots = [pair.tpot for pair in pairs(LOAD, Targets(ttft=1000, tpot=10), AIC_012)]
    assert (tpots[0], tpots[-1], len(tpots)) == (1, 295, 75)


def test_the_users_own_target_is_one_of_those_that_are_swept() -> None:
    assert 12.5 in {pair.tpot for pair in pairs(LOAD, Targets(tpot=12.5), CORRECTED)}
    assert 12.5 not in {pair.tpot for pair in pairs(LOAD, Targets(tpot=12.5), AIC_012)}


def test_a_request_latency_is_split_between_the_first_token_and_the_others() -> None:
    found = pairs(LOAD, Targets(ttft=4000, request_latency=12000), AIC_012)
    assert all(abs(pair.ttft + 500 * pair.tpot - 12000) < 1e-6 for pair in found)
    assert 4000 in {pair.ttft for pair in found}
    assert 0.7 * 12000 in {pair.ttft for pair in found}  # beyond the usual ones


def test_a_request_may_spend_little_on_its_first_token() -> None:
    asked = Targets(request_latency=3000)
    first = [pair.ttft for pair in pairs(LOAD, asked, CORRECTED)]
    assert first[0] < 10
    assert max(later / sooner for sooner, later in pairwise(first)) < 1.2
    assert min(pair.ttft for pair in pairs(LOAD, asked, AIC_012)) == 300
