"""`aegis bench compare`: its words, its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aegis.bench.sweep.document import write
from tests.bench.sweeps import point, sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

GOLDEN = """\
A a
B b

                   BEFORE    AFTER     CHANGE  NOISE
concurrency 1
  requests/s       6.25      6.25      +0.0%   2.4%   within noise
  output tokens/s  100       100       +0.0%   2.4%   within noise
  TTFT mean        100 ms    100 ms    +0.0%   2.4%   within noise
  TTFT p99         100 ms    100 ms    +0.0%   2.4%   within noise
  TPOT mean        100 ms    100 ms    +0.0%   2.4%   within noise
  TPOT p99         100 ms    100 ms    +0.0%   2.4%   within noise
  E2E mean         100 ms    100 ms    +0.0%   2.4%   within noise
  failed requests  0         2         +2             worse
concurrency 2
  requests/s       11.25     9.375     -16.7%  2.0%   worse
  output tokens/s  180       150       -16.7%  2.0%   worse
  TTFT mean        55.56 ms  66.67 ms  +20.0%  2.9%   worse
  TTFT p99         55.56 ms  66.67 ms  +20.0%  2.9%   worse
  TPOT mean        55.56 ms  66.67 ms  +20.0%  2.9%   worse
  TPOT p99         55.56 ms  66.67 ms  +20.0%  2.9%   worse
  E2E mean         55.56 ms  66.67 ms  +20.0%  2.9%   worse
  failed requests  0         0         +0             within noise
concurrency 4
  requests/s       12.5      12.62     +1.0%   5.0%?  within noise
  output tokens/s  200       202       +1.0%   5.0%?  within noise
  TTFT mean        50 ms     20 ms     -60.0%  5.0%?  better
  TTFT p99         50 ms     49.5 ms   -1.0%   5.0%?  within noise
  TPOT mean        50 ms     49.5 ms   -1.0%   5.0%?  within noise
  TPOT p99         50 ms     49.5 ms   -1.0%   5.0%?  within noise
  E2E mean         50 ms     49.5 ms   -1.0%   5.0%?  within noise
  failed requests  0         0         +0             within noise
at most
  requests/s       12.5      12.62     +1.0%   5.0%?  within noise
  output tokens/s  200       202       +1.0%   5.0%?  within noise

only in A: concurrency 8
1 better, 8 worse, 17 within noise
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    before = sweep(point(1, 100), point(2, 180), point(4, 200), point(8, 190))
    after = sweep(
        point(1, 100, failed=2), point(2, 150), point(4, 202, error=None, figures={"mean_ttft_ms": 20.0})
    )
    for name, each in (("a", before), ("b", after)):
        (tmp_path / name).mkdir()
        write(each, tmp_path / name / "sweep.json")
    return tmp_path


def test_every_line_has_its_change_its_noise_and_its_verdict(
    aegis: Callable[..., Outcome], here: Path
) -> None:
    outcome = aegis("bench", "compare", "a", "b")
    assert (outcome.out, outcome.err, outcome.code) == (GOLDEN, "", 0)


def test_ci_can_fail_by_it(aegis: Callable[..., Outcome], here: Path) -> None:
    outcome = aegis("bench", "compare", "a", "b", "--fail-above", "18")
    assert outcome.code == 1
    assert "concurrency 2: TTFT mean +20.0%" in outcome.err
    assert "output tokens/s" not in outcome.err
    assert aegis("bench", "compare", "b", "b", "--fail-above", "0").code == 0
    assert aegis("bench", "compare", "b", "a", "--fail-above", "200").code == 0


def test_json_has_the_same(aegis: Callable[..., Outcome], here: Path) -> None:
    found = json.loads(aegis("bench", "compare", "a", "b", "--format", "json", "--every-figure").out)
    by = {(each["load"], each["figure"]): each for each in found["changes"]}
    assert by["concurrency 2", "output_throughput"]["verdict"] == "worse"
    assert ("concurrency 2", "p90_itl_ms") in by
    assert found["only_before"] == ["concurrency 8"]


def test_what_cannot_be_compared(aegis: Callable[..., Outcome], here: Path) -> None:
    (here / "c").mkdir()
    write(sweep(), here / "c" / "sweep.json")
    outcome = aegis("bench", "compare", "a", "c")
    assert outcome.code == 1
    assert "no load that both have" in outcome.err
    assert aegis("bench", "compare", "a", "none").code == 4
