"""`aegis metrics`: what the servers of a job do at present."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.jobs import open_jobs, remote_option
from aegis.cli.render import printable, table
from aegis.cli.source_options import registry_flags, registry_options
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from aegis.fleet.metrics.figures import Latencies
    from aegis.fleet.metrics.job import JobMetrics, NotReady
    from aegis.fleet.metrics.monitor import JobFigures

WATCH_SECONDS = 2.0
ROWS = (
    ("prompt_tokens_per_sec", "Prompt Throughput", "{:.1f} tokens/s"),
    ("generation_tokens_per_sec", "Generation Throughput", "{:.1f} tokens/s"),
    ("requests_per_sec", "Request Throughput", "{:.2f} reqs/s"),
    ("requests_running", "Requests Running", "{:.0f} reqs"),
    ("requests_waiting", "Requests Waiting", "{:.0f} reqs"),
    ("requests_swapped", "Requests Swapped", "{:.0f} reqs"),
    ("gpu_cache_usage", "KV Cache Usage", "{:.1%}"),
    ("cpu_cache_usage", "CPU Cache Usage", "{:.1%}"),
    ("prefix_cache_hit_rate_window", "Prefix Cache Hit Rate", "{:.1%}"),
    ("prefix_cache_hit_rate", "Prefix Cache Hit Rate (Total)", "{:.1%}"),
    ("avg_request_latency", "Avg Request Latency", "{:.2f} s"),
    ("total_prompt_tokens", "Total Prompt Tokens", "{:.0f} tokens"),
    ("total_generation_tokens", "Total Generation Tokens", "{:.0f} tokens"),
    ("successful_requests_total", "Successful Requests", "{:.0f} reqs"),
    ("aborted_requests_total", "Aborted Requests", "{:.0f} reqs"),
)
FINISHED = "finished_requests_"
LATENCY_TITLES = {
    "time_to_first_token": "Time to First Token",
    "time_per_output_token": "Time per Output Token",
    "request_latency": "Request Latency",
    "queue_time": "Time in Queue",
}
INSTANCE_COLUMNS = (
    ("requests_running", "RUNNING", "{:.0f}"),
    ("requests_waiting", "WAITING", "{:.0f}"),
    ("gpu_cache_usage", "KV CACHE", "{:.1%}"),
    ("prompt_tokens_per_sec", "PROMPT TOKENS/S", "{:.1f}"),
    ("generation_tokens_per_sec", "GENERATED TOKENS/S", "{:.1f}"),
)


@click.command()
@click.argument("handle", metavar="[ID]", required=False)
@click.option(
    "--once", is_flag=True, help="Print the figures once (the default where stdout is no terminal)."
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help=f"Print the figures of every so many seconds, until Ctrl-C (default on a terminal: {WATCH_SECONDS:g}); with --once the length of the look.",
)
@click.option("--instance", metavar="NAME", help="This server alone (a name of `aegis status ID`).")
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON, one object per look.")
@click.option(
    "--prometheus",
    metavar="FILE",
    help="Write what Prometheus is to scrape, for its file_sd_configs (`-`: to stdout); with --watch kept current. "
    "ID may be a service, or `jobs`: all that run.",
)
@registry_options("With --prometheus, instead of ID: all that this registry knows.")
@remote_option
def command(
    handle: str | None,
    *,
    once: bool,
    watch: float | None,
    instance: str | None,
    as_json: bool,
    prometheus: str | None,
    remote: str | None,
    **how: Any,
) -> None:
    """Show what the servers of a job do: throughput, queues, caches, latencies.

    All healthy servers are asked at once, and their figures summed. Rates are those between two looks.
    """
    from aegis.fleet.metrics.job import WINDOW_SECONDS, JobMetrics, NotReady  # noqa: PLC0415 - start-up time

    if prometheus is not None:
        from aegis.cli.metrics_prometheus import write_targets  # noqa: PLC0415 - start-up time

        if instance or as_json:
            raise ConfigError("--prometheus goes with neither --instance nor --json")
        write_targets(prometheus, handle, how, remote, None if once else watch)
        return
    if given := registry_flags():
        raise ConfigError(f"{given[0]} goes with --prometheus alone", hint="name a job")
    if handle is None:
        raise click.MissingParameter(param_type="argument", param_hint="ID")
    live = sys.stdout.isatty() and not as_json
    once = once or (watch is None and not live)
    indent = 2 if once else None
    with open_jobs(remote) as jobs:
        job = JobMetrics(jobs, handle, instance)
        try:
            if not once:
                _follow(job, watch or WATCH_SECONDS, as_json=as_json, live=live)
                return
            found = job.measure(watch or WINDOW_SECONDS)
            click.echo(_json(found, indent) if as_json else _text(found))
        except NotReady as problem:
            if not as_json:
                raise
            click.echo(_failure(problem, handle, indent))
            sys.exit(problem.exit_code)


def _follow(job: JobMetrics, seconds: float, *, as_json: bool, live: bool) -> None:
    """Print look after look until Ctrl-C; on a terminal each in the place of the one before."""
    import time  # noqa: PLC0415 - start-up time

    height = 0
    found = job.measure(min(seconds, WATCH_SECONDS))
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            text = _json(found) if as_json else _text(found)
            if live:
                text = _fitting(text)
                click.echo(f"\x1b[{height}A\x1b[J" if height else "", nl=False)
                height = text.count("\n") + 1
            click.echo(text)
            time.sleep(seconds)
            found = job.look()


def _fitting(text: str) -> str:
    """Return what the terminal has room for, so that no line wraps and none scrolls away."""
    import shutil  # noqa: PLC0415 - start-up time

    width, height = shutil.get_terminal_size()
    return "\n".join(line[:width] for line in text.splitlines()[: height - 1])


def _text(found: JobFigures) -> str:
    metrics = found.metrics
    rows = [(title, form.format(metrics[key])) for key, title, form in ROWS if key in metrics]
    reasons = [
        (key.removeprefix(FINISHED), value) for key, value in metrics.items() if key.startswith(FINISHED)
    ]
    if told := [f"{reason} {value:.0f}" for reason, value in reasons if value]:
        rows.append(("Requests Finished", ", ".join(told)))
    answering = sum(not each.error for each in found.instances)
    seconds = f"last {found.window_seconds:.1f} s" if found.window_seconds else "one look"
    head = f"{found.job_id}  {found.model_name}  {answering}/{len(found.instances)} servers  {seconds}"
    parts = [printable(head), table(("METRIC", "VALUE"), rows), _latencies(found.latencies)]
    if len(found.instances) > 1 or answering < len(found.instances):
        parts.append(_instances(found))
    return "\n\n".join(part for part in parts if part)


def _latencies(latencies: dict[str, Latencies]) -> str:
    """Return the latencies of the window; where it saw none, those since the start."""
    rows = []
    for key, title in LATENCY_TITLES.items():
        latency = latencies[key].window or latencies[key].total
        if latency is None:
            continue
        period = "window" if latencies[key].window else "start"
        seconds = (latency.mean, latency.p50, latency.p90, latency.p99)
        rows.append((title, *map(_duration, seconds), f"{latency.count:.0f}", period))
    return table(("LATENCY", "MEAN", "P50", "P90", "P99", "COUNT", "SINCE"), rows) if rows else ""


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _instances(found: JobFigures) -> str:
    rows = [
        (
            each.instance,
            each.model,
            each.address,
            *(
                form.format(each.metrics[key]) if key in each.metrics else "-"
                for key, _, form in INSTANCE_COLUMNS
            ),
            each.error or "-",
        )
        for each in found.instances
    ]
    titles = (title for _, title, _ in INSTANCE_COLUMNS)
    return table(("INSTANCE", "MODEL", "ADDRESS", *titles, "ERROR"), rows)


def _json(found: JobFigures, indent: int | None = None) -> str:
    import msgspec  # noqa: PLC0415 - start-up time

    return msgspec.json.format(msgspec.json.encode(found), indent=-1 if indent is None else indent).decode()


def _failure(problem: NotReady, job_id: str, indent: int | None) -> str:
    import json  # noqa: PLC0415 - start-up time
    import time  # noqa: PLC0415 - start-up time

    value = {
        "model_name": problem.model_name,
        "metrics": problem.sentence,
        "timestamp": time.time(),
        "job_id": job_id,
        "error": problem.message,
    }
    return json.dumps(value, indent=indent)
