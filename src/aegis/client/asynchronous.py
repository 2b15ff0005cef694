"""The client for asyncio: each call in a thread of its own, so that a thousand may wait and none keeps the program alive."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aegis.client.client import Client

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aegis.client.models import (
        BatchLaunchResponse,
        LaunchOptions,
        LaunchResponse,
        MetricsResponse,
        ModelConfig,
        ModelInfo,
        StatusResponse,
    )
    from aegis.fleet.metrics.monitor import JobFigures
    from aegis.spec.deployment import Deployment

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what a function returns, called in a thread that nobody waits for once the caller is cancelled.

    `asyncio.to_thread` has a few threads for all: six waits for jobs would keep a question for the state of a seventh.
    """
    future: Future[R] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(future)


class AsyncClient:
    """`Client`, method by method, to be awaited.

    Args:
        environ: instead of the process's own environment.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._client = Client(environ)

    async def list_models(self) -> list[ModelInfo]:
        """As `Client.list_models`."""
        return await in_thread(self._client.list_models)

    async def get_model_config(self, model_name: str) -> ModelConfig:
        """As `Client.get_model_config`."""
        return await in_thread(self._client.get_model_config, model_name)

    async def launch_model(self, model_name: str, options: LaunchOptions | None = None) -> LaunchResponse:
        """As `Client.launch_model`."""
        return await in_thread(self._client.launch_model, model_name, options)

    async def batch_launch_models(
        self,
        model_names: list[str],
        batch_config: str | None = None,
        account: str | None = None,
        work_dir: str | None = None,
    ) -> BatchLaunchResponse:
        """As `Client.batch_launch_models`."""
        return await in_thread(self._client.batch_launch_models, model_names, batch_config, account, work_dir)

    async def submit(
        self,
        deployment: Deployment | Mapping[str, Any] | str | os.PathLike[str],
        *,
        force: bool = False,
        **keys: Any,
    ) -> str:
        """As `Client.submit`."""
        return await in_thread(self._client.submit, deployment, force=force, **keys)

    async def fetch_running_jobs(self) -> list[str]:
        """As `Client.fetch_running_jobs`."""
        return await in_thread(self._client.fetch_running_jobs)

    async def get_status(self, slurm_job_id: str) -> StatusResponse:
        """As `Client.get_status`."""
        return await in_thread(self._client.get_status, slurm_job_id)

    async def wait_until_ready(
        self, slurm_job_id: str, timeout_seconds: int = 1800, poll_interval_seconds: int = 10
    ) -> StatusResponse:
        """As `Client.wait_until_ready`."""
        return await in_thread(
            self._client.wait_until_ready, slurm_job_id, timeout_seconds, poll_interval_seconds
        )

    async def shutdown_model(self, slurm_job_id: str) -> bool:
        """As `Client.shutdown_model`."""
        return await in_thread(self._client.shutdown_model, slurm_job_id)

    async def endpoints(self, handle: str) -> list[str]:
        """As `Client.endpoints`."""
        return await in_thread(self._client.endpoints, handle)

    async def get_metrics(self, slurm_job_id: str) -> MetricsResponse:
        """As `Client.get_metrics`."""
        return await in_thread(self._client.get_metrics, slurm_job_id)

    async def metrics(self, handle: str, instance: str | None = None) -> JobFigures:
        """As `Client.metrics`."""
        return await in_thread(self._client.metrics, handle, instance)

    async def logs(self, handle: str, instance: str | None = None) -> str:
        """As `Client.logs`."""
        return await in_thread(self._client.logs, handle, instance)

    async def cleanup_logs(  # noqa: PLR0917 - vec-inf's signature
        self,
        log_dir: str | Path | None = None,
        model_family: str | None = None,
        model_name: str | None = None,
        job_id: int | None = None,
        before_job_id: int | None = None,
        dry_run: bool = False,
    ) -> list[Path]:
        """As `Client.cleanup_logs`."""
        return await in_thread(
            self._client.cleanup_logs,
            log_dir,
            model_family,
            model_name,
            job_id,
            before_job_id,
            dry_run,
        )
