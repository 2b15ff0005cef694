"""What a sweep is written as: its file, its table, its page."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from aegis.bench.sweep.document import Targets, kept, read, write
from aegis.bench.sweep.page import page
from aegis.bench.sweep.table import csv_text
from aegis.errors import ConfigError
from tests.bench.sweeps import PLANNED, QUESTION, TARGETS, planned, point, sweep

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.bench.sweep.document import Sweep

SCRIPT = '</script><script>alert("x")</script><!--'


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def drawn(text: str) -> Any:
    found = re.search(r'id="sweep">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture
def example() -> Sweep:
    points = planned(1, 500), planned(2, 900), point(4, 1000, bottleneck="busy"), point(8, 400, failed=30)
    return sweep(*points, targets=TARGETS, plan=PLANNED, gpus=2, end="saturated from 2 on")


def test_what_is_written_is_read(example: Sweep, tmp_path: Path) -> None:
    write(example, tmp_path / "sweep.json")
    assert read(tmp_path / "sweep.json") == example


def test_points_of_the_same_question_are_kept_but_for_those_that_failed(
    example: Sweep, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.json"
    assert kept(file, QUESTION) == ()
    write(example, file)
    assert [each.level for each in kept(file, QUESTION)] == [1, 2, 4]
    with pytest.raises(ConfigError, match="output_tokens was 16, is 32") as error:
        kept(file, replace(QUESTION, output_tokens=32))
    assert "--output" in (error.value.hint or "")


@pytest.mark.parametrize("content", ["", "{", '{"format": "other"}', "[1]"])
def test_what_is_no_sweep_is_told(content: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="is no sweep"):
        read(file)


def test_the_table_has_a_row_for_each_point(example: Sweep) -> None:
    first, second, third, last = rows(csv_text(example))
    assert (first["concurrency"], first["rate"], first["servers"]) == ("1", "", "2")
    assert float(first["tokens_per_s_user"]) == 50
    assert float(first["tokens_per_s_gpu"]) == 125
    assert float(first["ratio_mean_tpot_ms"]) == 2
    assert float(first["ratio_output_throughput"]) == 0.5
    assert float(first["throughput_noise"]) == 0.005
    assert (first["sla"], second["sla"], third["sla"]) == ("0", "0", "1")
    assert (third["bottleneck"], third["ratio_mean_tpot_ms"]) == ("busy", "")
    assert last["failed"] == "30"


def test_the_best_point_keeps_to_the_targets(example: Sweep) -> None:
    assert example.best == example.points[2]
    assert replace(example, targets=Targets()).best is None
    assert replace(example, targets=Targets(ttft=1.0)).best is None
    strict = replace(example, targets=Targets(tpot=11.0, statistic="p99"))
    assert strict.best
    assert strict.best.level == 2 + 2


def test_a_server_that_answers_nothing_breaks_a_point() -> None:
    whole = point(1, 100)
    assert not whole.broken
    lost = replace(whole.servers[0], figures={**whole.servers[0].figures, "completed": 0.0})
    assert replace(whole, servers=(lost, whole.servers[1])).broken
    assert point(1, 100, failed=4).broken
    assert not point(1, 100, failed=3).broken


def test_the_page_needs_nothing_else_and_shows_all(example: Sweep) -> None:
    text = page(example)
    assert not re.findall(r"(?:src|href)=", text)
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "{{" not in text
    shown = drawn(text)
    assert [each["level"] for each in shown["points"]] == [1, 2, 4, 8]
    assert [each["sla"] for each in shown["points"]] == [False, False, True, False]
    assert shown["points"][0]["ratios"]["mean_ttft_ms"] == 2
    assert len(shown["rows"][0]) == len(shown["head"])
    notes = " ".join(shown["notes"])
    assert "saturated from 2 on" in notes
    assert "concurrency 4: busy (!)" in notes
    assert "plan: estimated" in notes


def test_hostile_names_stay_text(example: Sweep) -> None:
    hostile = replace(example, question=replace(QUESTION, model=SCRIPT, dataset="jsonl", path=f"/x/{SCRIPT}"))
    text = page(hostile)
    assert text.count("<script") == page(example).count("<script")
    assert drawn(text)["title"] == SCRIPT
    assert "<!--" not in text


def test_a_sweep_without_points_can_be_drawn() -> None:
    assert csv_text(sweep()) == ""
    assert drawn(page(sweep()))["points"] == []
