"""The registry under the load of a large fleet, beside a plain threaded server of the standard library.

10,000 services of 2,500 agents (4 each) of 100 models; every agent pushes every 10 s over a new connection, as
agents do, and a client asks for the healthy services of one model 50 times a second. Requests are sent on a
fixed schedule, and a query's time counts from when it was due: a server that stalls cannot hide it.

    python benchmarks/registry.py --seconds 30

Agents and client run in processes of their own, all on loopback. The threaded server is one dict and one lock
under ThreadingHTTPServer, and looks at every service to answer a query.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

MODELS = 100
PER_AGENT = 4
HOST = "127.0.0.1"


# The plain threaded server


class Threaded(BaseHTTPRequestHandler):
    """One dict and one lock."""

    protocol_version = "HTTP/1.1"
    services: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - shared on purpose
    nodes: dict[str, set[str]] = {}  # noqa: RUF012 - as above
    lock = threading.Lock()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        since = time.time() - float(query.get("timeout", 30))
        with self.lock:
            found = [
                service
                for service in self.services.values()
                if service["status"] == "healthy"
                and service["last_seen"] > since
                and query.get("type") in (None, service["service_type"])
                and query.get("model") in (None, service["metadata"]["model"])
            ]
        self.answer({"count": len(found)} if url.path == "/services/count" else found)

    def do_PUT(self) -> None:
        push = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        node, now = unquote(self.path.removeprefix("/nodes/")), time.time()
        reports = {report["service_id"]: report for report in push["services"]}
        for report in reports.values():
            report["last_seen"] = now - report.pop("age")
        with self.lock:
            for service_id in self.nodes.get(node, set()) - reports.keys():
                del self.services[service_id]
            self.nodes[node] = set(reports)
            self.services.update(reports)
        self.answer({"generations": {}, "drain": [], "stop": False})

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class named it
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 4096
    daemon_threads = True


def serve_threaded(port_file: str) -> None:
    with Server((HOST, 0), Threaded) as server:
        Path(port_file).write_text(str(server.server_address[1]))
        server.serve_forever()


# The load


def body_of(agent: int) -> bytes:
    """Return what an agent says: the numbers move with every push, the rest stays."""
    load = {"running": random.randrange(256), "waiting": 0, "tokens": random.randrange(10**9)}
    services = [
        {
            "service_id": f"vllm-node{agent:05d}-{8000 + slot}",
            "host": f"node{agent:05d}",
            "port": 8000 + slot,
            "service_type": "vllm",
            "status": "healthy",
            "age": round(random.random(), 3),
            "metadata": {
                "model": f"org/model-{(agent * PER_AGENT + slot) % MODELS}",
                "job": "12345.server",
                "instance": f"model-{(agent * PER_AGENT + slot) % MODELS}/{agent}",
                "members": 1,
                "rank": 0,
                "node": f"node{agent:05d}",
                "pid": 4000 + slot,
                "restarts": 0,
                "generation": 1,
                "reason": "",
                "load": load,
            },
        }
        for slot in range(PER_AGENT)
    ]
    return json.dumps({"node": f"node{agent:05d}", "services": services}).encode()


async def http(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """Send one request over a connection of its own; return the body of a good answer."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
    head_sent, _, content = answer.partition(b"\r\n\r\n")
    if not head_sent.startswith(b"HTTP/1.1 200"):
        raise OSError(head_sent[:60].decode(errors="replace") or "no answer")
    return content


async def on_schedule(
    start: float, seconds: float, rate: float, work: Callable[[int], Awaitable[None]]
) -> tuple[list[float], int]:
    """Start `work` at a fixed rate; return how long after its due time each ended, and the failures."""
    spent: list[float] = []
    failures = 0

    async def one(number: int, due: float) -> None:
        nonlocal failures
        try:
            async with asyncio.timeout(20):
                await work(number)
        except OSError:  # TimeoutError is one
            failures += 1
        spent.append(time.monotonic() - due)

    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * rate)):
            due = start + number / rate
            await asyncio.sleep(due - time.monotonic())
            group.create_task(one(number, due))
    return spent, failures


def run_agents(
    port: int, start: float, seconds: float, options: argparse.Namespace
) -> tuple[list[float], int]:
    async def push(number: int) -> None:
        agent = number % options.agents
        await http(port, "PUT", f"/nodes/node{agent:05d}", body_of(agent))

    return asyncio.run(on_schedule(start, seconds, options.agents / options.period, push))


def run_queries(
    port: int, start: float, seconds: float, options: argparse.Namespace
) -> tuple[list[float], int]:
    async def query(number: int) -> None:
        model = f"org%2Fmodel-{number % MODELS}"
        found = json.loads(await http(port, "GET", f"/services/healthy?type=vllm&model={model}"))
        if not found:
            raise OSError("nothing is healthy")

    return asyncio.run(on_schedule(start, seconds, options.rate, query))


# Measuring


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def measure(pid: int, port: int, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Announce every service once, then load the server and yield the figures."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        announced = pool.submit(run_agents, port, time.monotonic() + 1, options.period, options)
        _, failures = announced.result(120)
        found = json.loads(asyncio.run(http(port, "GET", "/services/healthy?timeout=600")))
        yield "services announced", len(found)
        start = time.monotonic() + 2
        agents = pool.submit(run_agents, port, start, options.seconds, options)
        queries = pool.submit(run_queries, port, start, options.seconds, options)
        time.sleep(start - time.monotonic())
        cpu = cpu_seconds(pid)
        (pushes, push_failures), (spent, query_failures) = agents.result(300), queries.result(300)
        cpu = cpu_seconds(pid) - cpu
        loaded = time.monotonic() - start  # a server that lags behind works longer
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        yield f"query {name} [ms]", 1000 * percentile(spent, share)
    yield "push p99 [ms]", 1000 * percentile(pushes, 0.99)
    yield "CPU [s/s]", cpu / loaded
    yield "peak memory [MiB]", memory_mib(pid)
    yield "pushes", len(pushes)
    yield "queries", len(spent)
    yield "failed", failures + push_failures + query_failures


def run(command: Sequence[str], port_file: Path, options: argparse.Namespace) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AEGIS_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not (port_file.exists() and port_file.read_text()):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.05)
        return dict(measure(process.pid, int(port_file.read_text()), options))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each measurement")
    parser.add_argument("--agents", type=int, default=2500)
    parser.add_argument("--period", type=float, default=10.0, help="seconds between two pushes of an agent")
    parser.add_argument("--rate", type=float, default=50.0, help="queries per second")
    parser.add_argument("--serve-threaded", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_threaded:
        serve_threaded(options.serve_threaded)
        return
    with tempfile.TemporaryDirectory() as directory:
        ours, plain = Path(directory, "ours"), Path(directory, "plain")
        journal = str(Path(directory, "journal"))
        serve = ["-m", "aegis", "registry", "serve", "--host", HOST, "--port", "0"]
        aegis = run([sys.executable, *serve, "--journal", journal, "--port-file", str(ours)], ours, options)
        threaded = run([sys.executable, __file__, "--serve-threaded", str(plain)], plain, options)
    print(
        f"{options.agents * PER_AGENT} services, {options.agents} agents, a push each per {options.period:g} s,"
    )
    print(f"{options.rate:g} queries/s of one of {MODELS} models, {options.seconds:g} s each\n")
    print(f"{'':22}{'aegis registry':>16}{'threaded stdlib':>18}{'ratio':>8}")
    for name, value in aegis.items():
        ratio = f"{threaded[name] / value:8.1f}" if value and "[" in name else ""
        print(f"{name:22}{value:16.2f}{threaded[name]:18.2f}{ratio}")


if __name__ == "__main__":
    main()
