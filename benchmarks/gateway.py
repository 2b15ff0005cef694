"""`aegis gateway` beside nginx, vllm-router, sglang-router and the litellm proxy, in front of the same simulated engines.

The engines and the load (gateway/engine.c, gateway/load.c) cost 2 to 6 us a request, so that the gateway is what is measured. CPU is
user and system time of all processes of a gateway while the load runs; requests/s per core is its inverse, and does not
depend on what else the machine has to do.

1. Engines without delay, 1 to 512 connections, whole answers and streams of 16 tokens: requests/s, CPU per request.
2. Engines with TTFT 50 ms and ITL 40 ms, 1 to 512 streams of 25 tokens: CPU per chunk, what is added to the first byte and to
   the time from token to token, against the same load without a gateway.
3. The same two loads at random times, 60 % of one core of that gateway or of what it carried, with its connections open already:
   what is added, with real-time priority for gateways, engines and load alike; the middle one of three rounds.
4. 1,000 open streams on eight engines, one of which is killed every 5 s and started again 2 s later: which broke, and whose.

    python gateway.py [--quick] [--seconds S of the last part] [--only NAME]...

Peers that are not installed are left out; nginx is the system's. The Rust routers get their cheapest policy, round robin: by
default vllm-router asks an engine to render each prompt first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PEERS = ("vllm-router==0.1.17", "sglang-router==0.3.2", "litellm[proxy]==1.106.2")
INSTALLED = Path(os.environ.get("AEGIS_BENCH_PEERS", "/nowhere"))
PARTS = Path(__file__).parent / "gateway"
TICK = os.sysconf("SC_CLK_TCK")

ENGINES = 4
TTFT, ITL, TOKENS = 50, 40, 25  # ms, ms
CONNECTIONS = (1, 16, 64, 256, 512)
USUAL = 64  # connections that ratios are taken at
SLOW = {"litellm": 64}  # more at once only measures its queue; and it gets SLOWLY as long
SLOWLY = 3
LOAD = 0.6  # of one core of the gateway
ROUNDS = (
    3  # of which the middle one counts: a single pause of a shared machine decides the p99 of four seconds
)
START_SECONDS = 90.0
MANY = 4096  # connections at most of a load that comes at random times
KILLED_ENGINES, KILL_SECONDS, DOWN_SECONDS = 8, 5.0, 2.0
STREAMS = 1000
TIMES_LITELLM, OF_RUST, ADDED_MS = 10.0, 2.0, 2.0


class Contender(NamedTuple):
    """One gateway: its command, with a port to listen on, those of the engines and a folder of its own."""

    name: str
    command: Callable[[int, Sequence[int], Path], list[str]]


class Found(NamedTuple):
    """One load; times in ms."""

    seconds: float
    requests: int
    failed: int
    chunks: int
    first50: float
    first99: float
    gap50: float
    gap99: float
    cpu: float = 0.0  # seconds of the gateway

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def request_us(self) -> float:
        return 1e6 * self.cpu / self.requests if self.requests else math.nan

    @property
    def chunk_us(self) -> float:
        return 1e6 * self.cpu / self.chunks if self.chunks else math.nan


# ------------------------------------------------------------------------------------------------ the contenders


def aegis(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    file = folder / "endpoints.txt"
    file.write_text("".join(f"127.0.0.1:{each}\n" for each in engines))
    flags = ("--host", "127.0.0.1", "--port", str(port), "--outstanding", str(MANY))
    return [sys.executable, "-m", "aegis", "gateway", "--endpoints-file", str(file), *flags]


def nginx(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in engines)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/pid;"
        f" events {{ worker_connections 16384; }} http {{ access_log off; {temporary}"
        f" upstream engines {{ least_conn; {servers} keepalive 1024; keepalive_requests 100000000; }}"
        f" server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000; location / {{"
        ' proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;'
        " client_body_buffer_size 64k; } } }\n"
    )
    return ["nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def router(peer: str, *words: str) -> Callable[[int, Sequence[int], Path], list[str]]:
    def command(port: int, engines: Sequence[int], _folder: Path) -> list[str]:
        workers = [f"http://127.0.0.1:{each}" for each in engines]
        limits = (
            "--max-concurrent-requests",
            str(4 * MANY),
            "--queue-size",
            str(4 * MANY),
            "--policy",
            "round_robin",
        )
        program = [str(INSTALLED / peer / "bin" / "python"), "-m", *words]
        other = ("--prometheus-port", str(free_ports(1)[0]))
        return [
            *program,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *limits,
            *other,
            "--worker-urls",
            *workers,
        ]

    return command


def litellm(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    models = [
        {
            "model_name": "m",
            "litellm_params": {
                "model": "openai/m",
                "api_base": f"http://127.0.0.1:{each}/v1",
                "api_key": "none",
            },
        }
        for each in engines
    ]
    file = folder / "config.json"  # YAML, too
    file.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    program = INSTALLED / PEERS[2] / "bin" / "litellm"
    return [str(program), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]


def contenders(only: Sequence[str]) -> list[Contender]:
    found = [Contender("aegis", aegis)]
    if shutil.which("nginx"):
        found.append(Contender("nginx", nginx))
    peers = {
        "vllm-router": (PEERS[0], router(PEERS[0], "vllm_router.launch_router")),
        "sglang-router": (PEERS[1], router(PEERS[1], "sglang_router.launch_router")),
        "litellm": (PEERS[2], litellm),
    }
    found += [
        Contender(name, command) for name, (peer, command) in peers.items() if (INSTALLED / peer).exists()
    ]
    missing = {"nginx", *peers} - {each.name for each in found}
    if missing:
        print(f"left out, not installed: {', '.join(sorted(missing))}")
    return [each for each in found if not only or each.name in only]


# ------------------------------------------------------------------------------------------------ what runs


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Go before all others on the cores, with what is started meanwhile, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def built() -> Iterator[Path]:
    """Compile the engine and the load."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("engine", "load"):
            source = str(PARTS / f"{name}.c")
            subprocess.run(["cc", "-O2", "-o", f"{folder}/{name}", source, "-lm"], check=True)
        yield Path(folder)


@contextlib.contextmanager
def started(command: Sequence[str], folder: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """Run a command in a session of its own until the block ends; yield its process id once it is ready."""
    quiet = {
        "HOME": str(folder),
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # on loopback, for minutes
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_REGISTRY")}
    with (folder / "output").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=kept | quiet,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "output").read_text(errors="replace")[-600:]
                raise RuntimeError(f"{' '.join(command[:4])} does not start: {said}")
            time.sleep(0.05)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def engines(tools: Path, ttft: float, itl: float, tokens: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        ports = free_ports(ENGINES)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for port in ports:
            stack.enter_context(started(engine(tools, port, ttft, itl, tokens), folder, partial(asks, port)))
        yield ports


def engine(tools: Path, port: int, ttft: float, itl: float, tokens: int) -> list[str]:
    return [str(tools / "engine"), *map(str, (port, ttft, itl, tokens))]


def asks(port: int) -> bool:
    """Tell whether a request is answered."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False


@contextlib.contextmanager
def running(contender: Contender, ports: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the port and the process of a gateway."""
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        command = contender.command(port, ports, Path(folder))
        with started(command, Path(folder), lambda: asks(port)) as process:
            yield port, process


def cpu_of(session: int) -> float:
    """Return the CPU seconds of all processes of a session."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def settle(session: int) -> None:
    """Wait until a gateway has nothing left to do of the load before."""
    deadline = time.monotonic() + 5
    before = cpu_of(session)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        before, last = cpu_of(session), before
        if before - last <= 0.02:
            return


class Bench(NamedTuple):
    """What loads have in common."""

    tools: Path
    seconds: float
    spread: float = 0.0  # seconds over which closed loops begin

    def load(
        self, port: int, session: int | None, connections: int, *, stream: bool, rate: float = 0.0
    ) -> Found:
        if session:
            settle(session)
        before = cpu_of(session) if session else 0.0
        words = map(str, (port, connections, rate, self.seconds, int(stream), self.spread))
        said = subprocess.run(
            [str(self.tools / "load"), *words], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        after = cpu_of(session) if session else 0.0
        seconds, requests, failed, chunks, *times = said.split()
        found = Found(float(seconds), int(requests), int(failed), int(chunks), *map(float, times))
        return found._replace(cpu=after - before)


# ------------------------------------------------------------------------------------------------ what is measured


Cell = Callable[["Found", "Found"], str]  # of a load through a gateway and without it
Table = dict[tuple[str, bool, int], Found]  # by name, stream, connections


def patient(bench: Bench, contender: Contender) -> Bench:
    return bench._replace(seconds=SLOWLY * bench.seconds) if contender.name in SLOW else bench


def levels(name: str, connections: Sequence[int]) -> list[int]:
    return [each for each in connections if each <= SLOW.get(name, each)]


def without_delay(bench: Bench, known: list[Contender], connections: Sequence[int]) -> Table:
    """Measure all, and take out of the list what does not start."""
    found: Table = {}
    with engines(bench.tools, 0, 0, 16) as ports:
        for stream in (False, True):
            for each in connections:
                found["direct", stream, each] = bench.load(ports[0], None, each, stream=stream)
        for contender in tuple(known):
            try:
                with running(contender, ports) as (port, session):
                    for stream in (False, True):
                        for each in levels(contender.name, connections):
                            found[contender.name, stream, each] = bench.load(
                                port, session, each, stream=stream
                            )
            except RuntimeError as error:
                if contender.name == "aegis":
                    raise
                print(f"left out: {error}")
                known.remove(contender)
    for stream in (False, True):
        kind = "streams of 16 tokens" if stream else "whole answers"
        show(
            f"engines without delay, {kind}: requests/s (us of CPU each)",
            found,
            connections,
            stream,
            per_request,
        )
    return found


def with_delay(bench: Bench, known: Sequence[Contender], connections: Sequence[int]) -> Table:
    found: Table = {}
    with engines(bench.tools, TTFT, ITL, TOKENS) as ports:
        for each in connections:
            found["direct", True, each] = bench.load(ports[0], None, each, stream=True)
        for contender in known:
            with running(contender, ports) as (port, session):
                for each in levels(contender.name, connections):
                    found[contender.name, True, each] = patient(bench, contender).load(
                        port, session, each, stream=True
                    )
    title = f"engines with TTFT {TTFT} ms and ITL {ITL} ms, streams of {TOKENS} tokens"
    show(f"{title}: us of CPU per chunk (chunks/s)", found, connections, True, per_chunk)
    show(f"{title}: added first byte, p50/p99 ms", found, connections, True, added_first)
    show(f"{title}: added from token to token, p50/p99 ms", found, connections, True, added_gap)
    return found


def show(title: str, found: Table, connections: Sequence[int], stream: bool, cell: Cell) -> None:
    print(f"\n{title}\n{'connections':<14}" + "".join(f"{each:>18}" for each in connections))
    for name in dict.fromkeys(name for name, _, _ in found):
        cells = []
        for each in connections:
            own, direct = found.get((name, stream, each)), found["direct", stream, each]
            cells.append(
                "-" if own is None else cell(own, direct) + (f" !{own.failed}" if own.failed else "")
            )
        print(f"{name:<14}" + "".join(f"{each:>18}" for each in cells), flush=True)


def per_request(own: Found, _direct: Found) -> str:
    return f"{own.rate:.0f}" + (f" ({own.request_us:.1f})" if own.cpu else "")


def per_chunk(own: Found, _direct: Found) -> str:
    return (
        f"{own.chunk_us:.1f} ({own.chunks / own.seconds:.0f})"
        if own.cpu
        else f"({own.chunks / own.seconds:.0f})"
    )


def added_first(own: Found, direct: Found) -> str:
    return f"{own.first50 - direct.first50:.2f}/{own.first99 - direct.first99:.2f}"


def added_gap(own: Found, direct: Found) -> str:
    return f"{own.gap50 - direct.gap50:.2f}/{own.gap99 - direct.gap99:.2f}"


class Paced(NamedTuple):
    """A load that comes at random times, through a gateway and without it."""

    rate: float  # requests/s
    own: Found
    direct: Found
    is_kept: bool  # the machine had room for all of it


def middle(
    bench: Bench, where: tuple[int, int, int], most: int, *, stream: bool, rate: float
) -> tuple[Found, Found]:
    """Return loads without the gateway and through it: those of ROUNDS whose p99 are neither the nearest nor the farthest apart."""
    engine, port, session = where
    rounds = []
    for _ in range(ROUNDS):
        direct = bench.load(engine, None, most, stream=stream, rate=rate)
        bench.load(port, session, most, stream=stream, rate=rate)  # opens its connections again
        rounds.append((direct, bench.load(port, session, most, stream=stream, rate=rate)))
    rounds.sort(key=lambda each: each[1].first99 - each[0].first99)
    return rounds[ROUNDS // 2]


def at_sixty(
    bench: Bench, known: Sequence[Contender], plain: Table, streams: Table, connections: Sequence[int]
) -> dict[tuple[str, bool], Paced]:
    """Load each gateway to 60 % of what it carries here, as far as the machine has room for load and engines beside it."""
    found: dict[tuple[str, bool], Paced] = {}
    print(f"\nat {LOAD:.0%} of what the gateway carries: added p50/p99 ms")
    print(
        f"{'':<14}{'requests/s':>12}{'first byte':>18}{'streams/s':>18}{'first byte':>18}{'token to token':>18}"
    )
    delays = {False: (0.0, 0.0, 16), True: (TTFT, ITL, TOKENS)}
    for stream, delay in delays.items():
        with undisturbed(), engines(bench.tools, *delay) as ports:
            for contender in known:
                level = levels(contender.name, connections)[-1] if stream else USUAL
                full = (streams if stream else plain)[contender.name, stream, level]
                # Of streams the rate follows from what a chunk costs.
                rate = LOAD * (1e6 / full.chunk_us / (TOKENS + 2) if stream else full.rate)
                open_seconds = (TTFT + ITL * TOKENS) / 1000 if stream else 0.0
                most = min(MANY, max(256, int(2 * rate * open_seconds)))
                with running(contender, ports) as (port, session):
                    warm = bench.load(port, session, most, stream=stream, rate=rate)
                    if not stream:  # those that come one by one cost more than those of a full house
                        rate = min(rate, LOAD * 1e6 / warm.request_us)
                    direct, own = middle(bench, (ports[0], port, session), most, stream=stream, rate=rate)
                due = rate * (own.seconds - open_seconds)  # those that are open at the end are not counted
                found[contender.name, stream] = Paced(rate, own, direct, own.requests > 0.95 * due)
    for contender in known:
        plain_load, stream_load = found[contender.name, False], found[contender.name, True]
        cells = [
            f"{plain_load.rate:.0f}",
            added_first(plain_load.own, plain_load.direct),
            f"{stream_load.rate:.0f}",
            added_first(stream_load.own, stream_load.direct),
            added_gap(stream_load.own, stream_load.direct),
        ]
        note = "" if plain_load.is_kept and stream_load.is_kept else "  not all of it got through"
        print(
            f"{contender.name:<14}{cells[0]:>12}" + "".join(f"{each:>18}" for each in cells[1:]) + note,
            flush=True,
        )
    return found


class Killed(NamedTuple):
    """What became of the streams while engines were killed."""

    whole: int
    broken: int
    of_others: int  # broken, though their engine was not killed
    unanswered: dict[str, int]  # no event came
    kills: int
    retried: float


def under_kills(tools: Path, seconds: float, count: int) -> Killed:
    """Kill an engine every few seconds, start it again on its port, and count what became of each stream."""
    killed: set[int] = set()
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        ports = free_ports(KILLED_ENGINES)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live: list[contextlib.ExitStack] = []

        def start(port: int) -> tuple[contextlib.ExitStack, int]:
            each = contextlib.ExitStack()
            return each, each.enter_context(
                started(engine(tools, port, 300, 50, 100), folder, lambda: asks(port))
            )

        def close(at: int) -> None:
            live[at].close()  # SIGKILL, of whichever it is by then

        found = [start(port) for port in ports]
        live = [each for each, _ in found]
        for at in range(len(ports)):
            stack.callback(close, at)
        processes = [process for _, process in found]

        def kill() -> None:
            turn = 0
            while not over.wait(KILL_SECONDS - DOWN_SECONDS):
                at = turn % len(ports)
                killed.add(processes[at])
                close(at)
                over.wait(DOWN_SECONDS)
                live[at], processes[at] = start(ports[at])
                turn += 1

        port, _ = stack.enter_context(running(Contender("aegis", aegis), ports))
        killer = threading.Thread(target=kill)
        killer.start()
        words = map(str, (port, count, seconds))
        command = [sys.executable, str(PARTS / "streams.py"), *words]
        try:
            said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            retried = retries(port)
        finally:
            over.set()
            killer.join()
    broken = {int(process): number for process, number in said["broken"].items()}
    others = sum(number for process, number in broken.items() if process not in killed)
    return Killed(said["whole"], sum(broken.values()), others, said["unanswered"], len(killed), retried)


def retries(port: int) -> float:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("aegis_gateway_retries_total")
    )


# ------------------------------------------------------------------------------------------------ the goals


def hold(what: str, held: bool) -> bool:
    print(f"{'held' if held else 'NOT HELD':<9} {what}")
    return held


def per_core(plain: Table, streams: Table, most: int) -> list[bool]:
    """Hold the cost of requests and of chunks against those of the peers."""
    own, chunk = plain["aegis", False, USUAL].request_us, streams["aegis", True, most].chunk_us
    held = []
    if slow := plain.get(("litellm", False, USUAL)):
        ratio = slow.request_us / own
        held.append(
            hold(
                f"{ratio:.0f} times litellm's requests/s per core (at least {TIMES_LITELLM:g})",
                ratio >= TIMES_LITELLM,
            )
        )
    for name in ("vllm-router", "sglang-router"):
        if (name, False, USUAL) in plain:
            ratios = own / plain[name, False, USUAL].request_us, chunk / streams[name, True, most].chunk_us
            said = f"{ratios[0]:.2f} times {name}'s CPU per request, {ratios[1]:.2f} times per chunk (at most {OF_RUST:g})"
            held.append(hold(said, max(ratios) <= OF_RUST))
    return held


def added_p99(paced: dict[tuple[str, bool], Paced]) -> list[bool]:
    """Hold what is added at 60 % load against its goal."""
    held = []
    for stream, kind in ((False, "whole answers"), (True, "streams")):
        own, direct = paced["aegis", stream].own, paced["aegis", stream].direct
        first, gap = own.first99 - direct.first99, own.gap99 - direct.gap99 if stream else 0.0
        said = f"{first:.2f} ms" + (f" and {gap:.2f} ms from token to token" if stream else "")
        said = f"{kind} at {LOAD:.0%} load: {said} added at the p99 (below {ADDED_MS:g} ms)"
        held.append(hold(said, max(first, gap) < ADDED_MS and not own.failed))
    return held


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", action="append", default=[])
    how = parser.parse_args()
    connections = (USUAL,) if how.quick else CONNECTIONS
    only = how.only or (["aegis", "nginx"] if how.quick else [])
    known = contenders(only)
    began = time.monotonic()
    with built() as tools:
        bench = Bench(tools, 1.0 if how.quick else 2.0)
        plain = without_delay(bench, known, connections)
        slower = bench._replace(seconds=2.0 if how.quick else 4.0, spread=1.0)
        streams = with_delay(slower, known, connections)
        paced = at_sixty(slower, known, plain, streams, connections)
        killed = under_kills(tools, how.seconds or (8.0 if how.quick else 60.0), STREAMS)
    print(
        f"\n{STREAMS} open streams, {killed.kills} engines killed: {killed.whole} whole, {killed.broken} broken after their"
        f" first event ({killed.of_others} of them on engines that were not killed), {killed.retried:.0f} attempts made"
        f" again, without an answer: {killed.unanswered or 0}\n"
    )
    held = [
        *per_core(plain, streams, connections[-1]),
        *added_p99(paced),
        hold("no stream of a healthy engine breaks", not killed.of_others),
        hold("every request not yet answered is retried: none lost", not killed.unanswered),
    ]
    print(f"({time.monotonic() - began:.0f} s)")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
