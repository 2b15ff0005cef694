"""The endpoints file: one `host:port` per line, healthy instances only, never seen half-written."""

from __future__ import annotations

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

from aegis.files import write_atomically
from aegis.runs import slug

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from aegis.registry.model import Service


def is_own(text: str) -> bool:
    """Tell whether an `endpoints_file` names a file of its own for each job."""
    return "{job}" in text or "{run_dir}" in text


def of_model(text: str, model: str) -> str:
    """Return an `endpoints_file` with the model's name in its own: `aegis_endpoints.NAME.txt`."""
    file = PurePath(text)
    return str(file.with_name(f"{file.stem}.{slug(model)}{file.suffix}"))


def endpoint_lines(services: Iterable[Service]) -> list[str]:
    """Return `host:port` of every healthy instance, in the deployment's order; members without an API are no endpoints."""
    healthy = [
        service for service in services if service.status == "healthy" and not service.metadata.get("rank")
    ]
    return [f"{service.host}:{service.port}" for service in sorted(healthy, key=by_position)]


def by_position(service: Service) -> tuple[int, str]:
    """Sort as the deployment lists its models and instances; services of others come last."""
    position = service.metadata.get("position")
    return (position if isinstance(position, int) else sys.maxsize, service.service_id)


class EndpointsFile:
    """Keeps the file current; a full disk is told once, and tried again with the next change.

    Args:
        path: the file.
        is_ours: False while another job of the service writes it.
    """

    def __init__(self, path: Path, *, is_ours: bool = True) -> None:
        self.path = path
        self.problem = ""
        self.is_ours = is_ours
        self._written: str | None = None
        self._noticed: str | None = None  # while it is not ours

    def update(self, services: Iterable[Service]) -> bool:
        """Write the file if it would change; True when it did, or would have, were it ours."""
        text = "".join(f"{line}\n" for line in endpoint_lines(services))
        if not self.is_ours:
            changed, self._noticed = text != self._noticed, text
            return changed
        if text == self._written:
            return False
        try:
            write_atomically(self.path, text)
        except OSError as error:
            self.problem = f"{self.path} cannot be written: {error.strerror}; it is out of date"
            return False
        self._written, self.problem = text, ""
        return True

    @property
    def is_replaced(self) -> bool:
        """Whether the file has other lines than those that were written here, or is gone."""
        try:
            return self.path.read_text() != self._written
        except OSError:
            return True

    def remove(self) -> None:
        """Take the file away, unless somebody else has written it since."""
        try:
            if self._written is not None and self.path.read_text() == self._written:
                self.path.unlink()
        except OSError:
            return
