"""Loads as values: arrivals, and what each process gets."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.targets import Target
from aegis.bench.processes import processes_for
from aegis.bench.prompts import Prompt
from aegis.bench.work import Work, arrivals, split
from aegis.errors import ConfigError


def work(count: int, *, concurrency: int = 0, rate: float = math.inf, output: int = 1) -> Work:
    due = () if concurrency else arrivals(count, rate)
    prompts = tuple(Prompt(str(index), output) for index in range(count))
    return Work(
        target=Target("h", 1, ("m",)), model="m", prompts=prompts, concurrency=concurrency, arrivals=due
    )


def test_arrivals_of_a_poisson_process_take_as_long_as_the_rate_says() -> None:
    times = arrivals(4000, 50.0)
    assert times[-1] == pytest.approx(80.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.1)


def test_arrivals_at_once_and_evenly() -> None:
    assert arrivals(3, math.inf) == (0.0, 0.0, 0.0)
    assert arrivals(3, 10.0, math.inf) == (0.0, 0.1, 0.2)
    assert arrivals(0, 10.0) == ()


@given(st.integers(1, 50), st.floats(0.1, 1000), st.floats(0.1, 100), st.integers(0, 9))
def test_arrivals_rise(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = arrivals(count, rate, burstiness, seed)
    assert list(times) == sorted(times)
    assert times == arrivals(count, rate, burstiness, seed)
    assert times[0] >= 0
    assert times[-1] == pytest.approx(count / rate)


@pytest.mark.parametrize(("rate", "burstiness"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, math.nan)])
def test_rates_that_are_none(rate: float, burstiness: float) -> None:
    with pytest.raises(ConfigError):
        arrivals(1, rate, burstiness)


@pytest.mark.parametrize(
    "changes", [{"concurrency": 0}, {"concurrency": 2, "arrivals": (0.0,)}, {"arrivals": (0.0, 1.0)}]
)
def test_a_load_is_closed_or_open(changes: dict[str, object]) -> None:
    options: dict[str, object] = {"concurrency": 0, "arrivals": (), **changes}
    with pytest.raises(ConfigError):
        Work(target=Target("h", 1, ()), model="m", prompts=(Prompt("a", 1),), **options)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 8)), min_size=1, max_size=5), st.integers(1, 6))
def test_every_prompt_goes_to_one_process(loads: list[tuple[int, int]], processes: int) -> None:
    works = [work(count, concurrency=concurrency) for count, concurrency in loads]
    shares = split(works, processes)
    assert 1 <= len(shares) <= processes
    assert all(shares)
    for index, whole in enumerate(works):
        parts = [share[index] for share in shares if index in share]
        sent = {
            part.first + position * part.stride: prompt
            for part in parts
            for position, prompt in enumerate(part.prompts)
        }
        assert sent == dict(enumerate(whole.prompts))
        assert sum(part.concurrency for part in parts) == whole.concurrency
        assert sorted(time for part in parts for time in part.arrivals) == sorted(whole.arrivals)


def test_one_process_per_half_a_core_of_events() -> None:
    assert processes_for([work(100, concurrency=8)], 64) == 1
    assert processes_for([work(1000, rate=10.0, output=10)], 64) == 1
    assert processes_for([work(1000, rate=1000.0, output=100)], 64) == 4
    assert processes_for([work(1000, rate=1000.0, output=100)], 2) == 2
