"""The page of a plan: one file, and no text of a user's that becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from tests.planner.emit.conftest import candidate, pair, plan_of

from aegis.planner.report.page import page

SCRIPT = '</script><script>alert("x")</script><!--'


class Elements(HTMLParser):
    """Remembers the elements and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


def data(text: str) -> Any:
    found = re.search(r'id="plan">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_it_needs_nothing_else() -> None:
    text = page(plan_of(pair(), candidate()))
    assert elements(text).loads == []
    addresses = set(re.findall(r"https?://[^\"' ]*", text)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    assert "{{" not in text


def test_hostile_text_stays_text() -> None:
    plain, hostile = (
        page(plan_of(candidate(notes=(name,)), name=name, model_name=name)) for name in ("x", SCRIPT)
    )
    assert elements(hostile).names == elements(plain).names
    curve = data(hostile)["curves"][0]
    assert (data(hostile)["title"], curve["name"]) == (SCRIPT, SCRIPT)
    assert ["note", SCRIPT] in curve["points"][0]["facts"]


def test_every_point_has_its_configuration() -> None:
    shown = data(page(plan_of(pair(), candidate())))
    for curve in shown["curves"]:
        for point in [*curve["points"], *curve["best"]]:
            facts = dict(point["facts"])
            assert float(facts["tokens/s/GPU"]) == round(point["y"], 2)
            assert {"TTFT", "TPOT", "replicas", "requests at a time"} <= set(facts)
