"""`aegis scale`: change how many servers of a model a job runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import open_jobs, remote_option, say, waiting_for
from aegis.cli.render import print_json

if TYPE_CHECKING:
    from aegis.fleet.jobs import Jobs
    from aegis.registry.model import Granted, Wish
    from aegis.runs import Manifest

ONE_DAY = 86400.0


@click.command()
@click.argument("handle")
@click.option("--model", metavar="NAME", help="The model; needed where the job serves several.")
@click.option(
    "--instances",
    required=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="How many servers it is to have.",
)
@click.option("--wait", is_flag=True, help="Return when new servers are healthy and others have left.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: wait at most so long."
)
@click.option(
    "--grace",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Let servers that leave finish what they have, at most so long.",
)
@click.option("--force", is_flag=True, help="Take the last server of the last model too: the job ends.")
@click.option("--new-job", is_flag=True, help="Submit a further job for the servers that are missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@remote_option
def command(
    *,
    handle: str,
    model: str | None,
    instances: int,
    wait: bool,
    timeout: float | None,
    grace: float,
    force: bool,
    new_job: bool,
    as_json: bool,
    remote: str | None,
) -> None:
    """Change how many servers of a model a job runs, on the devices of its nodes that are free.

    More: the free devices are filled by the rules of the first placement, those of spare nodes last; what runs stays where
    it is. Fewer: those with the highest numbers take no new requests, finish what they have, and end. A model may go to 0 while
    others are left. With --wait the endpoints of the model are printed.

    With --new-job a further job of the same deployment is submitted, with this model alone, under the same service: what is
    missing from N in all its jobs. A gateway on the name of the service then serves them all.
    """
    from aegis.fleet.scaling import await_scaled, model_of, scale  # noqa: PLC0415 - start-up time
    from aegis.registry.model import Wish  # noqa: PLC0415 - as above

    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    with open_jobs(remote) as jobs:
        manifest = jobs.find(handle)
        wish = Wish(model=model_of(manifest, model), instances=instances, grace=grace, force=force)
        if new_job:
            _submit_further(jobs, manifest, wish, wait=wait, timeout=timeout, as_json=as_json)
            return
        granted = scale(jobs, manifest, wish)
        _tell(wish, granted)
        endpoints = []
        if wait:
            with waiting_for(manifest.job):
                endpoints = await_scaled(
                    jobs, manifest, granted, say, model=wish.model, timeout=timeout or ONE_DAY
                )
    if as_json:
        changes = {"starting": granted.starting, "leaving": granted.leaving}
        print_json(
            {
                "job_id": manifest.job,
                "model": wish.model,
                "instances": instances,
                **changes,
                "endpoints": endpoints,
            }
        )
    elif endpoints:
        click.echo("\n".join(endpoints))


def _tell(wish: Wish, granted: Granted) -> None:
    if granted.starting:
        say(f"starting {', '.join(granted.starting)}")
    if granted.leaving:
        say(f"leaving, once idle: {', '.join(granted.leaving)}")
    if not granted.starting and not granted.leaving:
        say(f"{wish.model} has {wish.instances} already")


def _submit_further(
    jobs: Jobs, manifest: Manifest, wish: Wish, *, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Submit a job for the servers that are missing, and say how both are reached."""
    from aegis.cli.options import resolve_options  # noqa: PLC0415 - start-up time
    from aegis.cli.submitting import print_submitted, submit_job, submitted_json  # noqa: PLC0415 - as above
    from aegis.fleet.scaling import further_job  # noqa: PLC0415 - as above

    further = further_job(manifest, jobs.all(), wish)
    with tempfile.TemporaryDirectory(prefix="aegis-scale-") as folder:
        values = {**further.deployment, "wait": wait, "platform": _profile(jobs, manifest, Path(folder))}
        file = Path(folder) / "deployment.yaml"
        file.write_text(_yaml(values))
        resolved = resolve_options(file, {}, no_environment=True)
    done = submit_job(
        [resolved], jobs.transport, dry_run=False, force=wish.force, wait_timeout=timeout, name=manifest.name
    )
    if done:
        say(
            f"{done.handle} adds {further.instances}; `aegis gateway {further.service}` serves all jobs of the service"
        )
        print_submitted(done, submitted_json(done, resolved) if as_json else None)


def _profile(jobs: Jobs, manifest: Manifest, folder: Path) -> str:
    """Return the platform of a job, as this machine finds it: a profile of the user's own lies in the run directory."""
    name = str(manifest.deployment.get("platform") or "auto")
    if jobs.is_here or os.sep not in name:
        return name
    copy = folder / Path(name).name
    copy.write_bytes(jobs.transport.read(name))
    return str(copy)


def _yaml(values: dict[str, object]) -> str:
    import yaml  # noqa: PLC0415 - start-up time

    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
