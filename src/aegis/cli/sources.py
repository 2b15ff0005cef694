"""What `aegis gateway` and `aegis registry serve --federate` follow: registries by URL, jobs and services by name."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aegis.cli.jobs import open_jobs
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.registry.sources import Source, Way

FAR_LOOK_SECONDS: Final = 5.0  # between two looks for jobs behind ssh, each of which is a session there


@contextlib.contextmanager
def open_places(remotes: Sequence[str]) -> Iterator[list[Jobs]]:
    """Yield the jobs of this machine, or of each machine behind ssh; every connection is opened once, with its prompt.

    Raises:
        SiteError: a login fails.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_jobs(remote)) for remote in remotes or (None,)]


def pause(remotes: Sequence[str]) -> float:
    """Return the seconds between two looks for jobs."""
    from aegis.registry.sources import LOOK_SECONDS  # noqa: PLC0415 - start-up time

    return FAR_LOOK_SECONDS if remotes else LOOK_SECONDS


def is_url(text: str) -> bool:
    """Tell whether a source is a registry's address, and no job or service."""
    return text.startswith(("http://", "https://"))


def look_for(
    names: Sequence[str], urls: Sequence[str], places: Sequence[Jobs], token: str | None = None
) -> Callable[[], list[Source[Way]]]:
    """Return what finds the sources that there are.

    Args:
        names: jobs and services.
        urls: of registries, as they are reached from the one place.
        places: where the jobs are, and the registries.
        token: for the registries that are named by URL.

    Raises:
        ConfigError: a URL is none, or could be meant at several places.
    """
    from aegis.fleet.sources import JobSources  # noqa: PLC0415 - start-up time

    if urls and len(places) > 1:
        raise ConfigError(
            "a registry's URL and several --remote: nobody knows from where it is reached",
            hint="name jobs or services, or start one for each --remote",
        )
    fixed = [_registry(url, places[0], token) for url in dict.fromkeys(urls)]
    jobs = JobSources(places, names) if names else None

    def look() -> list[Source[Way]]:
        return [*fixed, *(jobs.look() if jobs else ())]

    return look


def _registry(url: str, place: Jobs, token: str | None) -> Source[Way]:
    from aegis.fleet.sources import way_to_registry  # noqa: PLC0415 - start-up time
    from aegis.registry.client import RegistryClient  # noqa: PLC0415 - as above
    from aegis.registry.sources import Source  # noqa: PLC0415 - as above

    RegistryClient(url, token)  # a wrong one is told before anything begins
    parts = urlsplit(url)
    host, port = parts.hostname or os.devnull, parts.port or 0
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Source(
        name=name, at=url, open=lambda: way_to_registry(place.transport, host, port, token), prefix=""
    )
