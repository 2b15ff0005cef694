"""`aegis status`: jobs, and the servers of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from aegis.cli.render import age, shortened, table

if TYPE_CHECKING:
    from aegis.fleet.status import JobView

ENDED = ("FAILED", "SHUTDOWN")
RECENT_SECONDS = 86400.0  # ended jobs older than this are shown with --all only


@click.command()
@click.argument("handle", required=False)
@click.option("--all", "show_all", is_flag=True, help="Also jobs that ended more than a day ago.")
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON.")
def command(handle: str | None, show_all: bool, as_json: bool) -> None:
    """Show all jobs, or one job and its servers.

    HANDLE is what `aegis submit` printed (local://k3f9ab), or its last part.
    """
    from aegis.runs import find_run, known_runs  # noqa: PLC0415 - start-up time

    runs = [find_run(handle, os.environ)] if handle else list(known_runs(os.environ))
    found: list[JobView] = []
    if runs:
        from aegis.fleet.status import views  # noqa: PLC0415 - start-up time

        found = views(runs)
    if not handle and not show_all:
        found = [each for each in found if each.model_status not in ENDED or each.age < RECENT_SECONDS]
    if as_json:
        _print_json(found, single=bool(handle))
    elif handle:
        click.echo(_details(found[0]))
    elif found:
        click.echo(_overview(found))
    else:
        click.echo("no jobs", err=True)


def _overview(found: list[JobView]) -> str:
    rows = [
        (
            each.job_id,
            each.model_name,
            each.model_status,
            f"{each.healthy}/{each.instances}" if each.instances and each.model_status not in ENDED else "-",
            age(each.age),
            age(each.time_left) if each.time_left is not None else "-",
            each.base_url or shortened(each.reason) or "-",
        )
        for each in found
    ]
    return table(("JOB", "MODEL", "STATUS", "HEALTHY", "AGE", "LEFT", "BASE URL"), rows)


def _details(each: JobView) -> str:
    facts = [
        ("job", each.job_id),
        ("model", each.model_name),
        ("status", each.model_status),
        ("reason", each.reason),
        ("base url", each.base_url),
        ("registry", each.registry_url),
        ("endpoints", each.endpoints_file),
        ("logs", each.run_dir),
        ("age", age(each.age)),
        ("time left", age(each.time_left) if each.time_left is not None else None),
    ]
    text = "\n".join(f"{name:<10} {value}" for name, value in facts if value)
    if not each.services:
        return text
    rows = [
        (
            service.service_id,
            service.metadata.get("model", "-"),
            f"{service.host}:{service.port}",
            service.status,
            service.metadata.get("node", "-"),
            age(each_since) if (each_since := _since(service.metadata.get("since"))) is not None else "-",
            service.metadata.get("restarts", 0),
            shortened(str(service.metadata.get("reason") or service.metadata.get("log_error") or "")),
        )
        for service in each.services
    ]
    head = ("INSTANCE", "MODEL", "ADDRESS", "STATUS", "NODE", "SINCE", "RESTARTS", "REASON")
    return f"{text}\n\n{table(head, rows)}"


def _since(moment: object) -> float | None:
    import time  # noqa: PLC0415 - start-up time

    return time.time() - moment if isinstance(moment, int | float) else None


def _print_json(found: list[JobView], *, single: bool) -> None:
    import msgspec  # noqa: PLC0415 - start-up time

    values = msgspec.to_builtins(found)
    for value in values:
        for key in ("pending_reason", "failed_reason"):
            if value[key] is None:
                del value[key]
    encoded = msgspec.json.encode(values[0] if single else values)
    click.echo(msgspec.json.format(encoded, indent=2).decode())
