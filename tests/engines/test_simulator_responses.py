"""`/v1/responses` of the simulated server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engines.conftest import Sim


def test_responses_plain_and_as_events(sim: Callable[..., Sim]) -> None:
    server = sim("--output-tokens", "6")
    plain = server.ask(
        "/v1/responses", {"model": "m", "input": "hello there", "instructions": "be brief"}
    ).json
    assert (plain["object"], plain["status"], plain["usage"]["output_tokens"]) == ("response", "completed", 6)
    assert plain["usage"]["total_tokens"] == plain["usage"]["input_tokens"] + 6
    text = plain["output"][0]["content"][0]["text"]

    body = {"model": "m", "input": [{"role": "user", "content": "hello there"}], "stream": True}
    blocks = server.ask("/v1/responses", body).body.decode().removesuffix("\n\n").split("\n\n")
    events = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
    assert [block.partition("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "".join(event["delta"] for event in events if "delta" in event) == text
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text


def test_responses_that_are_cut_or_refused(sim: Callable[..., Sim]) -> None:
    server = sim()
    cut = server.ask("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 2}).json
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    for body in ({"model": "m"}, {"model": "m", "input": ""}):
        assert server.ask("/v1/responses", body).status == 400
    assert server.ask("/v1/responses", {"model": "x", "input": "hi"}).status == 404
