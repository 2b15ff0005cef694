"""`aegis map`: push prompts or files through the servers, each exactly once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import with_flags
from aegis.cli.map_files import files_options
from aegis.cli.servers import server_options
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.mapper.rows import Source
    from aegis.mapper.template import Kind, Template

KINDS: tuple[Kind, ...] = ("chat", "completions", "embeddings")
OF_PROMPTS = ("system", "kind", "model", "max_tokens", "temperature", "param", "id_column")
SERVER_FLAGS = (
    "endpoints_file",
    "registry_url",
    "registry_host",
    "registry_port",
    "token_file",
    "api_key_file",
)
TAKEN = ("messages", "prompt", "input", "stream")
SECONDS = click.FloatRange(min=0.001)
SOME = click.IntRange(min=1)


def prompt_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say what is asked of each row."""
    options = (
        click.option(
            "--prompt",
            metavar="TEXT",
            help="What is asked of each row: text with {column} where a value goes.",
        ),
        click.option("--system", metavar="TEXT", help="A system message before it."),
        click.option("--kind", type=click.Choice(KINDS), help="The kind of request.  [default: chat]"),
        click.option("--model", metavar="NAME", help="The model to ask (default: the one that is served)."),
        click.option("--max-tokens", type=SOME, metavar="N", help="Tokens of an answer at most."),
        click.option("--temperature", type=click.FloatRange(min=0), metavar="X"),
        click.option(
            "--param",
            multiple=True,
            metavar="NAME=JSON",
            help="""Anything else in the request: --param seed=1 --param 'stop=["END"]'. Repeatable.""",
        ),
        click.option(
            "--id-column",
            metavar="COLUMN",
            help="What a row is known by (default: custom_id where there is one, else its number).",
        ),
    )
    return with_flags(function, options)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say how the work is done."""
    options = (
        click.option("--deadline", type=SECONDS, default=600.0, show_default=True, metavar="S", help="Seconds that one request may take."),
        click.option("--tries", type=SOME, default=5, show_default=True, metavar="N", help="Tries of a row where servers fail it."),
        click.option("--patience", type=SECONDS, default=600.0, show_default=True, metavar="S", help="Seconds without any answer after which the run ends."),
        click.option("--concurrency", type=SOME, metavar="N", help="Rows at once per instance (default: as many as it takes)."),
        click.option("--retry-failed", is_flag=True, help="Do those again that failed in an earlier run."),
        click.option("--walltime", metavar="HH:MM:SS", help="The run is over after that long. The end of the Slurm or PBS job around it is known without."),
        click.option("--stop-at", metavar="TIME", help="The run is over at that time: 08:00, 2027-01-31T08:00."),
        click.option("--grace", type=click.FloatRange(min=0), metavar="S", help="Seconds before that, at least, in which nothing new is begun (default: 60, less in a short run)."),
        click.option("--resubmit", is_flag=True, help="If something is left at the end, put this job back into the queue; on PBS, submit it again (jobs of `submit --map`)."),
        click.option("--resubmit-with", metavar="COMMAND", help="If something is left at the end, run this: 'qsub job.pbs'."),
    )  # fmt: skip
    return with_flags(function, options)


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT... [HANDLE]")
@click.option(
    "--inputs",
    "more",
    multiple=True,
    metavar="INPUT",
    help="Another input. Repeatable.",
)
@click.option(
    "--inputs-from",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Inputs of a list, one a line; the same as an input @FILE.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File for the answers: JSON lines. With --script a directory.",
)
@server_options
@prompt_options
@files_options
@run_options
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print a summary as JSON.")
def command(
    *,
    inputs: tuple[str, ...],
    more: tuple[str, ...],
    inputs_from: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Send every row of the inputs to the servers, and bring each answer exactly once into the output.

    INPUT is a file, a glob, a directory, or @LIST, a file of names. Rows are OpenAI's batch format (JSON lines of
    custom_id, method, url, body), or, with --prompt, those of any CSV, JSON lines or Parquet file; .gz too. Several
    inputs are one run, in their order. HANDLE is a job of `aegis status`, such as slurm://17480109.

    Whatever interrupts it, the same command continues. Exits with 7 when rows are left, or failed.

    \b
    aegis map batch.jsonl --output answers.jsonl slurm://17480109
    aegis map 'parts/*.csv' --prompt 'Summarise: {text}' --max-tokens 200 --output answers.jsonl
    aegis map --script 'python my_client.py {input} --url {base_url}' inputs/ --output results/
    """  # noqa: D301 - \\b keeps click from filling the lines
    # Before and after the work, which has its own ways, it ends us as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handle, named = split_handle([*inputs, *more, *([f"@{inputs_from}"] if inputs_from else [])])
    if not named:
        raise click.UsageError("name an input: a file, a glob, a directory, or @LIST")
    how = {name: options.pop(name) for name in SERVER_FLAGS}
    if options.get("script"):
        from aegis.cli.map_files import run_files_mode  # noqa: PLC0415 - start-up time
        from aegis.mapper.inputs import find_inputs  # noqa: PLC0415 - as above

        if options["prompt"] is not None:
            raise click.UsageError("--script and --prompt exclude each other")
        found = find_inputs(named, leave_out=output)
        run_files_mode((Path(each) for each in found), handle, how, {**options, "output": output})
        return
    if output is None:
        raise click.UsageError("say where the answers go: --output OUT")
    source = source_of(named, output, options)
    from aegis.cli.map_end import continuation  # noqa: PLC0415 - start-up time
    from aegis.cli.map_prompts import Prompts  # noqa: PLC0415 - as above

    continue_later = continuation(resubmit=options["resubmit"], command=options["resubmit_with"])
    Prompts(source, output, handle, how, options, continue_later=continue_later).work()


def split_handle(given: list[str]) -> tuple[str | None, list[str]]:
    """Return the job among the arguments, and the others.

    Raises:
        click.UsageError: there are two.
    """
    handles = [each for each in given if "://" in each and not each.startswith("@")]
    if len(handles) > 1:
        raise click.UsageError(f"one job, not {len(handles)}: {' '.join(map(repr, handles))}")
    return (handles[0] if handles else None), [each for each in given if each not in handles]


def source_of(named: list[str], output: Path, options: Mapping[str, Any]) -> Source:
    """Return the rows that are meant.

    Raises:
        ConfigError: an input, the prompt or a parameter is wrong.
    """
    from aegis.mapper.inputs import find_inputs  # noqa: PLC0415 - start-up time
    from aegis.mapper.rows import Source  # noqa: PLC0415 - as above

    given = [name for name in OF_PROMPTS if options[name] not in (None, ())]
    if options["prompt"] is None and given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} is for rows with a --prompt; those of the batch format say it themselves"
        )
    template = _template(options) if options["prompt"] is not None else None
    return Source(tuple(find_inputs(named, leave_out=output)), template, options["id_column"])


def _template(options: Mapping[str, Any]) -> Template:
    from aegis.mapper.template import Template  # noqa: PLC0415 - start-up time

    named = {name: options[name] for name in ("model", "max_tokens", "temperature")}
    parameters = {name: value for name, value in named.items() if value is not None}
    for text in options["param"]:
        name, value = _parameter(text)
        if name in parameters:
            raise ConfigError(f"--param {name}: it is given twice")
        parameters[name] = value
    kind: Kind = options["kind"] or KINDS[0]
    return Template(options["prompt"], kind, parameters, options["system"])


def _parameter(text: str) -> tuple[str, Any]:
    import json  # noqa: PLC0415 - start-up time

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--param {text!r} is no NAME=JSON", hint="such as --param seed=1")
    if name in TAKEN:
        raise ConfigError(f"--param {name}: that is for aegis to say", hint="leave it out")
    try:
        return name, json.loads(value)
    except ValueError:
        raise ConfigError(
            f"--param {name}: {value!r} is no JSON",
            hint=f"""text has quotes of its own: --param '{name}="..."'""",
        ) from None
