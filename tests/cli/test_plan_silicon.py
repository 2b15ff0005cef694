"""`aegis plan accuracy`, and `aegis plan calibrate` with a table of deployments: measured rows and a fit made by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from aegis.planner.calibrate import Calibration, own_rows, read_calibrations, write_calibrations
from aegis.planner.estimate.host import Host
from aegis.planner.problem import BACKENDS, Parallel
from aegis.planner.silicon import deployments, fitted, predict
from aegis.planner.silicon.deployments import Deployment, in_fit_half
from aegis.planner.silicon.fitted import Errors, Fitted
from aegis.planner.silicon.kriging import LEVELS, Kernel
from aegis.planner.silicon.mechanism import CLASSES, KINDS, Mechanism
from aegis.planner.silicon.predict import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Outcome

MODEL = "meta-llama/Llama-3.1-8B"
TEST, FIT = ([f"r{each}" for each in range(200) if in_fit_half(f"r{each}") is half] for half in (False, True))
BASE = Deployment(
    id=FIT[0],
    backend="vllm",
    model=MODEL,
    system="h100_sxm",
    mode="agg",
    isl=1000,
    osl=101,
    concurrency=8,
    split=Parallel(),
    ttft=100.0,
    tpot=10.0,
)
SILENT = "no figures"
NOTHING_LEFT = Errors(
    kernels=dict.fromkeys(
        ("agg", "disagg"),
        Kernel(same=(0.01,) * len(LEVELS), alike=(0.01,) * len(LEVELS), lengths=(1.0,) * 5, noise=0.001),
    ),
    residuals=(),
)
PLAIN = Mechanism(
    prefill=dict.fromkeys(KINDS, 1.0),
    decode=dict.fromkeys(KINDS, 1.0),
    host=Host(first=0.0, waits=0.0, step=0.0, request=0.0),
)
COLUMNS = (
    "id,backend,model_path,system,mode,isl,osl,silicon_concurrency,tp_size,silicon_ttft_ms,silicon_tpot_ms"
)


def measured() -> tuple[Deployment, ...]:
    """A row of the fit half, its copy, one that cannot be right, one without an answer, and twelve that count."""
    return (
        BASE,
        replace(BASE, id=TEST[0]),
        replace(BASE, id=TEST[1], tpot=11.0, split=Parallel(tp=7)),
        replace(BASE, id=TEST[2], tpot=12.0, version=SILENT),
        *(replace(BASE, id=TEST[3 + each], tpot=20.0 + each, concurrency=8 << each) for each in range(6)),
        *(
            replace(BASE, id=TEST[10 + each], tpot=30.0 + each, concurrency=8 << each, system="b200_sxm")
            for each in range(6)
        ),
    )


def guess(rows: Iterable[Deployment], **_: Any) -> Iterator[Prediction | str]:
    """All times are a fifth too long, and the interval is too small by a hair or large enough."""
    for row in rows:
        spread = 0.142 if row.system == "h100_sxm" else 0.143
        yield row.version or Prediction(row.ttft * 1.2, row.tpot * 1.2, spread, spread, spread, 3)


@pytest.fixture
def accuracy(aegis: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.setattr(deployments, "shipped", measured)
    monkeypatch.setattr(predict, "predict", guess)
    return lambda *flags: aegis("plan", "accuracy", *flags)


def test_accuracy_shows_each_system_and_engine(accuracy: Callable[..., Outcome]) -> None:
    outcome = accuracy()
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert lines[1] == [
        "b200_sxm",
        "vllm",
        "6",
        "20.0%",
        "20.0%",
        "20.0%",
        "16.7%",
        "-16.7%",
        "100%",
        "1.000",
    ]
    assert lines[2] == ["h100_sxm", "vllm", "6", "20.0%", "20.0%", "20.0%", "16.7%", "-16.7%", "0%", "1.000"]
    assert lines[3][:2] == ["TOTAL", "12"]
    assert "TPOT is off by 20.0% in the median" in outcome.out
    assert "50% lie within their 80% interval" in outcome.out


def test_accuracy_says_which_rows_count(accuracy: Callable[..., Outcome]) -> None:
    out = accuracy().out
    assert "15 measured rows of the test half" in out
    assert (
        "12 counted, 1 not, as copies of a measurement in the fit half, 1 left out by rule, 1 without" in out
    )
    assert "\n  1: the attention heads cannot be divided by tp\n  1: no figures\n" in out


def test_accuracy_of_the_users_own_system_is_by_model(accuracy: Callable[..., Outcome]) -> None:
    outcome = accuracy("--system", "b200_sxm", "--model", "llama-3.1-8b")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("SYSTEM    ENGINE  MODEL")
    assert f"b200_sxm  vllm    {MODEL}  6" in outcome.out
    assert "TOTAL" not in outcome.out
    assert "few rows: take it with care" in outcome.out


def test_accuracy_with_the_fit_half_says_so(accuracy: Callable[..., Outcome]) -> None:
    out = accuracy("--all").out
    assert "16 measured rows of both halves: 13 counted" in out
    assert "the fit half flatters" in out


def test_accuracy_as_json_has_every_figure(accuracy: Callable[..., Outcome]) -> None:
    found = json.loads(accuracy("--json").out)
    assert {name: found[name] for name in ("half", "rows", "copies", "unanswered")} == {
        "half": "test",
        "rows": 15,
        "copies": 1,
        "unanswered": {SILENT: 1},
    }
    assert found["total"]["tpot"]["mean"] == pytest.approx(0.2)
    assert [(each["system"], each["throughput"]["held"]) for each in found["groups"]] == [
        ("b200_sxm", 1.0),
        ("h100_sxm", 0.0),
    ]


def test_accuracy_of_what_was_never_measured_says_what_was(accuracy: Callable[..., Outcome]) -> None:
    outcome = accuracy("--system", "a40")
    assert outcome.code == 4
    assert "no deployment of a40 was measured" in outcome.err
    assert "b200_sxm, h100_sxm" in outcome.err
    outcome = accuracy("--system", "h100_sxm", "--model", "meta-llama/Llama-3.1-70B")
    assert outcome.code == 4
    assert f"there are some of {MODEL};" in outcome.err
    assert accuracy("--system", "h100_smx").code == 2
    assert accuracy("--model", "nonsense").code == 2


@pytest.fixture
def calibrate(
    aegis: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    known = Fitted(
        mechanisms={backend: dict.fromkeys(CLASSES, PLAIN) for backend in BACKENDS},
        ttft=NOTHING_LEFT,
        tpot=NOTHING_LEFT,
    )
    monkeypatch.setattr(fitted, "fitted", lambda: known)
    return lambda *args: aegis("plan", "calibrate", *args, "-o", str(tmp_path / "c.json"))


def table(folder: Path, *rows: str, name: str = "own.csv") -> str:
    file = folder / name
    file.write_text("\n".join((COLUMNS, *rows)) + "\n")
    return str(file)


def row(identity: str, users: int, tp: int = 1, factor: float = 1.0, system: str = "h100_sxm") -> str:
    """A server that is slower than predicted, by a factor."""
    return f"{identity},vllm,{MODEL},{system},agg,1000,101,{users},{tp},{200 * factor * users},{20 * factor + users}"


def test_a_table_of_deployments_becomes_rows_that_plans_read(
    calibrate: Callable[..., Outcome], tmp_path: Path
) -> None:
    rows = [row(f"{tp}-{users}", users, tp, 2.0 / tp) for tp in (1, 2) for users in (1, 2, 4)]
    outcome = calibrate(table(tmp_path, *rows, rows[0]))
    assert outcome.code == 0, outcome.err
    assert "6 of 7 measured rows count\n  1 not: the same measurement once more\n" in outcome.out
    assert f"{MODEL} on h100_sxm with vllm:\n6 rows of 2 deployments\nTPOT is off by " in outcome.out
    assert "with your other rows, " in outcome.out
    (known,) = read_calibrations(tmp_path / "c.json")
    assert (known.system, known.backend, known.model, known.origin) == ("h100_sxm", "vllm", MODEL, "own.csv")
    assert known.error_after < known.error_before
    ttft, tpot = own_rows((known,))
    assert [each.id for each in tpot] == ["1-1", "1-2", "1-4", "2-1", "2-2", "2-4"]
    assert [each.left > 0 for each in ttft] == [True] * 6


def test_rows_replace_those_of_the_same_and_leave_others(
    calibrate: Callable[..., Outcome], tmp_path: Path
) -> None:
    write_calibrations(
        tmp_path / "c.json", (Calibration(system="a100_sxm", backend="vllm", model="m", prefill=2.0),)
    )
    assert calibrate(table(tmp_path, row("a", 1), row("b", 2))).code == 0
    outcome = calibrate(table(tmp_path, row("c", 4), name="new.csv"))
    assert "1 row of 1 deployment\n" in outcome.out
    assert "in place of 2 rows of own.csv" in outcome.out
    factors, rows = read_calibrations(tmp_path / "c.json")
    assert factors.prefill == 2.0
    assert [each.id for each in rows.tpot] == ["c"]


def test_what_is_wrong_with_a_table_is_told(calibrate: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = calibrate(table(tmp_path, row("a", 1, tp=7)))
    assert outcome.code == 2
    assert "none of 1 measured rows counts" in outcome.err
    assert "the attention heads cannot be divided by tp" in outcome.err
    outcome = calibrate(table(tmp_path, row("a", 1).replace("1000", "many")))
    assert "own.csv:2: isl is 'many'" in outcome.err
    (tmp_path / "load.csv").write_text("concurrency,ttft,tpot\n1,2,3\n")
    outcome = calibrate(table(tmp_path, row("a", 1)), str(tmp_path / "load.csv"))
    assert "load.csv' does not go with" in outcome.err
    assert not (tmp_path / "c.json").exists()


def test_plans_read_a_sites_rows_with_those_that_come_along(
    aegis: Callable[..., Outcome], tmp_path: Path
) -> None:
    load = ("--batch", "4", "--isl", "1000", "--osl", "101", "--json")
    asked = ("plan", "estimate", "--model", MODEL, "--system", "h100_sxm", "--backend", "vllm", *load)
    plain = json.loads(aegis(*asked).out)
    users = (1, 2, 4, 8)
    rows = [
        f"{each},vllm,{MODEL},h100_sxm,agg,1000,101,{each},1,{3 * plain['ttft']},{3 * plain['tpot'] + each}"
        for each in users
    ]
    file = str(tmp_path / "c.json")
    assert aegis("plan", "calibrate", table(tmp_path, *rows), "-o", file).code == 0
    own = json.loads(aegis(*asked, "--calibration", file).out)
    assert own["measured"] == plain["measured"] + len(users)
    for name in ("ttft", "tpot"):
        assert 2 < own[name] / plain[name] < 3.5
        wide, narrow = (each[f"{name}_high"] / each[f"{name}_low"] for each in (plain, own))
        assert narrow < wide
    assert any("4 measured rows of one's own, own.csv" in note for note in own["notes"])
