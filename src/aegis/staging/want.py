"""What must be where before servers start: weights, the environment, the image. Pure.

| what | from | to, on the nodes that need it |
|---|---|---|
| a snapshot of a Hugging Face cache entry | `model_source` | `<hf_home>/hub/models--ORG--NAME`, its blobs, links and refs |
| another directory of weights | `model_source` | `<hf_home>/aegis/<name>-<stamp of the source's path>` |
| a conda-pack tarball, unpacked | `conda_env` | `<local_path>/aegis-env-<uid>/<hash of its content>` |
| an image | `image` | `<local_path>/aegis-image-<uid>/<stamp of its path>-<name>` |
"""

from __future__ import annotations

import os
import re
import zlib
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.staging.scan import snapshot_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.spec.deployment import Deployment

Kind = Literal["weights", "environment", "image"]
UNKNOWN: Final = "CONTENT"  # in a path, where the hash of an environment was not asked for
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Want(Struct, frozen=True, kw_only=True):
    """One thing that some nodes need."""

    kind: Kind
    name: str  # for people
    source: str  # absolute
    destination: str  # absolute, on every node
    loaded: str  # what is used on a node instead of the source: the destination, or the snapshot in it
    hosts: tuple[str, ...]
    in_place: bool = (
        False  # it lies where it is to be: on this machine, and on those that share the file system
    )


class Site(Struct, frozen=True, kw_only=True):
    """What paths on the nodes follow from, besides the deployment."""

    local_path: str  # of a node, without variables (`expand`)
    work_dir: str  # that relative paths are relative to
    uid: int
    home: str


def wanted(
    deployment: Deployment,
    weights: Sequence[str | None],
    hosts: Sequence[Iterable[str]],
    site: Site,
    environment_key: str | None = None,
) -> list[Want]:
    """Return what a deployment needs on its nodes.

    Args:
        deployment: what is served.
        weights: per model, the directory that its `model_source` comes to; None: it has none, and nothing is staged.
        hosts: per model, the nodes that hold a member of one of its instances.
        site: the paths of the nodes.
        environment_key: hash of the tarball's content; None: not known (`UNKNOWN` stands for it).

    Returns:
        What is in place already, too. In the order of the models; one entry for what several of them share, with the nodes of all.
    """
    served = [each for entry, each in zip(deployment.models, hosts, strict=True) if entry.engine != "sim"]
    everywhere = tuple(dict.fromkeys(host for each in served for host in each))
    found = _weights(deployment, weights, hosts, site)
    if deployment.conda_env and everywhere and is_tarball(deployment.conda_env):
        place = f"{_own(site, 'env')}/{environment_key or UNKNOWN}"
        found.append(_shared("environment", deployment.conda_env, place, everywhere, site))
    if deployment.image and everywhere and "://" not in deployment.image:
        source = absolute(deployment.image, site)
        place = f"{_own(site, 'image')}/{_stamp(source)}-{os.path.basename(source)}"
        found.append(_shared("image", deployment.image, place, everywhere, site))
    return found


def is_tarball(conda_env: str) -> bool:
    """Tell whether a `conda_env` is to be unpacked: by its name, for its content may be on another machine."""
    return re.search(r"\.(tar|t[gxz]z|tzst|tbz2?)(\.\w+)?$", conda_env) is not None


def absolute(path: str, site: Site) -> str:
    """Return a path as the job sees it."""
    if path == "~" or path.startswith("~/"):
        path = site.home + path[1:]
    return os.path.normpath(os.path.join(site.work_dir, path))


def expand(path: str, environ: Mapping[str, str]) -> str:
    """Return a path of a profile with its variables replaced: `/mnt/bb/$USER`.

    Raises:
        ConfigError: one of them is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not environ.get(name):
            raise ConfigError(
                f"the node-local path of this platform is {path}, and {name} is not set here",
                hint="inside a job it is; or set `local_path` in a profile of your own",
            )
        return environ[name]

    return VARIABLE.sub(value, path)


def _weights(
    deployment: Deployment, weights: Sequence[str | None], hosts: Sequence[Iterable[str]], site: Site
) -> list[Want]:
    """Return the weights of all models; what several of them load is wanted once, for the nodes of all."""
    home = absolute(deployment.hf_home, site)
    found: dict[str, Want] = {}  # by source
    taken: dict[str, str] = {}  # destination -> source
    for entry, source, nodes in zip(deployment.models, weights, hosts, strict=True):
        if source is None or entry.engine == "sim":
            continue
        path = absolute(source, site)
        if path in found:
            merged = tuple(dict.fromkeys((*found[path].hosts, *nodes)))
            found[path] = msgspec.structs.replace(found[path], hosts=merged)
            continue
        want = _model(entry.name, path, home, tuple(dict.fromkeys(nodes)))
        if want.destination in taken:  # two snapshots of one entry, or entries of two caches
            want = _model(entry.name, path, f"{home}/aegis/{_stamp(path)}", want.hosts)
        taken[want.destination] = path
        found[path] = want
    return list(found.values())


def _model(name: str, source: str, home: str, hosts: tuple[str, ...]) -> Want:
    snapshot = snapshot_at(source)
    if snapshot is None:
        place = loaded = f"{home}/aegis/{os.path.basename(source)}-{_stamp(source)}"
    else:
        place = f"{home}/hub/{os.path.basename(snapshot.entry)}"
        loaded = f"{place}/snapshots/{snapshot.revision}"
        source = f"{snapshot.entry}/snapshots/{snapshot.revision}"
    return Want(
        kind="weights",
        name=name,
        source=source,
        destination=place,
        loaded=loaded,
        hosts=hosts,
        in_place=loaded == source,
    )


def _shared(kind: Kind, path: str, place: str, hosts: tuple[str, ...], site: Site) -> Want:
    source = absolute(path, site)
    name = os.path.basename(source)
    return Want(kind=kind, name=name, source=source, destination=place, loaded=place, hosts=hosts)


def _own(site: Site, what: str) -> str:
    """Return a folder of this user's own, for other users of a node have the same models and environments."""
    return f"{site.local_path.rstrip('/')}/aegis-{what}-{site.uid}"


def _stamp(text: str) -> str:
    return f"{zlib.crc32(os.fsencode(text)):08x}"
