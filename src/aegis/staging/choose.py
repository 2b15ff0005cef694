"""Which program stages: MPI where there is one, TCP where there is none, a copy where there is one machine. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from aegis.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from aegis.spec.deployment import StagerName


class Facts(Struct, frozen=True, kw_only=True):
    """What the choice follows from."""

    one_machine: bool  # all nodes are this machine
    launcher: str  # of the platform: local, mpiexec, srun or ssh
    program: bool  # a compiled `bcast` is at hand
    compiler: bool  # `mpicc` is found
    starter: bool  # what starts MPI programs is found: mpiexec, or srun


class Choice(NamedTuple):
    """A stager, and why it was taken."""

    stager: StagerName
    why: str
    asked: bool = False  # by name: then nothing else will do


def choose(wish: StagerName | None, facts: Facts) -> Choice:
    """Return the stager that was asked for, or the fastest that works here.

    Raises:
        ConfigError: a copy was asked for, and there are other machines.
        SiteError: MPI was asked for, and this machine has none.
    """
    if wish == "copy" and not facts.one_machine:
        raise ConfigError(
            "--stager copy is for one machine, and other nodes need files, too",
            hint="leave --stager out: mpi or tcp is taken, whichever works here",
        )
    if wish == "mpi" and (lacking := _lacking(facts)):
        raise SiteError(f"--stager mpi: {lacking}", hint="load the site's MPI module, or take --stager tcp")
    if wish is not None:
        return Choice(wish, "asked for", asked=True)
    if facts.one_machine:
        return Choice("copy", "one machine")
    lacking = _lacking(facts)
    if facts.launcher not in {"mpiexec", "srun"}:
        return Choice("tcp", f"{facts.launcher} starts no MPI programs")
    return Choice("tcp", lacking) if lacking else Choice("mpi", "this site has MPI")


def _lacking(facts: Facts) -> str:
    """Return what an MPI program lacks here; "" where nothing."""
    if facts.launcher == "local":
        return "this platform starts everything on this machine, without MPI"
    if not facts.starter:
        return "neither mpiexec nor srun is found"
    if not facts.program and not facts.compiler:
        return "there is no mpicc to compile its program with"
    return ""
