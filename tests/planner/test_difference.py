"""Two saved plans side by side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from aegis import plan
from aegis.errors import ConfigError, NotFoundError
from aegis.planner.difference import Change, differences, load

if TYPE_CHECKING:
    from pathlib import Path

ROW: dict[str, Any] = {"tp": 4, "bs": 8, "ttft": 100.0, "tpot": 10.0, "tokens/s/gpu": 500.0, "memory": 20.0}


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    (found,) = differences({"agg": [before]}, {"agg": [after]})
    return {each.column: each for each in (*found.settings, *found.figures)}


def test_settings_and_figures_are_told_apart() -> None:
    (found,) = differences({"agg": [ROW]}, {"agg": [ROW | {"tp": 8, "tpot": 5.0, "ttft": 110.0}]})
    assert [each.column for each in found.settings] == ["tp"]
    assert [(each.column, each.relative) for each in found.figures] == [
        ("ttft", pytest.approx(0.1)),
        ("tpot", -0.5),
    ]


def test_equal_plans_differ_in_nothing() -> None:
    assert not changed(ROW, dict(ROW))


def test_a_change_from_nothing_has_no_percentage() -> None:
    assert changed(ROW | {"ttft": 0.0}, ROW)["ttft"].relative is None
    assert changed(ROW | {"backend": "vllm"}, ROW | {"backend": "sglang"})["backend"].relative is None


def test_columns_of_one_form_alone_are_no_difference() -> None:
    assert not changed(ROW | {"cp": 1, "request_latency": 900.0}, ROW)
    assert not changed(ROW, ROW | {"prefix": 0})


def test_another_mode_is_told() -> None:
    disagg = {"(p)tp": 1, "(d)bs": 64, "ttft": 100.0, "tpot": 9.0}
    found = changed(ROW, disagg)
    assert (found["mode"].before, found["mode"].after) == ("agg", "disagg")
    assert set(found) == {"mode", "tpot"}


def test_only_the_best_counts_and_names_are_matched() -> None:
    found = differences({"a": [ROW, {"tp": 1}], "b": []}, {"a": [ROW, {"tp": 2}], "c": [ROW]})
    assert [(each.experiment, each.only_in) for each in found] == [("a", None), ("b", None), ("c", "B")]
    assert not any(each.settings or each.figures for each in found)


def test_a_saved_folder_and_json_of_one_plan_are_the_same(tmp_path: Path) -> None:
    from aegis.planner.emit import save  # noqa: PLC0415 - draws pictures

    found = plan("LLAMA3.1_8B", 8, "h100_sxm", isl=2000, osl=300, estimator="guide")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(found.to_dict()))
    folder = save(found, tmp_path / "saved")
    for one, other in ((file, folder), (folder, file)):
        assert not any(
            each.settings or each.figures or each.only_in for each in differences(load(one), load(other))
        )


def test_what_is_no_plan_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="best_config_topn"):
        load(tmp_path)
    for text in ("", "{", "[]", '{"h200_sxm": {"agg": []}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError):
            load(tmp_path / "x.json")
