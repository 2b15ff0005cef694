"""The client: vec-inf's methods, and those for deployments. Each does what the command of the same name does."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from aegis.client.errors import ABOUT_JOBS, ABOUT_LAUNCHES, ABOUT_SERVERS, named
from aegis.client.models import (
    BatchLaunchResponse,
    LaunchOptions,
    LaunchResponse,
    MetricsResponse,
    ModelConfig,
    ModelInfo,
    StatusResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.metrics.job import JobMetrics
    from aegis.fleet.metrics.monitor import JobFigures
    from aegis.fleet.submit import Prepared
    from aegis.spec.catalog.lookup import Catalog
    from aegis.spec.deployment import Deployment
    from aegis.spec.resolve import Resolved

PENDING_WARNING = "{} is still pending after {:g} seconds; the time starts anew"


class Client:
    """Launches models and deployments from this machine, and operates them.

    Jobs are named by handle (`slurm://17480109+1`) or id, as on the command line. Threads may share a client, and however
    many of them wait, the scheduler answers the questions of one.

    Args:
        environ: instead of the process's own environment.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._given = environ
        self._metrics: dict[tuple[str, str | None], JobMetrics] = {}

    # -- the catalog

    def list_models(self) -> list[ModelInfo]:
        """Return every model of the catalog, sorted by name; wrong entries are left out.

        Raises:
            ModelConfigurationError: a file that is named outright cannot be read.
        """
        with named(ABOUT_LAUNCHES):
            catalog = self._catalog()
            return [ModelInfo.of(catalog.entry(name)) for name in catalog.names()]

    def get_model_config(self, model_name: str) -> ModelConfig:
        """Return what the catalog says of a model, with what vec-inf takes for granted where it says nothing.

        Raises:
            ModelNotFoundError: there is none of that name.
            ModelConfigurationError: what the files say of it is wrong.
        """
        import msgspec  # noqa: PLC0415 - start-up time

        with named(ABOUT_LAUNCHES):
            entry = self._catalog().entry(model_name)
        return msgspec.structs.replace(entry, **entry.as_config())

    # -- launching

    def launch_model(self, model_name: str, options: LaunchOptions | None = None) -> LaunchResponse:
        """Submit a model of the catalog as a job.

        Raises:
            ModelConfigurationError: it cannot work, with every reason.
            SlurmJobError: the scheduler refuses, or does not answer.
        """
        from aegis.client.launching import launched  # noqa: PLC0415 - start-up time
        from aegis.fleet.facts import launch_json  # noqa: PLC0415 - as above

        with named(ABOUT_LAUNCHES):
            resolved = launched(model_name, options, self._environ)
            prepared, handle = self._submit([resolved])
        config = launch_json(resolved, prepared.request.components[0], handle)
        if options and options.vocab_size is not None:
            config["vocab_size"] = str(options.vocab_size)
        return LaunchResponse(_id(handle), config["model_name"], config, prepared.script)

    def batch_launch_models(
        self,
        model_names: list[str],
        batch_config: str | None = None,
        account: str | None = None,
        work_dir: str | None = None,
    ) -> BatchLaunchResponse:
        """Submit several models as one job, each on nodes of its own.

        Raises:
            ModelConfigurationError: it cannot work, with every reason.
            SlurmJobError: the scheduler refuses, or does not answer.
        """
        from aegis.client.launching import launched_together  # noqa: PLC0415 - start-up time
        from aegis.fleet.batch import batch_name  # noqa: PLC0415 - as above
        from aegis.fleet.facts import batch_json  # noqa: PLC0415 - as above

        with named(ABOUT_LAUNCHES):
            given = {"account": account, "work_dir": work_dir}
            resolved = launched_together(model_names, batch_config, given, self._environ)
            name = batch_name(resolved)
            prepared, handle = self._submit(resolved, name)
        config = batch_json(name, resolved, prepared.request.components, handle)
        return BatchLaunchResponse(_id(handle), name, list(config["models"]), config, prepared.script)

    def submit(
        self,
        deployment: Deployment | Mapping[str, Any] | str | os.PathLike[str],
        *,
        force: bool = False,
        **keys: Any,
    ) -> str:
        """Submit a deployment as a job, and return its handle.

        Args:
            deployment: a file, or what one would say.
            force: submit what will probably fail.
            keys: of the deployment; they win over it, as flags do.

        Raises:
            ConfigError: it cannot work, with every reason.
            SiteError: the scheduler refuses, or does not answer.
        """
        from aegis.client.launching import described  # noqa: PLC0415 - start-up time

        _, handle = self._submit([described(deployment, keys, self._environ)], force=force)
        return handle

    # -- jobs

    def fetch_running_jobs(self) -> list[str]:
        """Return the ids of this user's jobs that wait or run, by one question to the scheduler."""
        from aegis.fleet.status import views  # noqa: PLC0415 - start-up time
        from aegis.runs import ENDED  # noqa: PLC0415 - as above

        with named(ABOUT_JOBS):
            jobs = self._jobs()
            found = views(jobs, jobs.all(), ask_servers=False)
        return [_id(view.job_id) for view in found if view.model_status not in ENDED]

    def get_status(self, slurm_job_id: str) -> StatusResponse:
        """Return how a job is.

        Raises:
            JobNotFoundError: there is no such job.
        """
        with named(ABOUT_JOBS):
            jobs = self._jobs()
            (view,) = jobs.views([jobs.find(slurm_job_id)])
        return StatusResponse.of(view)

    def wait_until_ready(
        self, slurm_job_id: str, timeout_seconds: int = 1800, poll_interval_seconds: int = 10
    ) -> StatusResponse:
        """Wait until every server of a job is healthy or given up.

        Args:
            slurm_job_id: the job.
            timeout_seconds: how long, not counting the time in the queue.
            poll_interval_seconds: the longest time between two questions to the scheduler.

        Raises:
            JobNotFoundError: there is no such job.
            ServerError: it ended before its servers were ready; the message says why.
            ServerDeadlineError: the time has passed.
        """
        from aegis.errors import DeadlineError  # noqa: PLC0415 - start-up time
        from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - as above
        from aegis.fleet.wait import wait_for  # noqa: PLC0415 - as above
        from aegis.fleet.watch import Policy  # noqa: PLC0415 - as above

        longest = max(0.1, float(poll_interval_seconds))
        jobs = Jobs(self._environ, policy=Policy(first=min(Policy().first, longest), longest=longest))
        with named(ABOUT_SERVERS):
            while True:
                try:
                    found = wait_for(jobs, slurm_job_id, "ready", _silent, timeout_seconds)
                except DeadlineError:
                    views = jobs.views(jobs.find_all(slurm_job_id), longest)
                    if not all(view.model_status == "PENDING" for view in views):
                        raise
                    warnings.warn(PENDING_WARNING.format(slurm_job_id, timeout_seconds), stacklevel=2)
                else:
                    break
        status = StatusResponse.of(found.views[0])
        if found.problem:
            status.reason = found.problem.message
        return status

    def shutdown_model(self, slurm_job_id: str) -> bool:
        """Stop the servers of a job, which may finish what they have, and end it; True when it has ended.

        Raises:
            JobNotFoundError: there is no such job.
            SlurmJobError: it cannot be ended, or has not ended in time.
        """
        from aegis.fleet.stop import Wish, stop  # noqa: PLC0415 - start-up time

        with named(ABOUT_JOBS):
            jobs = self._jobs()
            stop(jobs, jobs.find_all(slurm_job_id), _silent, Wish())
        return True

    def endpoints(self, handle: str) -> list[str]:
        """Return `host:port` of every healthy server of a job.

        Raises:
            JobNotFoundError: there is no such job.
        """
        from aegis.fleet.registries import endpoints_of  # noqa: PLC0415 - start-up time

        with named(ABOUT_JOBS):
            jobs = self._jobs()
            return [line for each in jobs.find_all(handle) for line in endpoints_of(jobs.transport, each)]

    # -- what servers do and say

    def get_metrics(self, slurm_job_id: str) -> MetricsResponse:
        """Return what the servers of a job do, over the time since the call before; the first call looks for a second.

        Raises:
            JobNotFoundError: there is no such job.
        """
        import time  # noqa: PLC0415 - start-up time

        from aegis.fleet.metrics.job import NotReady  # noqa: PLC0415 - as above

        try:
            found = self.metrics(slurm_job_id)
        except NotReady as problem:
            return MetricsResponse(problem.model_name, problem.sentence, time.time())
        return MetricsResponse(found.model_name, found.metrics, found.timestamp)

    def metrics(self, handle: str, instance: str | None = None) -> JobFigures:
        """Return the same with latencies, and for each server; or for one server alone.

        Raises:
            JobNotFoundError: there is no such job or server.
            NotReady: no server answers; the message says why.
        """
        from aegis.fleet.metrics.job import JobMetrics  # noqa: PLC0415 - start-up time

        with named(ABOUT_JOBS):
            key = (handle, instance)
            known = self._metrics.get(key) or JobMetrics(self._jobs(), handle, instance)
            return self._metrics.setdefault(key, known).measure()

    def logs(self, handle: str, instance: str | None = None) -> str:
        """Return what a job wrote, or one of its servers.

        Raises:
            JobNotFoundError: there is no such job, or no log of such a server.
        """
        from aegis.fleet.logs import log_of  # noqa: PLC0415 - start-up time

        with named(ABOUT_JOBS):
            jobs = self._jobs()
            return log_of(jobs, jobs.find(handle), instance)

    def cleanup_logs(  # noqa: PLR0917 - vec-inf's signature
        self,
        log_dir: str | Path | None = None,
        model_family: str | None = None,
        model_name: str | None = None,
        job_id: int | None = None,
        before_job_id: int | None = None,
        dry_run: bool = False,
    ) -> list[Path]:
        """Delete the run directories of ended jobs that match all that is given, and return them.

        Raises:
            ConfigError: nothing is given to choose them by.
            NotFoundError: there is no such log directory.
        """
        from aegis.fleet.cleanup import Filters, delete, log_root, plan  # noqa: PLC0415 - start-up time

        jobs = self._jobs()
        filters = Filters(
            model_family=model_family,
            model_name=model_name,
            job_id=None if job_id is None else str(job_id),
            before_job_id=before_job_id,
        )
        found = plan(jobs, log_root(str(log_dir) if log_dir else None, jobs.environ), filters)
        return list((found if dry_run else delete(jobs, found.deleted)).deleted)

    # -- inside

    @property
    def _environ(self) -> Mapping[str, str]:
        return os.environ if self._given is None else self._given

    def _jobs(self) -> Jobs:
        from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time

        return Jobs(self._environ)

    def _catalog(self) -> Catalog:
        from aegis.spec.catalog.lookup import load_catalog  # noqa: PLC0415 - start-up time

        return load_catalog(self._environ)

    def _submit(
        self, resolved: Sequence[Resolved], name: str | None = None, *, force: bool = False
    ) -> tuple[Prepared, str]:
        """Submit a job; return it and its handle."""
        from aegis.fleet.submit import prepare, submit  # noqa: PLC0415 - start-up time

        jobs = self._jobs()
        for each in resolved:
            for line in each.warnings:
                _warn(line)
        prepared = prepare(resolved, jobs, name=name, force=force, warn=_warn)
        submission = submit(prepared, jobs)
        for line in submission.warnings:
            _warn(line)
        return prepared, submission.handle


def _silent(line: str) -> None:
    del line


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)


def _id(handle: str) -> str:
    return handle.partition("://")[2]
