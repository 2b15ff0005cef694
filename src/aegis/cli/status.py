"""`aegis status`: jobs, and the servers of one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import open_jobs, remote_option, say
from aegis.cli.render import age, printable, shortened, table

if TYPE_CHECKING:
    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.runs import Manifest

ENDED = ("FAILED", "SHUTDOWN")
RECENT_SECONDS = 86400.0  # jobs that ended before are shown with --all only
OLD_SECONDS = 10.0
UNAVAILABLE = "UNAVAILABLE"  # what vec-inf says where there is no base URL


@click.command()
@click.argument("handle", required=False)
@click.option("--all", "show_all", is_flag=True, help="Also jobs that ended more than a day ago.")
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON.")
@remote_option
def command(handle: str | None, show_all: bool, as_json: bool, remote: str | None) -> None:
    """Show all jobs, or one job and its servers.

    HANDLE is what `aegis submit` printed (slurm://1234, pbs://1234.server, local://k3f9ab), its id (1234, k3f9ab), or
    that of a component (1234+1). Any job of yours is shown, whoever submitted it.
    """
    with open_jobs(remote) as jobs:
        manifests = _mine(jobs, show_all=show_all) if handle is None else jobs.find_all(handle)
        found = jobs.views(manifests) if manifests else []
    if as_json:
        _print_json(found, single=handle is not None and len(found) == 1)
    elif handle is not None and len(found) == 1:
        click.echo(_details(found[0]))
    elif found:
        click.echo(_overview(found))
    else:
        click.echo("no jobs", err=True)
    if handle is None and not as_json:
        for each in found:
            if each.service and each.base_url and each.reason:  # which has no room in its row
                say(f"{each.service}, {each.job_id}: {each.reason.splitlines()[0]}")
    oldest = max((each.answer_age or 0.0 for each in found), default=0.0)
    if oldest > OLD_SECONDS:
        say(f"the scheduler's last answer is {age(oldest)} old")


def _mine(jobs: Jobs, *, show_all: bool) -> list[Manifest]:
    """Return the jobs to show: those of schedulers that are here, and did not end long ago."""
    from aegis.fleet.jobs import is_final  # noqa: PLC0415 - start-up time

    since = time.time() - RECENT_SECONDS
    shown: list[Manifest] = []
    absent: dict[str, int] = {}
    for manifest in jobs.all():
        final = is_final(manifest)
        if final and not show_all and (manifest.ended or 0.0) < since:
            continue
        scheme = manifest.job.partition("://")[0]
        if final or jobs.present(scheme):
            shown.append(manifest)
        else:
            absent[scheme] = absent.get(scheme, 0) + 1
    for scheme, count in absent.items():
        say(f"{count} job{'s' * (count != 1)} of {scheme} not shown: its commands are not on PATH here")
    return shown


def _overview(found: list[JobView]) -> str:
    """Return a row for each job; of PBS without the domain of its server, which nobody has to give."""
    from aegis.runs import file_id  # noqa: PLC0415 - start-up time

    rows = [
        (
            f"{each.job_id.partition('://')[0]}://{file_id(each.job_id)}",
            each.model_name,
            _status(each),
            f"{each.healthy}/{each.instances}" if each.instances and each.model_status not in ENDED else "-",
            age(each.age),
            age(each.time_left) if each.time_left is not None else "-",
            each.base_url or shortened("" if _stages(each) else each.reason) or UNAVAILABLE,
        )
        for each in found
    ]
    head: tuple[str, ...] = ("JOB", "MODEL", "STATUS", "HEALTHY", "AGE", "LEFT", "BASE URL")
    if not any(each.service for each in found):
        return table(head, rows)
    named = [(job, each.service or "-", *rest) for each, (job, *rest) in zip(found, rows, strict=True)]
    return table((head[0], "SERVICE", *head[1:]), named)


def _status(each: JobView) -> str:
    return f"{each.model_status} ({each.reason})" if _stages(each) else each.model_status


def _stages(each: JobView) -> bool:
    """Tell whether the job's weights are on their way: its reason says how far."""
    return each.model_status == "LAUNCHING" and each.reason.startswith("staging ")


def _details(each: JobView) -> str:
    facts = [
        ("job", each.job_id),
        ("model", each.model_name),
        ("status", _status(each)),
        ("reason", "" if _stages(each) else each.reason),
        ("base url", each.base_url or UNAVAILABLE),
        ("service", each.service),
        ("before it", each.predecessor),
        ("after it", each.successor),
        ("nodes", each.node_list or each.host),
        ("restarts", each.restarts),
        ("registry", each.registry_url),
        ("endpoints", each.endpoints_file),
        ("logs", each.run_dir),
        ("log", each.log if not each.run_dir or not each.log.startswith(f"{each.run_dir}/") else None),
        ("age", age(each.age)),
        ("time left", age(each.time_left) if each.time_left is not None else None),
    ]
    indent = "\n" + " " * 11
    text = "\n".join(
        f"{name:<10} {indent.join(map(printable, str(value).splitlines()))}" for name, value in facts if value
    )
    if not each.services and not each.gateways:
        return text
    rows = [
        (
            service.service_id,
            service.metadata.get("model", "-"),
            f"{service.host}:{service.port}" if service.port else service.host,
            service.status,
            service.metadata.get("node", "-"),
            age(each_since) if (each_since := _since(service.metadata.get("since"))) is not None else "-",
            service.metadata.get("restarts", 0),
            shortened(str(service.metadata.get("reason") or service.metadata.get("log_error") or "")),
        )
        for service in (*each.services, *each.gateways)
    ]
    head = ("INSTANCE", "MODEL", "ADDRESS", "STATUS", "NODE", "SINCE", "RESTARTS", "REASON")
    return f"{text}\n\n{table(head, rows)}"


def _since(moment: object) -> float | None:
    return time.time() - moment if isinstance(moment, int | float) else None


def _print_json(found: list[JobView], *, single: bool) -> None:
    import msgspec  # noqa: PLC0415 - start-up time

    values = msgspec.to_builtins(found)
    for value in values:
        value["base_url"] = value["base_url"] or UNAVAILABLE
        for key in ("pending_reason", "failed_reason"):
            if value[key] is None:
                del value[key]
    encoded = msgspec.json.encode(values[0] if single else values)
    click.echo(msgspec.json.format(encoded, indent=2).decode())
