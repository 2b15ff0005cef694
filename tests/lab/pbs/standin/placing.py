"""From `select` and `place` to nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .wire import Settings

CHUNK_RESOURCES = {"ncpus", "ngpus", "mem", "host", "vnode", "mpiprocs"}
JOB_RESOURCES = {"select", "place", "walltime", "filesystems", "ncpus", "ngpus", "mem"}


@dataclass(frozen=True)
class Chunk:
    """What is asked for of one node."""

    ncpus: int = 1
    ngpus: int = 0
    host: str = ""

    def words(self) -> str:
        """As PBS shows what a node gives."""
        return f"ncpus={self.ncpus}" + (f":ngpus={self.ngpus}" if self.ngpus else "")


class UnknownResource(Exception):
    """The site does not have it."""


def chunks(select: str) -> list[Chunk]:
    """Return one chunk per unit of `2:ncpus=4+1:host=x`.

    Raises:
        UnknownResource: a name in it is none.
    """
    found = []
    for part in select.split("+"):
        count, *rest = part.split(":")
        if not count.isdecimal():
            count, rest = "1", [count, *rest]
        asked = dict(word.partition("=")[::2] for word in rest)
        for name in asked:
            if name not in CHUNK_RESOURCES:
                raise UnknownResource(name)
        chunk = Chunk(
            int(asked.get("ncpus", 1)),
            int(asked.get("ngpus", 0)),
            asked.get("host") or asked.get("vnode", ""),
        )
        found += [chunk] * int(count)
    return found


def place(
    wanted: list[Chunk], scatter: bool, used: Mapping[str, Chunk], down: set[str], site: Settings
) -> tuple[list[str], str]:
    """Return a node for each chunk, or none and why.

    Args:
        wanted: the chunks, in their order.
        scatter: each on another node.
        used: what other jobs have, by node.
        down: nodes that do not answer.
        site: the nodes.
    """
    if scatter and len(wanted) > len(site.nodes):
        return [], "Can Never Run: Not enough total nodes available"
    cpus = {node: site.ncpus - (used[node].ncpus if node in used else 0) for node in site.nodes}
    gpus = {node: site.ngpus - (used[node].ngpus if node in used else 0) for node in site.nodes}
    found: list[str] = []
    for chunk in wanted:
        if chunk.ncpus > site.ncpus or chunk.ngpus > site.ngpus:
            what = "ncpus" if chunk.ncpus > site.ncpus else "ngpus"
            return [], f"Not Running: Insufficient amount of resource: {what} "
        named = [node for node in site.nodes if chunk.host in {"", node, site.nodes[node]}]
        fit = [
            node
            for node in named
            if node not in down
            and cpus[node] >= chunk.ncpus
            and gpus[node] >= chunk.ngpus
            and not (scatter and node in found)
        ]
        if not fit:
            lacking = (
                "Insufficient amount of resource: vnode " if chunk.host else "Not enough free nodes available"
            )
            return [], f"Not Running: {lacking}"
        found.append(fit[0])
        cpus[fit[0]] -= chunk.ncpus
        gpus[fit[0]] -= chunk.ngpus
    return found, ""


def walltime(text: str) -> int | None:
    """Return the seconds of a walltime; None where it is none."""
    if not re.fullmatch(r"\d+(:\d{1,2}){0,2}", text):
        return None
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total
