"""`aegis bench sweep`: a model's servers at growing load, until they are saturated."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.bench_sweep_options import check, levels_of, load_options, question_of, result_options
from aegis.cli.render import print_json, printable
from aegis.cli.servers import open_targets, read_key, server_options
from aegis.errors import AegisError, ConfigError, InterruptedByUser, NotFoundError, PartialSuccess, SiteError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegis.api.targets import Target
    from aegis.bench.prompts import Tokens
    from aegis.bench.sweep.document import Question, Sweep
    from aegis.bench.sweep.measure import Meter
    from aegis.cli.bench_sweep_plan import Predict

ASKED = 3  # servers that are asked what they make of words, before the model is given up


@click.command()
@click.argument("handle", required=False, metavar="[ID]")
@server_options
@load_options
@result_options
def command(handle: str | None, **options: Any) -> None:
    """Measure a model's servers at growing load, all of them at once, until they are saturated.

    The servers are those of the job ID, of --endpoints-file or of a registry. Prompts come from the built-in load
    generator; no vLLM is needed here. A sweep that was stopped goes on where it ended.

    \b
    aegis bench sweep --endpoints-file aegis_endpoints.txt --ttft 500 --tpot 30
    """  # noqa: D301 - \b keeps click from filling the line
    check(options)
    predict = _predictor(options)
    folder: Path = options["output"]
    if options["report"]:
        sweep = _reported(folder, options, predict)
    else:
        with open_targets(handle, options) as found:
            model, targets = _servers(found.now()[1], options["model"], found.problem)
            sweep = _measured(
                _begun(question_of(options, model, targets), folder, options, predict),
                targets,
                options,
                predict,
            )
    _show(sweep, folder, as_json=options["as_json"] or options["form"] == "json")
    _judge(sweep)


def _reported(folder: Path, options: Mapping[str, Any], predict: Predict | None) -> Sweep:
    """Return what a folder holds, with what is said of it anew."""
    from aegis.bench.sweep.document import FILE, read  # noqa: PLC0415 - start-up time

    sweep = _with_asked(read(folder / FILE), options, predict)
    _save(sweep, folder)
    return sweep


def _begun(question: Question, folder: Path, options: Mapping[str, Any], predict: Predict | None) -> Sweep:
    """Return the sweep as it is before anything is measured."""
    from aegis.bench.sweep.document import FILE, Sweep, kept  # noqa: PLC0415 - start-up time

    points = kept(folder / FILE, question)
    count = len(question.servers)
    _tell(
        f"{question.model}: {count} server{'s' * (count > 1)}"
        + f", {len(points)} points are there" * bool(points)
    )
    sweep = Sweep(question=question, machine=_machine(), points=points)
    return _with_asked(sweep, options, predict)


def _with_asked(sweep: Sweep, options: Mapping[str, Any], predict: Predict | None) -> Sweep:
    """Return a sweep with the targets, GPUs and plan of the flags; what is not named anew stays."""
    from msgspec.structs import replace  # noqa: PLC0415 - start-up time

    from aegis.bench.sweep.document import Targets  # noqa: PLC0415 - as above

    gpus = options["gpus"] or (predict.gpus if predict else sweep.gpus)
    targets = Targets(ttft=options["ttft"], tpot=options["tpot"], statistic=options["sla"])
    asked = replace(sweep, gpus=gpus, targets=targets or sweep.targets)
    return predict.added(asked) if predict else asked


def _servers(targets: Sequence[Target], model: str | None, problem: str) -> tuple[str, list[Target]]:
    """Return the model that is measured, and its servers by address."""
    names = sorted({name for target in targets for name in target.models})
    if problem:
        _tell(f"left out: {problem}")
    if not targets:
        raise SiteError("there is no server to measure", hint=problem or "no instance is healthy at present")
    if model is None and len({target.models for target in targets}) > 1:
        raise ConfigError(
            f"the servers have several models: {', '.join(names)}", hint="choose one with --model"
        )
    chosen = model or (targets[0].models or ("",))[0]
    serving = [target for target in targets if chosen in target.models]
    if not chosen or not serving:
        raise NotFoundError(
            f"no server has the model {chosen!r}", hint=f"there are: {', '.join(names) or 'none'}"
        )
    return chosen, sorted(serving, key=lambda each: each.address)


def _measured(
    sweep: Sweep, targets: Sequence[Target], options: Mapping[str, Any], predict: Predict | None
) -> Sweep:
    """Measure what is missing; each point is saved before the next begins."""
    from aegis.bench.sweep.run import Steps, complete, ended, run  # noqa: PLC0415 - start-up time
    from aegis.cli.bench_sweep_text import line  # noqa: PLC0415 - as above

    folder: Path = options["output"]
    latest = sweep

    def begin(level: float) -> None:
        if sys.stderr.isatty():
            click.echo(f"{sweep.question.kind} {level:g} ...", err=True, nl=False)

    def done(now: Sweep, level: float) -> Sweep:
        nonlocal latest
        latest = predict.added(now) if predict else now
        _save(latest, folder)
        click.echo(line(latest, level), err=True)
        return latest

    try:
        latency = sweep.points[0].figures["mean_e2el_ms"] / 1000 if sweep.points else 0.0
        levels = levels_of(sweep, options, latency)
        if sweep.points and complete(sweep, levels):
            sweep = ended(sweep, levels)
        else:
            meter = _meter(sweep.question, targets, options)
            if not latency:
                latency = meter.latency()
                levels = levels_of(sweep, options, latency)
                _tell(f"a request by itself takes {latency:.3g} s")
            sweep = run(sweep, levels, meter, latency, Steps(begin, done))
    except KeyboardInterrupt:
        _tell("")
        raise InterruptedByUser(
            f"interrupted; {len(latest.points)} points are kept", hint="the same command goes on"
        ) from None
    _save(sweep, folder)
    return sweep


def _meter(question: Question, targets: Sequence[Target], options: Mapping[str, Any]) -> Meter:
    from aegis.bench.prompts import Tokens  # noqa: PLC0415 - start-up time
    from aegis.bench.sweep.loads import Loads  # noqa: PLC0415 - as above
    from aegis.bench.sweep.measure import Meter  # noqa: PLC0415 - as above

    key = read_key(options)
    tokens = _learn(targets, question, key) if question.dataset == "random" else Tokens()
    loads = Loads(question=question, targets=tuple(targets), tokens=tokens, timeout=options["timeout"])
    return Meter(loads, len(os.sched_getaffinity(0)), key, options["processes"] or 0)


def _learn(targets: Sequence[Target], question: Question, key: str | None) -> Tokens:
    """Return what the servers make of words, as the first that answers counts."""
    from aegis.bench.learn import learn_tokens  # noqa: PLC0415 - start-up time

    problem: SiteError | None = None
    for target in targets[:ASKED]:
        try:
            return learn_tokens(target, question.model, chat=question.chat, api_key=key)
        except SiteError as error:
            _tell(error.message)
            problem = error
    assert problem is not None  # noqa: S101 - there is a target
    raise problem


def _machine() -> dict[str, str]:
    """Return where the load comes from."""
    import platform  # noqa: PLC0415 - start-up time

    from aegis import __version__  # noqa: PLC0415 - as above

    return {
        "host": platform.node(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "aegis": __version__,
    }


def _predictor(options: Mapping[str, Any]) -> Predict | None:
    if options["plan"] is None:
        return None
    from aegis.cli.bench_sweep_plan import Predict  # noqa: PLC0415 - start-up time

    return Predict(options["plan"], options["calibration"])


def _save(sweep: Sweep, folder: Path) -> None:
    """Write the files of a sweep, sweep.json last: it is what a later run goes on from."""
    from aegis.bench.sweep.document import FILE, write  # noqa: PLC0415 - start-up time
    from aegis.bench.sweep.page import page  # noqa: PLC0415 - as above
    from aegis.bench.sweep.table import csv_text  # noqa: PLC0415 - as above
    from aegis.files import write_atomically  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "sweep.csv", csv_text(sweep))
    write_atomically(folder / "sweep.html", page(sweep))
    write(sweep, folder / FILE)


def _show(sweep: Sweep, folder: Path, *, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        import msgspec  # noqa: PLC0415 - only for JSON

        print_json(msgspec.to_builtins(sweep))
    else:
        from aegis.cli.bench_sweep_text import report  # noqa: PLC0415 - JSON needs none of it

        click.echo(report(sweep))
    _tell(f"written: {folder / 'sweep.html'}, sweep.csv, sweep.json")


def _judge(sweep: Sweep) -> None:
    """Say by the exit code what came of it."""
    broken = [point for point in sweep.points if point.broken]
    if broken and len(broken) == len(sweep.points):
        raise AegisError("every point failed", hint="`aegis logs ID` shows what the servers say")
    if broken:
        levels = ", ".join(f"{point.level:g}" for point in broken)
        raise PartialSuccess(
            f"requests failed at {sweep.question.kind} {levels}",
            hint="the same command measures these points again",
        )


def _tell(text: str) -> None:
    click.echo(printable(text), err=True)
