"""The picture of a plan: a PNG, whatever the plan holds."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from tests.planner.emit.conftest import HOSTILE, candidate, pair, plan_of

from aegis.planner.problem import Targets
from aegis.planner.report.curves import picture_of
from aegis.planner.report.picture import DPI, SIZE, picture, plain

if TYPE_CHECKING:
    from aegis.planner.plan import Plan


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def without_answers(plan: Plan) -> Plan:
    empty = [replace(each, candidates=(), frontier=(), best=(), why_none="too slow") for each in plan.answers]
    return replace(plan, answers=tuple(empty))


@pytest.mark.parametrize(
    "shown",
    [
        plan_of(pair(), candidate()),
        plan_of(candidate(), model=HOSTILE, name=HOSTILE),
        without_answers(plan_of(candidate())),
        plan_of(candidate(), targets=Targets(request_latency=5000.0)),
    ],
    ids=["two modes", "hostile names", "nothing found", "no TPOT"],
)
def test_every_plan_has_a_picture(shown: Plan) -> None:
    assert size(picture(shown)) == tuple(round(inches * DPI) for inches in SIZE)


def test_a_dollar_begins_no_formula() -> None:
    assert plain("a$b\nc") == r"a\$b c"


def test_curves_say_what_was_asked_and_found() -> None:
    split, whole = pair(), candidate()
    shown = picture_of(plan_of(split, whole))
    assert shown.title == "QWEN3_32B"
    assert shown.subtitle == "32 x h200_sxm · 3000 input, 512 output tokens · TTFT ≤ 1000 ms · TPOT ≤ 20 ms"
    assert shown.target == 50
    assert [curve.name for curve in shown.curves] == ["disagg", "agg"]
    assert [curve.chosen for curve in shown.curves] == [True, False]
    facts = dict(shown.curves[0].best[0].facts)
    assert facts["prefill workers"] == "4 x tp1pp1, batch 1, 30.1 GiB"
    assert facts["decode workers"] == "1 x tp4pp1, batch 64, 30.1 GiB"
    assert facts["requests at a time"] == "256 = 64 x 4"
    assert dict(shown.curves[1].best[0].facts)["context tokens of a step"] == "3000"


def test_why_nothing_was_found_is_among_the_notes() -> None:
    assert picture_of(without_answers(plan_of(candidate()))).notes == ("too slow",)


def test_letters_that_no_font_has_are_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    shown = plan_of(candidate())
    named = tuple(replace(each, model_name="名前") for each in shown.experiments)
    picture(replace(shown, experiments=named))
    assert not recwarn.list


def test_what_idle_gpus_cost_is_among_the_facts() -> None:
    shown = plan_of(candidate())
    (curve,) = picture_of(shown).curves
    facts = dict(curve.best[0].facts)
    whole = shown.answers[0].best[0].cluster_throughput(shown.experiments[0].total_gpus)
    assert facts["of all GPUs"] == f"{whole:.2f}"
