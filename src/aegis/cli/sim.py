"""`aegis sim`: run one simulated server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.engines.simulator import FaultPlan

# Flags of `vllm serve` that mean nothing here, so that a deployment written for vLLM can be rehearsed.
IGNORED_VALUES: Final = (
    *("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--dtype"),
    *("--distributed-executor-backend", "--gpu-memory-utilization", "--kv-cache-memory-bytes"),
    *("--max-num-batched-tokens", "--download-dir", "--tokenizer", "--tokenizer-mode", "--quantization"),
    *("--kv-cache-dtype", "--block-size", "--swap-space", "--load-format", "--revision", "--chat-template"),
    *("--tool-call-parser", "--reasoning-parser", "--generation-config", "--hf-overrides", "--task"),
    *("--limit-mm-per-prompt", "--uvicorn-log-level", "--device", "--stream-interval", "--cpu-offload-gb"),
    *("--speculative-config", "--compilation-config", "--kv-transfer-config", "--all2all-backend"),
)
IGNORED_SWITCHES: Final = (
    *("--enforce-eager", "--trust-remote-code", "--enable-chunked-prefill", "--no-enable-chunked-prefill"),
    *("--enable-expert-parallel", "--enable-auto-tool-choice", "--disable-log-stats", "--async-scheduling"),
    *("--enable-log-requests", "--no-enable-log-requests", "--disable-uvicorn-access-log", "--headless"),
    *("--enable-sleep-mode", "--disable-custom-all-reduce", "--enable-lora"),
    *("--enable-prefix-caching", "--no-enable-prefix-caching"),
)
SEVERAL: Final = frozenset({"--served-model-name", "--api-key"})  # vLLM takes `--served-model-name A B`
SHORT: Final = {"-n": "--nnodes", "-r": "--node-rank"}

COUNT: Final = click.IntRange(min=0)
SOME: Final = click.IntRange(min=1)
SECONDS: Final = click.FloatRange(min=0)
SHARE: Final = click.FloatRange(0, 1)
PORT: Final = click.IntRange(0, 65535)


class AfterType(click.ParamType[Any]):
    """N requests, or Ns seconds."""

    name = "N|Ns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, float | None]:
        """Return the requests and the seconds; one of them is None."""
        text = str(value)
        try:
            after = (None, float(text[:-1])) if text.endswith("s") else (int(text), None)
        except ValueError:
            self.fail(f"{text!r} is neither a number of requests (5) nor of seconds (5s)", param, ctx)
        if (after[0] or after[1] or 0) < 0:
            self.fail(f"{text!r} is negative", param, ctx)
        return after


class SimCommand(click.Command):
    """A command that reads flags as `vllm serve` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Translate what click would not understand."""
        return super().parse_args(ctx, repeat_flags([spelled_out(arg) for arg in args]))


def spelled_out(arg: str) -> str:
    """Return the long form of a flag, with dashes; click would find `-n` in vLLM's `-dpn` too."""
    name, equals, value = arg.partition("=")
    name = SHORT.get(name, name)
    return name.replace("_", "-") + equals + value if name.startswith("--") else arg


def repeat_flags(args: Sequence[str]) -> list[str]:
    """Return `--flag A --flag B` for `--flag A B`, for the flags that take several values."""
    result: list[str] = []
    flag: str | None = None
    for arg in args:
        if arg.startswith("-"):
            flag = arg if arg in SEVERAL else None
            result += [arg]
        elif flag is None or result[-1] == flag:
            result += [arg]
        else:
            result += [flag, arg]
    return result


def ignored_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that are taken and forgotten."""
    for name in IGNORED_VALUES:
        function = click.option(name, hidden=True, expose_value=False)(function)
    for name in IGNORED_SWITCHES:
        function = click.option(name, is_flag=True, hidden=True, expose_value=False)(function)
    return function


@click.command(
    cls=SimCommand,
    # No short flags, -h neither: click would find them inside vLLM's (-dph).
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
)
@click.argument("model")
@click.argument("ignored", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="0: any free one, told on stderr.")
@click.option("--served-model-name", "served_model_names", multiple=True, help="Name for clients; several.")
@click.option("--api-key", "api_keys", multiple=True, help="Key for /v1/* (better: $VLLM_API_KEY); several.")
@click.option("--api-key-file", type=click.Path(path_type=Path, dir_okay=False), help="One key a line.")
@click.option("--max-model-len", type=SOME, default=32768, show_default=True, help="Tokens of a sequence.")
@click.option("--max-num-seqs", type=SOME, default=256, show_default=True, help="Running requests.")
@click.option(
    "--kv-cache-tokens", type=SOME, default=1048576, show_default=True, help="Size of the KV cache."
)
@click.option("--output-tokens", type=SOME, default=128, show_default=True, help="Where an answer ends.")
@click.option("--prefix-cache", type=click.Choice(["on", "off"]), default="off", show_default=True)
@click.option("--ttft-ms", type=SECONDS, default=0.0, help="Milliseconds to the first token.")
@click.option("--itl-ms", type=SECONDS, default=0.0, help="Milliseconds between tokens (mean).")
@click.option("--jitter", type=SHARE, default=0.0, help="Relative spread of the times.")
@click.option(
    "--step-times",
    "step_times_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Batch and time as a plan says: its step_times.json.",
)
@click.option("--time-scale", type=SECONDS, default=1.0, show_default=True, help="Factor of all these times.")
@click.option("--seed", type=int, default=0, help="Of jitter and faults.")
@click.option("--startup-seconds", type=SECONDS, default=0.0, help="Nothing listens before.")
@click.option("--grace", type=SECONDS, default=2.0, show_default=True, help="Seconds after SIGTERM.")
@click.option("--access-log", is_flag=True, help="One line a request, on stderr.")
@click.option("--fail-start", metavar="TEXT", help="After the start-up time: print TEXT, exit 1.")
@click.option("--crash-after", type=COUNT, metavar="N", help="Serve N requests, then exit 17 at the next.")
@click.option("--crash-after-seconds", type=SECONDS, metavar="S", help="Exit 17 S seconds after start-up.")
@click.option("--hang-after", type=COUNT, metavar="N", help="Serve N requests, then no further token.")
@click.option("--hang-health-after", type=AfterType(), help="Then answer nothing at all.")
@click.option("--error-rate", type=SHARE, default=0.0, help="Share of requests answered with HTTP 500.")
@click.option("--reset-rate", type=SHARE, default=0.0, help="Share of requests dropped half-way.")
@click.option("--nnodes", type=SOME, default=1, help="Nodes of this server.")
@click.option("--node-rank", type=COUNT, default=0, help="0 serves the API, the others follow it.")
@click.option("--master-addr", default="127.0.0.1", help="Address of rank 0.")
@click.option("--master-port", type=click.IntRange(1, 65535), default=29501, show_default=True)
@click.option("--join-timeout", type=SECONDS, default=600.0, show_default=True, help="For all ranks to meet.")
@ignored_options
def command(
    *,
    model: str,
    ignored: tuple[str, ...],
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    prefix_cache: str,
    ttft_ms: float,
    itl_ms: float,
    step_times_file: Path | None,
    node_rank: int,
    nnodes: int,
    **options: Any,
) -> None:
    """Run one simulated OpenAI-compatible server of MODEL (for rehearsals and tests).

    It times, queues and counts as vLLM does, and answers with words that mean nothing. Flags of `vllm serve` are
    accepted after MODEL; those that are unknown are ignored with a warning.
    """
    if model.startswith("-"):
        raise click.UsageError(f"MODEL must come before the flags, not {model!r}.")
    if node_rank >= nnodes:
        raise click.UsageError(f"--node-rank {node_rank} is not below --nnodes {nnodes}.")
    if step_times_file and (ttft_ms or itl_ms):
        raise click.UsageError("--step-times says how long steps take: leave out --ttft-ms and --itl-ms.")
    if ignored:
        click.echo(f"warning: ignored arguments: {' '.join(map(ascii, ignored))}", err=True)
    from aegis.engines.simulator import Settings  # noqa: PLC0415 - --help needs none of it
    from aegis.engines.simulator.process import run  # noqa: PLC0415 - asyncio
    from aegis.spec.step_times import read_step_times  # noqa: PLC0415 - as above

    faults = fault_plan(options)
    settings = Settings(
        model=model,
        api_keys=keys(api_keys, api_key_file),
        prefix_cache=prefix_cache == "on",
        ttft=ttft_ms / 1000,
        itl=itl_ms / 1000,
        step_times=read_step_times(step_times_file) if step_times_file else None,
        node_rank=node_rank,
        nnodes=nnodes,
        faults=faults,
        **options,
    )
    raise SystemExit(run(settings))


def fault_plan(options: dict[str, Any]) -> FaultPlan:
    """Take the faults out of the options."""
    from aegis.engines.simulator import FaultPlan  # noqa: PLC0415 - as above

    requests, seconds = options.pop("hang_health_after") or (None, None)
    rest = {name: options.pop(name) for name in FaultPlan.__struct_fields__ if name in options}
    return FaultPlan(hang_health_after=requests, hang_health_after_seconds=seconds, **rest)


def keys(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """Return the keys of the flags, the file and the environment.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    if file is not None:
        try:
            found = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: {error}") from None
        if not found:
            raise ConfigError(f"--api-key-file: {str(file)!r} holds no key")
        given += found
    environment = os.environ.get("VLLM_API_KEY")
    return given or ((environment,) if environment else ())
