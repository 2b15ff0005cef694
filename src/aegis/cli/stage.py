"""`aegis stage`: bring weights, environment and image onto the nodes; or look what that takes, check it, remove it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.options import DeploymentCommand, deployment_options, resolve_options
from aegis.cli.render import print_json, printable, shortened, table
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.fleet.staging import Ground
    from aegis.spec.resolve import Resolved
    from aegis.staging.choose import Choice
    from aegis.staging.estimate import Estimate
    from aegis.staging.plan import Plan
    from aegis.staging.stage import Action, Results

HOSTS_SHOWN = 3


@click.command(cls=DeploymentCommand)
@deployment_options
@click.option(
    "--dry-run", is_flag=True, help="Show bytes, files, the room that nodes need and the time it takes."
)
@click.option("--verify", is_flag=True, help="Hash again what is staged, on all nodes.")
@click.option("--clean", is_flag=True, help="Remove from the nodes what was staged.")
@click.option("--only", metavar="NODE,...", help="Stage to these nodes only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    config: Path | None,
    no_environment: bool,
    dry_run: bool,
    verify: bool,
    clean: bool,
    only: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Bring the weights, the environment and the image of a deployment onto the nodes that need them.

    Runs inside of a job, or on this machine. What is there already is skipped, what was cut off goes on where it stopped,
    and nothing is seen half. Exits with 7 when some nodes lack something, with 1 when all do.
    """
    import signal  # noqa: PLC0415 - start-up time

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by anybody, it cleans up behind itself
    if dry_run + verify + clean > 1:
        raise click.UsageError("--dry-run, --verify and --clean exclude each other")
    from aegis.fleet.stagers import chosen  # noqa: PLC0415 - start-up time
    from aegis.fleet.staging import ground_of  # noqa: PLC0415 - as above

    resolved = resolve_options(config, options, no_environment=no_environment)
    ground = ground_of(resolved, os.environ, imagine=dry_run)
    nodes = _chosen(only, ground)
    choice = chosen(resolved.deployment, ground, os.environ)
    if dry_run:
        _dry_run(resolved, ground, choice, nodes, as_json=as_json)
        return
    if choice.stager == "none":
        _say("nothing is staged: servers read the sources")
        return
    action: Action = "verify" if verify else "clean" if clean else "stage"
    results, plan = _run(resolved, ground, choice, action, nodes)
    if as_json:
        print_json(_results_json(results, plan, choice))
    else:
        click.echo(_results_text(results, plan))
    results.require()


def _run(
    resolved: Resolved,
    ground: Ground,
    choice: Choice,
    action: Action,
    only: list[str],
) -> tuple[Results, Plan]:
    from aegis.fleet.stagers import stager_for  # noqa: PLC0415 - start-up time
    from aegis.fleet.staging import fetch, planned, to_clean, wants_of  # noqa: PLC0415 - as above
    from aegis.staging.estimate import note  # noqa: PLC0415 - as above
    from aegis.staging.progress import Progress, Reporter  # noqa: PLC0415 - as above
    from aegis.staging.stage import stage  # noqa: PLC0415 - as above

    deployment = resolved.deployment
    token = resolved.hf_token.reveal() if resolved.hf_token else None
    if action == "stage":
        fetch(deployment, os.environ, token, _say)
    wants = wants_of(deployment, ground, gone=action == "clean")
    made = to_clean(wants, only) if action == "clean" else planned(
        [want for want in wants if action != "verify" or want.kind != "environment"], deployment, only=only, tell=_say
    )  # fmt: skip
    with made as plan:
        watch = Reporter(
            Progress([item.size for item in plan.items], [item.hosts for item in plan.items]), sys.stderr
        )
        try:
            results = stage(
                plan.items,
                plan.hosts,
                stager_for(choice, ground, deployment, os.environ, _say),
                watch,
                action,
            )
        finally:
            watch.close()
    if action == "stage":
        note(os.environ, ground.platform.name, choice.stager, results.bytes_read, results.seconds)
    return results, plan


def _chosen(only: str | None, ground: Ground) -> list[str]:
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in ground.hosts]:
        raise ConfigError(
            f"--only: {', '.join(unknown)}: no node of this deployment",
            hint=f"its nodes: {_hosts_text(ground.hosts)}",
        )
    return names


# ------------------------------------------------------------------------------------------- what it takes


def _dry_run(resolved: Resolved, ground: Ground, choice: Choice, only: list[str], *, as_json: bool) -> None:
    from aegis.fleet.staging import planned, wants_of  # noqa: PLC0415 - start-up time
    from aegis.staging.estimate import estimate, measured  # noqa: PLC0415 - as above

    wants = wants_of(resolved.deployment, ground, hashed=False)
    with planned(wants, resolved.deployment, only=only, dry_run=True) as plan:
        for entry in resolved.deployment.models:
            if entry.download_weights and all(want.name != entry.name for want in plan.wants):
                _say(f"{entry.name} is to be downloaded first: how large it is, is not known here")
        rates = measured(os.environ, ground.platform.name, choice.stager)
        takes = estimate(plan.size, plan.files, len(plan.hosts), rates)
        if as_json:
            print_json(_plan_json(plan, choice, takes))
        else:
            click.echo(_plan_text(plan, ground, choice, takes))


def _plan_text(plan: Plan, ground: Ground, choice: Choice, takes: Estimate) -> str:
    from aegis.staging.local import free_space  # noqa: PLC0415 - start-up time
    from aegis.staging.progress import size_text  # noqa: PLC0415 - as above

    if not plan.items:
        return "nothing to stage"
    rows = [
        (want.kind, want.name, size_text(item.size), len(item.files), len(item.hosts), item.destination)
        for item, want in zip(plan.items, plan.wants, strict=True)
    ]
    needs = []
    for need in plan.needs():
        line = f"{_hosts_text(need.hosts)}: {size_text(need.size)} in {need.files} files"
        if choice.stager == "copy":
            free = min(free_space(plan.items[number].destination) for number in need.items)
            line += f", {size_text(free)} free" + (": too little" if need.size > free else "")
        needs.append(line)
    flow = f"start {takes.start:.1f}, fill {takes.fill:.1f}, files {takes.files:.1f}, {takes.slowest} {takes.flow:.1f}"
    lines = [
        table(("WHAT", "NAME", "SIZE", "FILES", "NODES", "TO"), rows),
        "",
        *needs,
        f"stager {choice.stager}: {choice.why}",
        f"{f'about {takes.seconds:.0f} s' if takes.seconds >= 1 else 'less than a second'} ({flow})",
    ]
    if not ground.real:
        lines.append("this is no allocation: the nodes stand for those that a job will have")
    return "\n".join(lines)


def _plan_json(plan: Plan, choice: Choice, takes: Estimate) -> dict[str, Any]:
    return {
        "stager": choice.stager,
        "why": choice.why,
        "bytes": plan.size,
        "files": plan.files,
        "delivered_bytes": plan.delivered,
        "estimated_seconds": round(takes.seconds, 3),
        "items": _items_json(plan),
        "nodes": [
            {"hosts": [printable(host) for host in need.hosts], "bytes": need.size, "files": need.files}
            for need in plan.needs()
        ],
    }


def _items_json(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "kind": want.kind,
            "name": want.name,
            "source": _text(item.source),
            "destination": _text(item.destination),
            "loaded": _text(want.loaded),
            "bytes": item.size,
            "files": len(item.files),
            "hosts": list(item.hosts),
        }
        for item, want in zip(plan.items, plan.wants, strict=True)
    ]


# ------------------------------------------------------------------------------------------- what came of it


def _results_text(results: Results, plan: Plan) -> str:
    from aegis.staging.progress import size_text  # noqa: PLC0415 - start-up time

    if not results.items:
        return "nothing to stage"
    rows = []
    for number, (item, want) in enumerate(zip(plan.items, plan.wants, strict=True)):
        nodes = [each for each in results.nodes if each.item == number]
        there = sum(each.ok for each in nodes)
        skipped = sum(each.skipped for each in nodes)
        rows.append(
            (
                want.kind,
                want.name,
                size_text(item.size) if results.action != "clean" else "-",
                f"{there} of {len(nodes)}",
                skipped,
                item.destination,
            )
        )
    head = {"stage": "SKIPPED", "verify": "SKIPPED", "clean": "NOT THERE"}[results.action]
    text = table(("WHAT", "NAME", "SIZE", "NODES", head, "TO"), rows)
    if not results.bytes_read:
        return text
    did = "read" if results.action == "stage" else "hashed"
    rate = size_text(results.bytes_read / max(results.seconds, 1e-3))
    return f"{text}\n\n{size_text(results.bytes_read)} {did} in {results.seconds:.1f} s, {rate}/s"


def _results_json(results: Results, plan: Plan, choice: Choice) -> dict[str, Any]:
    return {
        "action": results.action,
        "stager": choice.stager,
        "seconds": round(results.seconds, 3),
        "bytes_read": results.bytes_read,
        "items": _items_json(plan),
        "nodes": [
            {
                "item": each.item,
                "host": each.host,
                "ok": each.ok,
                "skipped": each.skipped,
                "bytes": each.bytes,
                "error": _text(each.error) if each.error else None,
            }
            for each in results.nodes
        ],
    }


def _hosts_text(hosts: tuple[str, ...]) -> str:
    names = ", ".join(hosts[:HOSTS_SHOWN])
    more = len(hosts) - HOSTS_SHOWN
    return shortened(names, 200) + (f" and {more} more" if more > 0 else "")


def _text(path: str) -> str:
    """Return a path that JSON can hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _say(line: str) -> None:
    click.echo(printable(line), err=True)
