"""Rows against servers that fail in every way."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.api.http import open_session
from aegis.api.targets import Target
from aegis.errors import AegisError, ConfigError, PartialSuccess, SiteError
from aegis.mapper import dispatch
from aegis.mapper.ahead import CHUNK_ROWS
from aegis.mapper.balance import Limits
from aegis.mapper.dispatch import Dispatcher, Settings
from aegis.mapper.journal import Journal, journal_of
from aegis.mapper.rows import Row, Source, Survey
from aegis.mapper.run import Outcome, Run, check_models
from tests.mapper.driver import Fixed, push
from tests.mapper.servers import DROP, HANG, Reply, Server, always, during, error, good, serving
from tests.mapper.test_journal import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = always(Reply())


class Work:
    """An input of prompts `p0`, `p1`, ... and its output."""

    def __init__(self, directory: Path, rows: int, model: str | None = "m") -> None:
        path, self.output = directory / "in.jsonl", directory / "out.jsonl"
        self.source = Source((str(path),))
        self.rows = rows
        lines = [self._line(number, model) for number in range(rows)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    @staticmethod
    def _line(number: int, model: str | None) -> dict[str, Any]:
        body = {"prompt": f"p{number}"} | ({"model": model} if model else {})
        return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body}

    async def push(self, *targets: Target, fleet: Fixed | None = None, **settings: Any) -> Outcome:
        with Run(self.source, self.output) as run:
            return await push(run, fleet or Fixed(targets), **settings)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The output, which has every row in its place."""
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(self.rows)]
        for number, line in enumerate(lines):
            if line["error"] is None:
                assert line["response"]["body"]["choices"][0]["text"] == f"about p{number}"
        return lines

    @property
    def errors(self) -> dict[str, str]:
        return {line["custom_id"]: line["error"]["code"] for line in self.lines if line["error"]}


def test_rows_are_shared_out_and_come_back_in_order(tmp_path: Path) -> None:
    work, servers = Work(tmp_path, 500), [Server(GOOD, 0.001) for _ in range(3)]

    async def body() -> None:
        async with serving(*servers) as targets:
            assert await work.push(*targets) == Outcome(rows=500, done=500, failed=0, left=0)

    during(body)
    assert not work.errors
    assert all(server.asked for server in servers)
    assert sum(sum(server.asked.values()) for server in servers) == 500


def test_what_one_instance_fails_another_answers(tmp_path: Path) -> None:
    """Errors, dropped connections, a full queue, broken-off and senseless answers, nobody there: no row notices."""
    aborted = Reply(body=good({"prompt": ""}, "abort"))
    faults = [Reply(500), Reply(DROP), Reply(429), aborted, Reply(body=b"<html>")]
    bad = Server(lambda prompt, _time: faults[int(prompt[1:]) % len(faults)])
    work = Work(tmp_path, 60)

    async def body() -> None:
        async with serving(bad, Server(GOOD)) as targets:
            nobody = Target("127.0.0.1", 1, ("m",))
            assert await work.push(*targets, nobody) == Outcome(rows=60, done=60, failed=0, left=0)

    during(body)
    assert not work.errors
    assert bad.asked


def test_an_instance_that_hangs_delays_only_what_it_has(tmp_path: Path) -> None:
    work, wedged = Work(tmp_path, 80), Server(always(Reply(HANG)))

    async def body() -> None:
        async with serving(wedged, Server(GOOD)) as targets:
            outcome = await work.push(*targets, deadline=0.3, limits=Limits(start=4))
            assert outcome.failed == 0

    during(body)
    assert not work.errors
    assert 0 < sum(wedged.asked.values()) <= 8


def test_a_row_that_fails_everywhere_keeps_its_error(tmp_path: Path) -> None:
    def reply(prompt: str, _time: int) -> Reply:
        return {
            "p3": error("boom", 500, type="InternalServerError"),
            "p4": error("no such thing"),
            "p5": error("This model's maximum context length is 8 tokens."),
            "p6": Reply(DROP),
        }.get(prompt, Reply())

    work, servers = Work(tmp_path, 10), [Server(reply), Server(reply)]

    async def body() -> None:
        async with serving(*servers) as targets:
            outcome = await work.push(*targets, tries=3)
            assert outcome == Outcome(rows=10, done=10, failed=4, left=0)

    during(body)
    assert work.errors == {
        "c3": "InternalServerError",
        "c4": "BadRequestError",
        "c5": "context_length_exceeded",
        "c6": "connection",
    }
    assert [line["error"]["status"] for line in work.lines[3:6]] == [500, 400, 400]
    asked = servers[0].asked + servers[1].asked
    assert [asked[f"p{number}"] for number in range(7)] == [1, 1, 1, 3, 1, 1, 3]
    assert all(server.asked["p3"] for server in servers)


def test_who_waits_for_an_instance_does_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, wakes = Work(tmp_path, 3), 0

    async def body() -> None:
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*given: Any, **named: Any) -> asyncio.TimerHandle:
            nonlocal wakes
            wakes += 1
            return call_at(*given, **named)

        monkeypatch.setattr(loop, "call_at", counted)
        async with serving(Server(always(Reply(500)))) as targets:
            await work.push(*targets, tries=2)

    during(body)
    assert wakes < 1000


def test_rows_that_failed_may_be_tried_again(tmp_path: Path) -> None:
    work = Work(tmp_path, 5)
    healed = Server(lambda prompt, time: error("not now") if (prompt, time) == ("p2", 1) else Reply())

    async def body() -> None:
        async with serving(healed) as targets:
            assert (await work.push(*targets)).failed == 1
            assert (await work.push(*targets)).failed == 1  # the same command changes nothing
            with Run(work.source, work.output, retry_failed=True) as run:
                assert await push(run, Fixed(targets)) == Outcome(rows=5, done=5, failed=0, left=0)

    during(body)
    assert not work.errors
    assert sum(healed.asked.values()) == 6


def test_a_busy_instance_is_given_less_and_no_row_fails(tmp_path: Path) -> None:
    """A queue of 4: what is above is refused, as SGLang and gateways do."""
    work = Work(tmp_path, 120)
    server = Server(lambda _prompt, _time: Reply(503 if server.now > 4 else 200), 0.005)

    async def body() -> None:
        async with serving(server) as targets:
            assert (await work.push(*targets, tries=1)).failed == 0

    during(body)
    assert not work.errors


def test_a_refused_key_ends_the_run_at_once(tmp_path: Path) -> None:
    work = Work(tmp_path, 50)

    async def body() -> None:
        async with serving(Server(always(error("Unauthorized", 401)))) as targets:
            with pytest.raises(SiteError, match=r"refuses to answer: Unauthorized \(HTTP 401\)") as caught:
                await work.push(*targets)
            assert caught.value.hint
            assert "VLLM_API_KEY" in caught.value.hint

    during(body)


def test_a_model_or_route_that_nobody_knows_ends_the_run_and_fails_no_row(tmp_path: Path) -> None:
    unknown = error("The model `m` does not exist.", 404, type="NotFoundError")
    for rows in (1, 500):
        work, servers = Work(tmp_path, rows), [Server(always(unknown)), Server(always(unknown))]

        async def body(work: Work = work, servers: list[Server] = servers) -> None:
            async with serving(*servers) as targets:
                with pytest.raises(ConfigError, match="does not exist"):
                    await work.push(*targets, tries=3)
                assert sum(sum(server.asked.values()) for server in servers) < 60
            async with serving(Server(GOOD)) as targets:
                assert (await work.push(*targets)).failed == 0

        during(body)
        assert not work.errors
        work.output.unlink()
        journal_of(work.output).unlink()


@pytest.mark.parametrize("status", [404, 401])
def test_a_stranger_on_a_port_of_ours_costs_no_row(tmp_path: Path, status: int) -> None:
    """It answers much faster than those that work."""
    work, stranger = Work(tmp_path, 80), Server(always(Reply(status)))

    async def body() -> None:
        async with serving(stranger, Server(GOOD, 0.05)) as targets:
            assert (await work.push(*targets)).failed == 0

    during(body)
    assert not work.errors


def test_when_all_instances_die_it_says_that_rows_are_left(tmp_path: Path) -> None:
    work, dying = (
        Work(tmp_path, 60),
        Server(lambda prompt, _time: Reply(DROP if int(prompt[1:]) > 20 else 200)),
    )

    async def body() -> None:
        async with serving(dying) as targets:
            with pytest.raises(PartialSuccess, match=r"no answer for 0\.2 s"):
                await work.push(*targets, patience=0.2, tries=1000)

    during(body)
    assert not work.output.exists()


def test_without_any_instance_it_gives_up_and_can_go_on(tmp_path: Path) -> None:
    work = Work(tmp_path, 5)

    async def body() -> None:
        with pytest.raises(SiteError, match=r"no answer for 0\.2 s: there is no instance of 'm'"):
            await work.push(patience=0.2)
        with pytest.raises(SiteError, match=r"none of 1 instances of 'm' works"):
            await work.push(Target("127.0.0.1", 1, ("m",)), patience=0.2)
        async with serving(Server(GOOD)) as targets:
            assert (await work.push(*targets)).left == 0

    during(body)
    assert not work.errors


def test_instances_that_come_take_rows_and_those_that_leave_give_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "GONE_SECONDS", 0.05)
    monkeypatch.setattr(dispatch, "FOLLOW", 0.05)
    work, lost = Work(tmp_path, 30), Server(always(Reply(HANG)))  # a node without power answers nothing
    fleet = Fixed([])

    def after(prompt: str, _time: int) -> Reply:
        fleet.change([late.target])
        return Reply()

    late = Server(after)

    async def body() -> None:
        async with serving(lost, late) as targets:
            fleet.change(targets)
            assert (await work.push(fleet=fleet, tries=1)).failed == 0

    during(body)
    assert not work.errors
    assert lost.asked


def test_it_stops_in_time_and_says_how_many_are_left(tmp_path: Path) -> None:
    work, server = Work(tmp_path, 200), Server(GOOD, 0.02)

    async def body() -> None:
        async with serving(server) as targets:
            before = time.monotonic()
            outcome = await work.push(*targets, ends_at=before + 1.3, grace=1.0, limits=Limits(fixed=2))
            assert time.monotonic() - before < 3
            assert 0 < outcome.done < 60
            assert (outcome.failed, outcome.left) == (0, 200 - outcome.done)
            assert not work.output.exists()
            assert sum(server.asked.values()) == outcome.done  # what was under way was waited for
            assert (await work.push(*targets)).left == 0

    during(body)
    assert not work.errors
    assert set(server.asked.values()) == {1}


def test_it_stops_earlier_where_answers_take_long(tmp_path: Path) -> None:
    work, server = Work(tmp_path, 200), Server(GOOD, 0.4)

    async def body() -> None:
        async with serving(server) as targets:
            end = time.monotonic() + 1.5
            outcome = await work.push(*targets, ends_at=end, grace=0.01, limits=Limits(fixed=4))
            assert time.monotonic() < end
            assert 0 < outcome.done == sum(server.asked.values()) < 16

    during(body)


def test_what_does_not_answer_in_the_time_of_grace_is_left(tmp_path: Path) -> None:
    work = Work(tmp_path, 4)

    async def body() -> None:
        async with serving(Server(always(Reply(HANG)))) as targets:
            now = time.monotonic()
            assert (await work.push(*targets, ends_at=now + 0.2, grace=0.1)).left == 4

    during(body)


def test_a_fixed_concurrency_is_kept(tmp_path: Path) -> None:
    work, server = Work(tmp_path, 60), Server(GOOD, 0.002)

    async def body() -> None:
        async with serving(server) as targets:
            await work.push(*targets, limits=Limits(fixed=3))

    during(body)
    assert server.most == 3


def test_rows_without_a_model_get_the_one_that_is_served(tmp_path: Path) -> None:
    work, server = Work(tmp_path, 3, model=None), Server(GOOD)

    async def body() -> None:
        async with serving(server, models=('a "name"', "b")) as targets:
            await work.push(*targets)

    during(body)
    assert {each["model"] for each in server.bodies} == {'a "name"'}


def test_a_full_disk_ends_the_run_and_the_next_one_continues(tmp_path: Path) -> None:
    work, server = Work(tmp_path, 100), Server(GOOD, 0.01)

    async def body() -> None:
        async with serving(server) as targets:
            with small_disk(4000), pytest.raises(AegisError, match="is full"):
                await work.push(*targets, limits=Limits(fixed=4))
            assert not work.output.exists()
            assert journal_of(work.output).stat().st_size == 4000
            assert (await work.push(*targets)).left == 0

    during(body)
    assert not work.errors
    assert sum(server.asked.values()) < 200


def test_the_input_is_read_only_a_little_ahead(tmp_path: Path) -> None:
    rows, ahead = 1500, []

    async def body() -> None:
        async with serving(Server(GOOD)) as targets, open_session() as session:
            with Journal(tmp_path / "out.jsonl", rows, {}) as journal:

                def lines() -> Iterator[Row]:
                    for position in range(rows):
                        ahead.append(position - journal.done)
                        yield Row(position, str(position), "/v1/completions", "m", b'{"prompt":"p"}')

                settings = Settings(limits=Limits(fixed=4))
                await Dispatcher(session, Fixed(targets), journal, settings).run(lines())
                assert journal.left == 0

    during(body)
    assert max(ahead) < 2 * CHUNK_ROWS + 10


def test_progress_counts_rows_tokens_and_time(tmp_path: Path) -> None:
    work = Work(tmp_path, 40)

    async def body() -> None:
        async with serving(Server(GOOD)) as targets, open_session() as session:
            with Run(work.source, work.output) as run:
                dispatcher = Dispatcher(session, Fixed(targets), run.journal, Settings())
                before = dispatcher.progress()
                assert (before.rows, before.left, before.rate, before.eta) == (40, 40, None, None)
                await run.work(dispatcher)
                after = dispatcher.progress()
        assert (after.done, after.failed, after.left, after.in_flight, after.instances) == (40, 0, 0, 0, 1)
        assert (after.prompt_tokens, after.completion_tokens, after.eta) == (120, 80, 0)
        assert after.rate
        assert after.rate > 1

    during(body)


def test_models_are_held_against_what_is_served() -> None:
    def served(*lists: tuple[str, ...]) -> list[Target]:
        return [Target("h", port, models) for port, models in enumerate(lists, 1)]

    check_models(Survey(1, "", ("a", "")), served(("a",), ("a",)))
    check_models(Survey(1, "", ("a",)), served(("b",), ()))
    check_models(Survey(1, "", ("a",)), [])
    with pytest.raises(ConfigError, match="no instance serves 'x'"):
        check_models(Survey(1, "", ("a", "x")), served(("a",)))
    with pytest.raises(ConfigError, match="several are served"):
        check_models(Survey(1, "", ("",)), served(("a",), ("b",)))


def test_the_output_must_be_a_new_file(tmp_path: Path) -> None:
    work = Work(tmp_path, 1)
    for output, message in (
        (Path(work.source.paths[0]), "is the input"),
        (tmp_path, "cannot"),
        (tmp_path / "a/b", "cannot"),
    ):
        with pytest.raises(ConfigError, match=message):
            Run(work.source, output)
