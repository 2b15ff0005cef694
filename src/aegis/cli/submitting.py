"""What `submit`, `launch MODEL` and `batch-launch` share: the flags of a submission, and what is said of it."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct

from aegis.cli.catalog_options import catalog_deployment, catalog_only
from aegis.cli.flags import with_flags
from aegis.cli.jobs import say, waiting_for
from aegis.cli.options import resolve_options
from aegis.cli.render import print_json
from aegis.errors import AegisError  # noqa: TC001 - a field of a struct
from aegis.spec.deployment import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.schedulers.base import Component
    from aegis.schedulers.transport import Transport
    from aegis.spec.resolve import Resolved


def warn(line: str) -> None:
    """Tell a doubt."""
    click.echo(f"warning: {line}", err=True)


def submission_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of every command that submits."""
    flags = (
        click.option("--dry-run", is_flag=True, help="Print the job script and make nothing."),
        click.option("--force", is_flag=True, help="Submit what will probably fail."),
        click.option(
            "--remote",
            metavar="USER@HOST",
            help="Submit on this login node, through ssh: one prompt, one connection.",
        ),
        click.option(
            "--wait-timeout",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="With --wait: wait at most so long.",
        ),
        click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON."),
    )
    return with_flags(function, flags)


@contextlib.contextmanager
def transport_to(remote: str | None) -> Iterator[Transport]:
    """Yield the way to the scheduler: this machine, or a connection that is closed at the end."""
    if remote is None:
        from aegis.schedulers.transport import Here  # noqa: PLC0415 - start-up time

        yield Here(os.environ)
        return
    from aegis.schedulers.ssh import connect  # noqa: PLC0415 - only with --remote

    with connect(remote, say) as transport:
        yield transport


class Submitted(Struct, frozen=True):
    """What a submission led to."""

    handle: str
    models: tuple[str, ...]
    endpoints: tuple[str, ...] = ()  # after --wait
    problem: AegisError | None = None  # some servers were given up
    waited: bool = False
    components: tuple[Component, ...] = ()  # of the job


def resolve_wish(
    model_name: str | None,
    config: Path | None,
    options: Mapping[str, Any],
    *,
    transport: Transport,
    no_environment: bool = False,
) -> Resolved:
    """Resolve what a command was asked for: a deployment file with flags, or a model of the catalog.

    Raises:
        ConfigError: with every problem of file, environment and flags.
        NotFoundError: the catalog has no such model.
    """
    from aegis.schedulers.transport import Here  # noqa: PLC0415 - start-up time

    site = exists = None
    here = isinstance(transport, Here)
    if not here:
        from aegis.fleet.submit import far_site  # noqa: PLC0415 - only with --remote

        site, exists = far_site(transport, os.environ), partial(_exists_there, transport)
    if model_name is None:
        catalog_only(options)
        resolved = resolve_options(config, dict(options), no_environment=no_environment, site=site)
    else:
        resolved = catalog_deployment(
            model_name,
            config,
            options,
            os.environ,
            site=site,
            exists=exists,
            no_environment=no_environment,
        )
        for line in resolved.warnings:
            warn(line)
    if resolved.deployment.map is not None:
        from aegis.cli.work import check_work  # noqa: PLC0415 - only for a job that has work

        check_work(resolved, here=here)
    if resolved.deployment.gateway_keys is not None:
        from aegis.cli.gateway_wish import check_gateway_keys  # noqa: PLC0415 - only for a job that has such

        check_gateway_keys(resolved, transport, here=here)
    return resolved


def _exists_there(transport: Transport, path: str) -> bool:
    """Tell whether a path is there, at the far end."""
    whole = transport.home() + path[1:] if path == "~" or path.startswith("~/") else path
    return transport.run(["test", "-e", whole]).code == 0


def submit_job(
    resolved: Sequence[Resolved],
    transport: Transport,
    *,
    dry_run: bool,
    force: bool,
    wait_timeout: float | None,
    name: str | None = None,
    tell: bool = False,
) -> Submitted | None:
    """Submit a job, and wait for it where that is asked for.

    Args:
        resolved: what it is to serve.
        transport: where it is submitted.
        dry_run: print the script instead.
        force: submit what will probably fail.
        wait_timeout: seconds to wait at most.
        name: of the job.
        tell: say what models of the catalog have got.

    Returns:
        Nothing after a dry run, which has printed the script.

    Raises:
        AegisError: it cannot work, is refused, or ended before its servers were ready.
    """
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time
    from aegis.fleet.submit import prepare, submit  # noqa: PLC0415 - as above

    wait = resolved[0].deployment.wait
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait")
    jobs = Jobs(os.environ, transport)
    prepared = prepare(resolved, jobs, name=name, force=force, warn=warn)
    if dry_run:
        click.echo(prepared.script, nl=False)
        return None
    submission = submit(prepared, jobs)
    for warning in submission.warnings:
        warn(warning)
    done = Submitted(submission.handle, prepared.request.models, components=prepared.request.components)
    if tell and resolved[0].entry:
        from aegis.cli.summary import summary  # noqa: PLC0415 - start-up time

        say(summary(prepared.request.name, resolved, done.components, done.handle))
    if not wait:
        return done
    say(f"submitted {submission.handle}")
    return _waited(done, jobs, wait_timeout)


def _waited(done: Submitted, jobs: Jobs, timeout: float | None) -> Submitted:
    """Wait for every component, and return all endpoints."""
    from aegis.fleet.wait import wait_for  # noqa: PLC0415 - start-up time

    with waiting_for(done.handle):
        found = wait_for(jobs, done.handle, "ready", say, timeout)
    if not jobs.is_here:
        for view in found.views:
            _copy_endpoints(jobs.transport, view, alone=len(found.views) == 1)
    return msgspec.structs.replace(done, endpoints=found.endpoints, problem=found.problem, waited=True)


def _copy_endpoints(transport: Transport, view: JobView, *, alone: bool) -> None:
    """Write the endpoints of a remote job here, under the name that they have there, or the usual one for the job's own."""
    from aegis.files import write_atomically  # noqa: PLC0415 - start-up time
    from aegis.fleet.endpoints import of_model  # noqa: PLC0415 - as above

    file = view.endpoints_file
    if not file:
        return
    usual = ENDPOINTS if alone else of_model(ENDPOINTS, view.model_name)
    here = Path(usual if file.startswith(f"{view.run_dir}/") else Path(file).name)
    try:
        write_atomically(here, transport.read(file))
    except OSError as error:
        warn(f"the endpoints file cannot be copied: {file}: {error.strerror}")
    else:
        say(f"endpoints copied to {here}")


def print_submitted(done: Submitted, facts: Mapping[str, Any] | None) -> None:
    """Print the handle, or after --wait the endpoints; or everything that is known as JSON.

    Raises:
        PartialSuccess: some servers were given up; what is there was printed.
    """
    if facts is not None:
        print_json({**facts, "endpoints": list(done.endpoints)})
    else:
        click.echo("\n".join(done.endpoints) if done.waited else done.handle)
    if done.problem:
        raise done.problem


def submitted_json(done: Submitted, resolved: Resolved) -> dict[str, Any]:
    """Return the JSON of a submission; `slurm_job_id` is the bare id that scripts written for vec-inf look for."""
    from aegis.fleet.facts import launch_json  # noqa: PLC0415 - start-up time

    scheme, _, job = done.handle.partition("://")
    known = {"slurm_job_id": job} if scheme == "slurm" else {}
    more = launch_json(resolved, done.components[0], done.handle) if resolved.entry else {}
    return {"job_id": done.handle, **known, "model_name": ", ".join(done.models), "endpoints": [], **more}
