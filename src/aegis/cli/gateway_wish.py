"""The `gateway_keys` of a deployment, looked at before the job waits in a queue: a gateway reads them as it starts."""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.errors import ConfigError, DeploymentError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.schedulers.transport import Transport
    from aegis.spec.resolve import Resolved


def check_gateway_keys(resolved: Resolved, transport: Transport, *, here: bool) -> None:
    """Refuse a file of keys that gateways would refuse.

    Args:
        resolved: a deployment.
        transport: to the machine whose files the job will see.
        here: that is this machine.

    Raises:
        DeploymentError: it is missing, others may read it, or lines of it are wrong.
    """
    if not resolved.deployment.gateways or resolved.deployment.gateway_keys is None:
        return
    if found := list(_problems(resolved, transport, here=here)):
        where = resolved.origins["gateway_keys"]
        raise DeploymentError([Problem(where, f"`gateway_keys`: {said}", hint) for said, hint in found])


def _problems(resolved: Resolved, transport: Transport, *, here: bool) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong, and what helps."""
    from aegis.gateway.keyfile import parse_keys, read_keys  # noqa: PLC0415 - only for deployments with keys

    folder, keys = resolved.deployment.work_dir or ".", str(resolved.deployment.gateway_keys)
    if "\0" in keys:
        yield f"{keys!r} is no path", None
        return
    try:
        if here:
            read_keys(Path(folder).expanduser() / Path(keys).expanduser())
        else:
            path = _path_there(transport.home(), folder, keys)
            parse_keys(_read_there(transport, path), path)
    except ConfigError as error:
        for line in error.message.splitlines():
            yield line, error.hint


def _path_there(home: str, *parts: str) -> str:
    path = home
    for part in parts:
        path = posixpath.join(path, home + part[1:] if part == "~" or part.startswith("~/") else part)
    return path


def _read_there(transport: Transport, path: str) -> bytes:
    """Return a file of the far end as `read_keys` takes those of this one.

    Raises:
        ConfigError: it is missing, no file, or others may read it.
    """
    answer = transport.run(["stat", "-L", "-c", "%f", "--", path])
    if answer.code:
        hint = "make it there with `aegis gateway keys add NAME --file FILE`"
        raise ConfigError(f"{path!r} is not there", hint=hint)
    mode = int(answer.out.strip() or "0", 16)
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path!r} is no file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path!r}: others may read these keys", hint=f"chmod 600 -- {path!r}")
    try:
        return transport.read(path)
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be read: {error.strerror or error}") from None
