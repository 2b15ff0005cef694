"""The Grafana dashboard: whatever it asks for is on a page that was recorded, or that we write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aegis.engines import engine
from aegis.gateway.balance import Balance, Policy
from aegis.gateway.metrics import Metrics
from aegis.registry.store import Store
from tests.registry.conftest import Clock, running

ROOT = Path(__file__).parents[1]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana" / "aegis.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel.get("targets", ())
]
TYPE = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)
LABELS = re.compile(r'([a-z_]+)="')
QUOTED = re.compile(r'"[^"]*"')
NAME = re.compile(r"\b(?:vllm:|sglang:|aegis_)\w+")
GROUPING = re.compile(r"\b(?:by|without) \(([^)]*)\)")
OURS = {
    "aegis",
    "job",
    "instance",
    "node",
    "model",
    "engine",
}  # of every target, by `aegis metrics --prometheus`
HIDDEN = {"exported_instance"}  # Prometheus' name for a page's own label that a target has too


def names_of(page: str) -> set[str]:
    """Return the series that a page declares."""
    found = set()
    for name, kind in TYPE.findall(page):
        found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return found


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """A recorded page of vLLM, and those of a gateway and a registry that have just begun."""
    gateway = Metrics(Balance(Policy()), lambda: 0)
    gateway.answered(model="m", key="k", instance="i", code=200, seconds=1.0, first_byte_seconds=0.5)
    gateway.retried("connect")
    gateway.refused("full")
    store, clock = Store(), Clock()
    with running(store, clock) as site:
        site.ask("GET", "/services")
        registry = site.ask("GET", "/metrics").body.decode()
    vllm = (ROOT / "tests" / "fixtures" / "vllm" / "metrics.txt").read_text()
    return [vllm, gateway.exposition()[0].decode(), registry]


@pytest.fixture(scope="module")
def known(pages: list[str]) -> set[str]:
    """The series that there are; those of SGLang are the ones that `aegis metrics` reads."""
    read = {name.partition("{")[0] for names in engine("sglang").metrics.values() for name in names}
    return set().union(*map(names_of, pages), read, {f"{name}_bucket" for name in read})


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_series_exists(title: str, query: str, known: set[str]) -> None:
    asked = set(NAME.findall(query))
    assert asked or "up{" in query, title
    assert asked <= known


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_label_exists(title: str, query: str, pages: list[str]) -> None:
    there = OURS | HIDDEN | {"le", "type", "status", "tp_rank", "pp_rank", "moe_ep_rank"}
    there |= {label for page in pages for label in LABELS.findall(page)}
    grouped = {label.strip() for labels in GROUPING.findall(query) for label in labels.split(",")}
    picked = set(re.findall(r"([a-z_]+)(?:=~|!~|!=|=)\"", query)) - {"__name__"}
    assert grouped | picked <= there, title


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_query_is_whole(title: str, query: str) -> None:
    bare = QUOTED.sub("", query)
    for opening, closing in ("()", "{}", "[]"):
        assert bare.count(opening) == bare.count(closing), title
    assert "job=~" in query, title  # the choice at the top of the page counts


def test_the_page_is_one_that_grafana_takes() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    assert [panel["title"].partition(",")[0] for panel in PANELS if panel["type"] == "row"] == [
        *("Fleet", "Latency", "Gateway", "Registry")
    ]
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "job", "model", "instance"]
    assert DASHBOARD["schemaVersion"] >= 39
