"""`aegis plan size`: how many GPUs or nodes of each machine a load needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.plan.load import (
    asked_load,
    asked_targets,
    chosen_calibration,
    chosen_estimator,
    database_mode_option,
    estimator_options,
    flag,
    load_options,
    target_options,
)
from aegis.cli.plan.options import PlanCommand, Progress
from aegis.cli.render import print_json, shortened, table
from aegis.errors import AegisError, ConfigError
from aegis.planner.everywhere import Place, Wish, check_load, platform_places, sizes, system_places
from aegis.planner.problem import BACKENDS
from aegis.planner.report.words import between, configuration
from aegis.planner.size import Need
from aegis.planner.systems import system_names
from aegis.spec.platforms import Site, load_platform, profile_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.everywhere import Offer
    from aegis.planner.problem import ServingMode

LEAST_RATE, MOST_RATE = 1e-6, 1e6  # requests/s
_MODES: dict[str, tuple[ServingMode, ...]] = {
    "agg": ("agg",),
    "disagg": ("disagg",),
    "any": ("agg", "disagg"),
}
HEAD = (
    "WHERE",
    "SYSTEM",
    "NODES",
    "GPUS",
    "REPLICAS",
    "MODE",
    "EACH",
    "TTFT",
    "TPOT",
    "TOKENS/S/GPU",
    "NODE-HOURS",
)


@click.command(cls=PlanCommand)
@click.option(
    "--rate", type=float, required=True, metavar="PER_SECOND", help="Requests that arrive in a second."
)
@click.option(
    "--requests", type=int, metavar="N", help="Requests in all: adds the node-hours that they take."
)
@click.option(
    "--headroom",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Capacity that stays free for bursts, e.g. 0.2.",
)
@click.option(
    "--platform", "platforms", multiple=True, metavar="NAME", help="Only this platform. Repeatable."
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME",
    help="A kind of GPU, whatever platform has it; `any` for all there are. Repeatable.",
)
@load_options
@target_options
@database_mode_option
@estimator_options
@click.option(
    "--backend",
    type=click.Choice([*BACKENDS, "any"]),
    default="vllm",
    show_default=True,
    help="Engine; any: the best of all.",
)
@click.option(
    "--serving-mode",
    type=click.Choice(list(_MODES)),
    default="agg",
    show_default=True,
    help="agg, which `aegis submit` serves; disagg, which takes a router of your own; or the smaller of both.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, the smallest machine first.")
def command(**options: Any) -> None:
    """Say how many GPUs and nodes a load needs on each machine: by default, all platforms that have a profile.

    \b
    aegis plan size --model LLAMA3.1_70B --rate 5 --isl 2000 --osl 300 --requests 1000000
    """  # noqa: D301 - \\b keeps click from filling the line
    need = _need(options)
    load, targets = asked_load(options), asked_targets(options)
    wish = Wish(
        model=options["model"],
        load=load,
        targets=targets,
        estimator=chosen_estimator(options),
        calibration=chosen_calibration(options),
        backend=options["backend"],
        modes=_MODES[options["serving_mode"]],
        database_mode=options["database_mode"],
        where=flag,
    )
    problems = [str(problem) for problem in check_load(wish)]
    if problems:
        raise ConfigError("\n".join(problems))
    with Progress() as progress:
        offers = sizes(_places(options["platforms"], options["systems"]), wish, need, tell=progress.tell)
    if options["as_json"]:
        print_json([_document(each) for each in offers])
    else:
        _print(offers)
    if not any(each.sizing for each in offers):
        raise AegisError(
            "nothing meets the targets anywhere",
            hint="allow for more with --ttft and --tpot, or ask `aegis plan why`",
        )


def _need(options: dict[str, Any]) -> Need:
    """Return what has to be served.

    Raises:
        ConfigError: a number that cannot be meant.
    """
    if not LEAST_RATE <= options["rate"] <= MOST_RATE:
        hint = f"it is at least {LEAST_RATE:g}, at most {MOST_RATE:g}"
        raise ConfigError(f"--rate: {options['rate']:g} requests/s are no load", hint=hint)
    if not 0 <= options["headroom"] < 1:
        raise ConfigError(
            f"--headroom: {options['headroom']:g} is no share", hint="it is at least 0 and below 1"
        )
    if options["requests"] is not None and options["requests"] < 1:
        raise ConfigError(f"--requests: {options['requests']} is too few", hint="it is at least 1")
    return Need(rate=options["rate"], requests=options["requests"], headroom=options["headroom"])


def _places(platforms: Sequence[str], systems: Sequence[str]) -> tuple[Place, ...]:
    """Return the places that are asked about; by default every platform whose devices are known.

    Raises:
        ConfigError: unknown platform or system, or a platform that does not say what its devices are.
    """
    site = Site.here(os.environ)
    if not platforms and not systems:
        return platform_places([load_platform(name, site) for name in sorted(profile_files(site))])
    found: list[Place] = []
    for name in platforms:
        of_platform = platform_places([load_platform(name, site)])
        if not of_platform:
            raise ConfigError(
                f"--platform: the profile {name} does not say which `systems` it has", hint="take --system"
            )
        found += of_platform
    names = system_names() if "any" in systems else systems
    return (*found, *system_places(names))


def _print(offers: Sequence[Offer]) -> None:
    rows = [_row(each) for each in offers if each.sizing]
    if rows:
        click.echo(table(HEAD, rows))
    for each in offers:
        if each.sizing is None:
            click.echo(f"{_name(each.place)}: {shortened(each.why_none or '', 200)}", err=True)
    for note in dict.fromkeys(note for each in offers if each.sizing for note in each.notes):
        click.echo(f"note: {note}", err=True)


def _name(place: Place) -> str:
    return place.name if place.name == place.system else f"{place.name} ({place.system})"


def _row(offer: Offer) -> tuple[object, ...]:
    sizing = offer.sizing
    assert sizing is not None  # noqa: S101 - only those are shown
    best = sizing.candidate
    sure = between(best.tokens_per_s_gpu, best.spread)
    too_many = offer.place.most_nodes is not None and sizing.nodes > offer.place.most_nodes
    return (
        offer.place.name,
        f"{offer.place.system}{f' (estimated, +-{offer.uncertainty:.0%})' if offer.uncertainty else ''}",
        f"{sizing.nodes}{f' (queues give {offer.place.most_nodes})' if too_many else ''}",
        sizing.gpus,
        sizing.replicas,
        best.mode,
        configuration(best),
        f"{best.ttft:.0f} ms",
        f"{best.tpot:.1f} ms",
        f"{best.tokens_per_s_gpu:.0f}{f', {sure}' if sure else ''}",
        "" if sizing.node_hours is None else f"{sizing.node_hours:,.1f}",
    )


def _document(offer: Offer) -> dict[str, Any]:
    from aegis.planner.report.document import builtins  # noqa: PLC0415 - only for JSON

    document: dict[str, Any] = builtins(offer)
    return document
