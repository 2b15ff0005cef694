"""`aegis top`: what it draws, what keys do, and what the terminal is like afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aegis.cli.top_keys import SORTS, View, keys, pressed
from aegis.cli.top_rows import rate, sparkline
from aegis.cli.top_source import look
from aegis.cli.top_view import SORT_KEYS, Frame, Size, chosen, draw
from aegis.errors import RegistryUnreachable, SiteError
from aegis.registry.overview.model import (
    Error,
    Instance,
    Job,
    Load,
    MapRun,
    Model,
    Node,
    Overview,
    Point,
    Quantiles,
)
from aegis.registry.sources import Source, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Outcome

PATIENCE = 20.0
NOW = 1_800_000_000.0
HOSTILE = "$(x)\x1b[31m;\n'\""


def instance(number: int, **changes: Any) -> Instance:
    told: dict[str, Any] = {
        "id": f"m-{number}",
        "model": "org/m",
        "job": "slurm://1",
        "node": f"n{number // 4}",
        "host": f"n{number // 4}",
        "port": 8000,
        "type": "vllm",
        "status": "healthy",
        "since": NOW - number,
        "load": Load(running=float(number), waiting=0.0, kv_cache=0.25, generation_rate=10.0),
    }
    return Instance(**{**told, **changes})


def overview(count: int = 3, **changes: Any) -> Overview:
    latency = Quantiles(count=10.0, p50=0.034, p90=0.1, p99=0.9)
    point = Point(
        time=NOW, running=6.0, waiting=2.0, kv_cache=0.25, generation_rate=1234.0, first_token=latency
    )
    told: dict[str, Any] = {
        "time": NOW,
        "version": "1",
        "jobs": (Job(handle="slurm://1", name="chat", state="READY", nodes=2, walltime_end=NOW + 3700),),
        "models": (
            Model(name="org/m", instances=count, statuses={"healthy": count}, now=point, history=(point,)),
        ),
        "instances": tuple(instance(number) for number in range(count)),
        "nodes": (Node(name="n0", seen=NOW),),
        "maps": (MapRun(id="map-1", done=10, total=100, rate=2.0, eta=45.0),),
        "errors": (Error(number=1, time=NOW, instance="m-1", status="failed", text="out of memory"),),
    }
    return Overview(**{**told, **changes})


def picture(
    found: Overview, view: View | None = None, width: int | None = None, height: int | None = None
) -> list[str]:
    drawn = draw(found, view or View(), Size(width, height), Frame("here", NOW))
    return [line.plain for line in drawn.lines]


def test_everything_is_told() -> None:
    text = "\n".join(picture(overview()))
    assert "here  3/3 instances  6 running  2 waiting  1.2k tokens/s  1 node" in text
    for row in (
        r"slurm://1 +chat +- +READY +2 +1:01:40",
        r"org/m +3/3 +6 +2 +25% +1.2k +- +- +34 ms +900 ms +- +- +█",
        r"map-1 +10 +100 +0 +2.0 +0:45",
        r"m-1 +failed +out of memory",
        r"m-2 +healthy +2s +n0 +n0:8000 +org/m +slurm://1 +2 +0 +25% +10",
    ):
        assert re.search(row, text), row


def test_a_fleet_of_which_nobody_told_anything() -> None:
    empty = Overview(time=NOW, version="1")
    assert picture(empty)[1:] == ["", "no instances"]
    assert len(picture(empty, width=20, height=5)) == 5


def test_only_what_fits_is_drawn_and_the_rest_is_scrolled_to() -> None:
    found = overview(1000)
    lines = picture(found, width=100, height=30)
    assert len(lines) == 30
    assert "m-0 " in "\n".join(lines)
    assert "m-500" not in "\n".join(lines)
    end = picture(found, View(top=1 << 30), 100, 30)
    assert any(line.startswith("m-999") for line in end)
    assert re.search(r"of 1000  by instance", end[-1])


hostile = st.text(st.characters(), max_size=200)


@given(hostile, hostile, st.integers(1, 200), st.integers(1, 60), st.integers(0, 40))
def test_no_name_breaks_the_picture(name: str, reason: str, width: int, height: int, count: int) -> None:
    found = overview(
        count,
        instances=tuple(
            instance(each, id=f"{name}{each}", node=name, reason=reason) for each in range(count)
        ),
        jobs=(Job(handle=name, name=name, reason=reason, state=name),),
        problems=(reason,),
    )
    lines = picture(found, View(filter=name[:3]), width, height)
    assert len(lines) <= height
    for line in lines:
        assert line.isprintable()
        assert cell_len(line) <= width


def test_further_members_are_no_instances() -> None:
    found = overview(instances=(instance(0), instance(1, rank=1)))
    assert "1/1 instances" in picture(found)[0]
    assert [each.id for each in chosen(found.instances, View())] == ["m-0"]


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_is_one_of_all_instances(sort: str) -> None:
    found = overview(12).instances
    rows = chosen(found, View(sort=sort))
    assert set(rows) == set(found)
    turned = chosen(found, View(sort=sort, reverse=True))
    key, _ = SORT_KEYS[sort]
    assert [key(each) for each in turned] == [key(each) for each in rows][::-1]


def test_orders_and_filters() -> None:
    found = (instance(2, status="failed", reason="Out of Memory"), *overview(12).instances[3:])
    names = [each.id for each in chosen(found, View())]
    assert names[-2:] == ["m-10", "m-11"]
    assert chosen(found, View(sort="running"))[0].id == "m-11"
    assert chosen(found, View(sort="status"))[0].id == "m-2"
    assert [each.id for each in chosen(found, View(filter="memory"))] == ["m-2"]


def test_keys() -> None:
    assert keys("\x1b[A\x1bOBj/é\x1b[5~\x1b[99x\x1b") == ["up", "down", "j", "/", "é", "page up", "escape"]
    view = View()
    for key in keys("ssr\x1b[B\x1b[6~"):
        view = pressed(view, key, 10) or pytest.fail("left")
    assert view == View(sort=SORTS[2], reverse=True, top=11)
    for key in keys("/node q?\x7f\r"):
        view = pressed(view, key, 10) or pytest.fail("left")
    assert (view.filter, view.typing, view.help) == ("node q", False, False)
    assert pressed(view, "q", 10) is None


@given(st.text(max_size=30).map(lambda text: text.replace("q", "").replace("Q", "")))
def test_whatever_is_typed_leaves_a_view(text: str) -> None:
    view: View | None = View()
    for key in keys(text):
        assert view is not None
        view = pressed(view, key, 5)
    assert view is not None
    assert len(picture(overview(), view, 80, 24)) <= 24


def test_small_pictures_and_figures() -> None:
    points = [Point(time=NOW - 600 + 25 * step, generation_rate=float(step)) for step in range(24)]
    assert sparkline(points, NOW) == "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███"
    assert sparkline([Point(time=NOW, generation_rate=0.0), Point(time=NOW - 9999)], NOW).strip() == "▁"
    assert [rate(value) for value in (None, 0, 0.123, 5.0, 9.96, 1234.0)] == [
        "-",
        "0",
        "0.12",
        "5.0",
        "10",
        "1.2k",
    ]


def test_several_registries_are_one_fleet_and_a_silent_one_is_a_problem() -> None:
    class Client:
        def __init__(self, found: Overview | None) -> None:
            self.found = found

        def request(self, _verb: str, path: str) -> bytes:
            assert path == "/overview"
            if self.found is None:
                raise RegistryUnreachable("it is silent")
            return msgspec.json.encode(self.found)

        def decode(self, answer: bytes, type_: type[Overview]) -> Overview:
            return msgspec.json.decode(answer, type=type_)

    def source(name: str, found: Overview | None) -> Source[Way]:
        client: Any = Client(found)
        return Source(name=name, at=name, open=lambda: contextlib.nullcontext(Way(client)))

    second = overview(2, jobs=(Job(handle="pbs://2"),))
    both = look([source("a", overview()), source("b", second), source("c", None)])
    assert [job.handle for job in both.jobs] == ["slurm://1", "pbs://2"]
    assert both.problems == ("it is silent",)
    (model,) = both.models
    assert (model.instances, model.statuses, model.now.running) == (5, {"healthy": 5}, 12.0)
    with pytest.raises(SiteError, match="it is silent"):
        look([source("c", None)])
    with pytest.raises(SiteError, match="has ended"):
        look([])


class Site:
    """A registry that answers /overview, or nothing."""

    def __init__(self) -> None:
        self.answer: bytes | None = msgspec.json.encode(overview(jobs=(Job(handle=HOSTILE, state="READY"),)))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = site.answer
                if body is None or self.path != "/overview":
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called
                pass

        return Handler

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_in_a_pipe(aegis: Callable[..., Outcome], site: Site) -> None:
    outcome = aegis("top", "--registry-url", site.url)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{site.url}  3/3 instances")
    assert r"$(x)\x1b[31m;\n'" in outcome.out
    assert "\x1b" not in outcome.out


def test_json_is_what_was_answered(aegis: Callable[..., Outcome], site: Site) -> None:
    found = json.loads(aegis("top", site.url, "--json").out)
    assert found == json.loads(site.answer or b"")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 3, "none of your jobs runs"),
        (["nosuch"], 4, "`nosuch`"),
        (["x", "--registry-port", "1"], 2, "two ways"),
        (["--registry-port", "1"], 3, "does not answer"),
        (["--sort", "size"], 2, "'size' is not one of"),
    ],
)
def test_what_is_refused(
    aegis: Callable[..., Outcome], own_state: None, args: list[str], code: int, said: str
) -> None:
    outcome = aegis("top", *args)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err


@pytest.fixture
def own_state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path))


class Watcher:
    """`aegis top` on a terminal of its own."""

    def __init__(self, url: str, environ: dict[str, str]) -> None:
        self.near, self.far = pty.openpty()
        self.resize(100, 30)
        self.modes = termios.tcgetattr(self.far)
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aegis", "top", url, "--interval", "0.2"],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            env={**os.environ, "TERM": "xterm-256color", **environ},
            start_new_session=True,
        )

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, text: str) -> None:
        os.write(self.near, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text is drawn, from the last wait on."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not drawn: {self.seen[-3000:]!r}"
            self.take()
        self.seen = self.seen.partition(text)[2]

    def take(self) -> None:
        ready, _, _ = select.select([self.near], [], [], 0.05)
        if ready:
            with contextlib.suppress(OSError):
                self.seen += os.read(self.near, 1 << 16).decode(errors="replace")

    def ended(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self.take()
        self.take()
        return self.process.returncode

    def is_restored(self) -> bool:
        """Tell whether the terminal is as it was: its modes, its first screen, its cursor."""
        shown = "\x1b[?1049l" in self.seen and "\x1b[?25h" in self.seen
        return shown and termios.tcgetattr(self.far) == self.modes

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.near)
        os.close(self.far)


@pytest.fixture
def watched(site: Site) -> Iterator[Callable[..., Watcher]]:
    made: list[Watcher] = []

    def start(**environ: str) -> Watcher:
        made.append(Watcher(site.url, environ))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_session(watched: Callable[..., Watcher], site: Site) -> None:
    watcher = watched()
    watcher.wait_for("3/3 instances")
    watcher.press("s")
    watcher.wait_for("by status")
    watcher.press("/m-1\r")
    watcher.wait_for("with `m-1`")
    watcher.press("?")
    watcher.wait_for("q, Ctrl-C")
    watcher.press("x")
    watcher.resize(60, 20)
    watcher.wait_for("1-1 of 1")
    site.answer = None
    watcher.wait_for("no word since")
    site.answer = msgspec.json.encode(overview(7))
    watcher.wait_for("7/7 instances")
    watcher.press("q")
    assert watcher.ended() == 0
    assert watcher.is_restored()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_leave_the_terminal_as_it_was(
    watched: Callable[..., Watcher], number: int, code: int
) -> None:
    watcher = watched(NO_COLOR="1")
    watcher.wait_for("? help")
    assert termios.tcgetattr(watcher.far) != watcher.modes
    watcher.process.send_signal(number)
    assert watcher.ended() == code
    assert watcher.is_restored()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", watcher.seen)
