"""`aegis bench`: measure how fast servers answer; `sweep` and `compare` are commands of their own below it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import click

from aegis.cli import LazyGroup
from aegis.cli.bench_options import client_options, load_options, output_options, question_of
from aegis.cli.render import printable
from aegis.cli.servers import open_targets, read_key, server_options
from aegis.errors import AegisError, NotFoundError, PartialSuccess, SiteError
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegis.api.targets import Target
    from aegis.bench.question import Question
    from aegis.bench.report import Result

PASSED = "aegis.bench.passed"
BELOW = {
    "compare": ("aegis.cli.bench_compare", "Compare two results, with the noise between runs."),
    "sweep": ("aegis.cli.bench_sweep", "Measure load after load, up to saturation."),
}
TO_STDOUT = "-"
NO_TOKENIZER = "huggingface.co"  # where vLLM looks for one whose name is no path
TOKENIZER_HINT = "vllm looks for the tokenizer under the model's name; name it with `-- --tokenizer DIR`"


class Measure(click.Command):
    """The bench itself: everything after `--` is for `vllm bench serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what is after the first `--` from being read."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[PASSED] = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show that arguments may be passed on."""
        return [*super().collect_usage_pieces(ctx), "[-- ARG...]"]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands below."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(f"bench {name}", text) for name, (_, text) in sorted(BELOW.items())])


class Bench(LazyGroup):
    """Runs `measure` unless the first word is one of its commands."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = BELOW

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the words as those of `measure`, or of the command that they name."""
        if args and args[0] in self.table:
            return super().make_context(info_name, args, parent, **extra)
        if args and args[0].isalpha() and (meant := did_you_mean(args[0], self.table)):
            raise click.UsageError(f"`{args[0]}` is no job and no command of `aegis bench`: {meant}")
        return measure.make_context(info_name, args, parent, **extra)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the help of `measure`, which lists the commands."""
        measure.format_help(ctx, formatter)


class Plan(NamedTuple):
    """What is asked of whom."""

    targets: list[tuple[Target, str]]  # each with its model
    failed: list[Result]  # endpoints that do not answer
    question: Question
    key: str | None


@click.command(cls=Measure)
@click.argument("handle", metavar="[HANDLE]", required=False)
@server_options
@load_options
@client_options
@output_options
def measure(*, handle: str | None, **how: Any) -> None:
    """Measure every endpoint at the same time: throughput, TTFT, TPOT, ITL, E2E latency.

    HANDLE is a job; without it and other names of servers, the endpoints file counts. What comes after `--` is passed to
    `vllm bench serve`. An endpoint that fails is a row with its error, and the exit code is 7; 1 when all fail.
    """
    import signal  # noqa: PLC0415 - start-up time

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by anybody, it ends what it started
    passed: tuple[str, ...] = click.get_current_context().meta[PASSED]
    as_json = how["as_json"] or how["form"] == "json"
    question = _question(how, passed)
    if how["output"] == TO_STDOUT and as_json:
        raise click.UsageError("--output - and JSON both want stdout")
    with open_targets(handle, how) as targets:
        plan = _plan(targets.now()[1], _silent(targets.problem, how), how, question)
        results, about = _measured(plan, how, passed)
    _write(results, about, how["output"], as_json=as_json)
    _require(results)


def _question(how: Mapping[str, Any], passed: Sequence[str]) -> Question:
    from aegis.bench.serve import check_passed  # noqa: PLC0415 - only now

    check_passed(passed)
    if passed and how["generator"] == "aegis":
        raise click.UsageError("what is after -- is for vllm: leave it out, or --generator aegis")
    return question_of(how)


# ------------------------------------------------------------------------------------------- who is asked


def _plan(
    targets: Sequence[Target], failed: list[Result], how: Mapping[str, Any], question: Question
) -> Plan:
    wanted = how["model"]
    chosen = [
        (target, wanted or next(iter(target.models), ""))
        for target in targets
        if not wanted or wanted in target.models
    ]
    if targets and not chosen:
        served = ", ".join(sorted({name for target in targets for name in target.models})[:5])
        raise NotFoundError(f"no endpoint serves {wanted!r}", hint=f"there is: {served}")
    if not chosen and not failed:
        raise NotFoundError("there is no healthy server", hint="`aegis wait` waits until a job serves")
    return Plan(chosen, failed, question, read_key(how))


def _silent(problem: str, how: Mapping[str, Any]) -> list[Result]:
    """Return the endpoints of the file that did not tell their models, with what they did instead."""
    if not problem:
        return []
    from aegis.api.targets import Target, read_endpoints  # noqa: PLC0415 - start-up time
    from aegis.bench.report import Result  # noqa: PLC0415 - as above
    from aegis.spec.deployment import ENDPOINTS  # noqa: PLC0415 - as above

    said = {text.partition(" ")[0]: text for text in problem.split("; ")}
    addresses = (
        Target(*each, ()).address for each in read_endpoints(how["endpoints_file"] or Path(ENDPOINTS))
    )
    return [
        Result(endpoint=address, error=said[address].removeprefix(f"{address} "))
        for address in addresses
        if address in said
    ]


# ------------------------------------------------------------------------------------------- how it is measured


def _measured(
    plan: Plan, how: Mapping[str, Any], passed: Sequence[str]
) -> tuple[list[Result], dict[str, Any]]:
    """Return the results of all endpoints, those that did not answer last, and what is to be said of the run."""
    import msgspec  # noqa: PLC0415 - start-up time

    from aegis.cli.bench_client import client_of, is_here  # noqa: PLC0415 - only now

    about: dict[str, Any] = {
        "generator": "none",
        "load": msgspec.to_builtins(plan.question) | {"text": plan.question.text},
        "warnings": [],
    }
    if not plan.targets:
        return plan.failed, about

    def warn(text: str) -> None:
        about["warnings"].append(text.removeprefix("warning: "))
        _say(text)

    client = client_of(how)
    there = how["generator"] != "aegis" and is_here(client)
    vllm = how["generator"] == "vllm" or bool(passed) or there
    if vllm and not there and how["launcher"] in {"auto", "local"}:
        raise SiteError(
            "there is no vllm on PATH here",
            hint="name its environment with --conda-env or --image; --generator aegis needs none",
        )
    count = "1 endpoint" if len(plan.targets) == 1 else f"{len(plan.targets)} endpoints"
    ours = f"built-in generator{'' if how['generator'] == 'aegis' else ' (there is no vllm here)'}"
    _say(f"{count}: {plan.question.text}; {'vllm bench serve' if vllm else ours}")
    results = _with_vllm(client, plan, passed, about, warn) if vllm else _with_ours(plan, how, about, warn)
    return [*results, *plan.failed], about


def _with_vllm(
    client: Any, plan: Plan, passed: Sequence[str], about: dict[str, Any], warn: Callable[[str], None]
) -> list[Result]:
    from aegis.cli.bench_client import run_vllm  # noqa: PLC0415 - only now

    def tell(ended: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{ended} of {len(plan.targets)} endpoints measured", nl=False, err=True)

    tell(0)
    try:
        results, launcher = run_vllm(
            client,
            plan.targets,
            [*plan.question.vllm_words(), *passed],
            api_key=plan.key,
            say=warn,
            tell=tell,
        )
    finally:
        if sys.stderr.isatty():
            click.echo(err=True)
    about |= {"generator": "vllm", "launcher": launcher, "passed": list(passed)}
    return results


def _with_ours(
    plan: Plan, how: Mapping[str, Any], about: dict[str, Any], warn: Callable[[str], None]
) -> list[Result]:
    import msgspec  # noqa: PLC0415 - start-up time

    from aegis.bench.builtin import run_builtin  # noqa: PLC0415 - asyncio and numpy

    results, generator = run_builtin(
        plan.targets,
        plan.question,
        seconds=how["timeout"],
        processes=how["processes"],
        api_key=plan.key,
    )
    about["generator"] = "aegis"
    if generator is not None:
        problem = generator.problem()
        about["load_generator"] = {**msgspec.to_builtins(generator), "problem": problem}
        if problem:
            warn(f"warning: these figures may be those of the generator: {problem}")
    return results


# ------------------------------------------------------------------------------------------- what came of it


def _write(results: Sequence[Result], about: dict[str, Any], output: str | None, *, as_json: bool) -> None:
    from aegis.bench.report import as_json as json_of  # noqa: PLC0415 - start-up time
    from aegis.bench.report import csv_text  # noqa: PLC0415 - as above
    from aegis.cli.bench_text import text_of  # noqa: PLC0415 - as above
    from aegis.files import write_atomically  # noqa: PLC0415 - as above

    if output == TO_STDOUT:
        click.echo(csv_text(results), nl=False)
        return
    click.echo(json_of(results, **about) if as_json else text_of(results))
    if output:
        try:
            write_atomically(Path(output), csv_text(results))
        except OSError as error:
            raise AegisError(f"--output {output!r} cannot be written: {error.strerror}") from None


def _require(results: Sequence[Result]) -> None:
    """Raise where something failed.

    Raises:
        AegisError: no request of any endpoint was answered.
        PartialSuccess: some were.
    """
    wrong = [result for result in results if result.error]
    if not wrong:
        return
    text = f"{len(wrong)} of {len(results)} endpoints failed, or some of their requests did"
    first = f"{wrong[0].endpoint}: {wrong[0].error}"
    hint = TOKENIZER_HINT if NO_TOKENIZER in first else None
    if any(result.measured for result in results):
        raise PartialSuccess(f"{text}: {first}", hint=hint)
    raise AegisError(f"no endpoint answered: {first}", hint=hint)


def _say(line: str) -> None:
    click.echo(printable(line), err=True)


command = Bench("bench", help="Measure how fast servers answer.")
