"""What a plan's configuration delivers at other loads, and the files that it may come in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError, NotFoundError
from aegis.planner.calibrate import Calibration
from aegis.planner.predict import Configuration, Predictor, read_configuration
from aegis.planner.problem import Parallel
from aegis.planner.task import Formats

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

from tests.cli.conftest import aegis

__all__ = ["aegis"]

LOAD = ("--model", "LLAMA3.1_8B", "--isl", "1000", "--osl", "100")
PLAN = ("plan", "default", *LOAD, "--total-gpus", "4", "--system", "h100_sxm", "--tpot", "30")
LLAMA = Configuration(
    model="LLAMA3.1_8B",
    system="h100_sxm",
    backend="vllm",
    version="",
    split=Parallel(tp=2),
    formats=Formats(gemm="bfloat16", kv_cache="bfloat16"),
    context_tokens=2000,
    batch=32,
)


@pytest.fixture(scope="module")
def llama() -> Predictor:
    return Predictor(LLAMA)


def test_a_plan_is_predicted_as_it_was_planned(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(aegis(*PLAN, "--json").out)
    row = json.loads(file.read_text())["agg"][0]
    found = Predictor(read_configuration(file)).at_concurrency(row["concurrency"], isl=1000, osl=100)
    assert found.ttft == pytest.approx(row["ttft"], rel=1e-4)
    assert found.tpot == pytest.approx(row["tpot"], rel=1e-4)
    assert found.requests_per_s == pytest.approx(row["seq/s"], rel=1e-4)


def test_all_files_of_a_plan_say_the_same(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(aegis(*PLAN, "--json", "--save-dir", str(tmp_path / "saved")).out)
    (folder,) = (tmp_path / "saved").iterdir()
    asked = read_configuration(file)
    assert read_configuration(folder) == asked
    assert read_configuration(folder / "agg" / "best_config_topn.csv") == asked


def test_an_estimate_is_a_plan_without_a_limit(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "estimate.json"
    file.write_text(aegis("plan", "estimate", *LOAD, "--system", "h100_sxm", "--batch", "16", "--json").out)
    known = read_configuration(file)
    found = Predictor(known).at_concurrency(16, isl=1000, osl=100)
    assert found.tpot == pytest.approx(json.loads(file.read_text())["tpot"], rel=1e-6)
    assert (known.batch, known.model) == (0, "LLAMA3.1_8B")


def test_more_users_than_the_server_takes_wait(llama: Predictor) -> None:
    full, crowded = (llama.at_concurrency(users, isl=1000, osl=100) for users in (32, 64))
    assert crowded.requests_per_s == full.requests_per_s
    assert crowded.tpot == full.tpot
    assert crowded.ttft > full.ttft
    assert crowded.latency * crowded.requests_per_s / 1000 == pytest.approx(64)


def test_a_rate_is_that_of_so_many_users(llama: Predictor) -> None:
    users = llama.at_concurrency(8, isl=1000, osl=100)
    found = llama.at_rate(users.requests_per_s, isl=1000, osl=100)
    assert found
    assert found.concurrency == pytest.approx(8, rel=0.05)
    assert found.tpot == pytest.approx(users.tpot, rel=0.05)
    idle = llama.at_rate(0.001, isl=1000, osl=100)
    assert idle
    assert idle.ttft == llama.at_concurrency(1, isl=1000, osl=100).ttft
    assert llama.at_rate(1e6, isl=1000, osl=100) is None


def test_factors_are_those_of_the_system_engine_and_model(llama: Predictor) -> None:
    plain = llama.at_concurrency(4, isl=1000, osl=100)
    of_any = Calibration(decode=((1.0, 3.0),))
    own = Calibration(system="h100_sxm", backend="vllm", model="llama3.1_8b", decode=((1.0, 2.0),))
    other = Calibration(system="a100_sxm", backend="vllm", model="LLAMA3.1_8B", decode=((1.0, 5.0),))
    slower = Predictor(LLAMA, (of_any, other, own)).at_concurrency(1, isl=1000, osl=100)
    assert slower.tpot == pytest.approx(2 * llama.at_concurrency(1, isl=1000, osl=100).tpot)
    untouched = Predictor(LLAMA, (other,))
    assert untouched.at_concurrency(4, isl=1000, osl=100) == plain
    assert any("not calibrated" in note for note in untouched.notes)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", "{", "p.json"),
        ("p.json", "[]", "no plan"),
        ("p.json", '{"agg": []}', "no configuration"),
        ("p.json", '{"disagg": [{"(p)bs": 1}]}', "no aggregated configuration"),
        ("p.json", '{"agg": [{"bs": 1}]}', "no plan: KeyError"),
        ("p.json", '{"split": {}}', "no plan: KeyError"),
        ("p.csv", "a,b\n1,2\n", "no aggregated configuration"),
        ("p.csv", "", "no configuration"),
    ],
)
def test_what_is_no_plan_is_told(name: str, content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_configuration(file)
    with pytest.raises(NotFoundError):
        read_configuration(tmp_path / f"none{file.suffix}")
