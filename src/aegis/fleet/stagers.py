"""Who brings a deployment to its nodes: the stager that was asked for, or the fastest that works there."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Final, Literal

from aegis.errors import SiteError
from aegis.fleet.environments import expanded
from aegis.fleet.nodes import head_of
from aegis.fleet.services import tied
from aegis.schedulers.base import GROUP_VARIABLE
from aegis.staging import mpi, tcp
from aegis.staging.choose import Choice, Facts, choose
from aegis.staging.node.items import short
from aegis.staging.over_tcp import OverTcp
from aegis.staging.runners import OneThenAnother, OnThisMachine
from aegis.step import step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.fleet.staging import Ground
    from aegis.spec.deployment import Deployment
    from aegis.staging.stage import Stager

# One connection over several network cards: MPICH, and Intel's and HPE's libraries made from it, which use one otherwise
MANY_NICS: Final = {"MPIR_CVAR_CH4_OFI_ENABLE_MULTI_NIC_STRIPING": "1", "MPIR_CVAR_CH4_OFI_MAX_NICS": "4"}


def facts_of(ground: Ground, deployment: Deployment, environ: Mapping[str, str]) -> Facts:
    """Return what the choice of a stager follows from, as it is on this machine."""
    here = short(os.uname().nodename)
    local = ground.platform.launcher == "local"
    return Facts(
        one_machine=local or (ground.real and {short(host) for host in ground.hosts} == {here}),
        launcher=ground.platform.launcher,
        program=deployment.prebuilt is not None,
        compiler=shutil.which(environ.get("MPICC") or "mpicc", path=environ.get("PATH")) is not None,
        starter=any(shutil.which(name, path=environ.get("PATH")) for name in ("mpiexec", "srun")),
    )


def chosen(deployment: Deployment, ground: Ground, environ: Mapping[str, str]) -> Choice:
    """Return the stager that was asked for, or the fastest that works here; a compiler that fails is none.

    Raises:
        AegisError: what was asked for cannot work here.
    """
    choice = choose(deployment.stager, facts_of(ground, deployment, environ))
    if choice.stager == "mpi":
        try:
            mpi.program(environ=environ, prebuilt=deployment.prebuilt)
        except SiteError as error:
            if choice.asked or deployment.prebuilt is not None:
                raise
            return Choice("tcp", error.message.partition("\n")[0].rstrip(":"))
    return choice


def stager_for(
    choice: Choice,
    ground: Ground,
    deployment: Deployment,
    environ: Mapping[str, str],
    tell: Callable[[str], None] = lambda _: None,
) -> Stager:
    """Return the stager that was chosen; its files lie in the deployment's `log_dir`, which all nodes see.

    Where MPI was not asked for by name, what it leaves undone when it breaks down (it ends with any of its ranks) is done
    over TCP, which goes on without a node that is lost.

    Raises:
        SiteError: it cannot work here.
    """
    if choice.stager == "copy":
        return OnThisMachine()
    if choice.stager == "tcp":
        return _over_tcp(ground, deployment, environ)
    platform = ground.platform
    kind: Literal["mpiexec", "srun"] = "srun" if platform.launcher == "srun" else "mpiexec"
    over_mpi = mpi.OverMpi(
        shared=expanded(deployment.log_dir),
        launcher=mpi.MpiLauncher(
            kind=kind, words=platform.launcher_args, het_group=environ.get(GROUP_VARIABLE, "")
        ),
        environ={**MANY_NICS, **_kind_of_mpi(kind, environ), **step_environment(environ)},
        program=mpi.program(environ=environ, prebuilt=deployment.prebuilt),
        tied=tied,
    )
    if choice.asked:
        return over_mpi
    return OneThenAnother(over_mpi, _over_tcp(ground, deployment, environ), tell)


def _kind_of_mpi(launcher: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which srun learns how ranks find each other, where the site has not said it.

    Slurm's own default is `MpiDefault=none`: then every rank believes that it is alone, and each node reads everything.
    """
    if launcher != "srun" or "SLURM_MPI_TYPE" in environ or not _says_nothing_of_mpi(environ):
        return {}
    try:
        version = mpi.find_compiler(environ).version
    except SiteError:  # the program is prebuilt
        version = ""
    return {"SLURM_MPI_TYPE": "pmix" if re.search(r"open.?mpi|ompi", version, re.IGNORECASE) else "pmi2"}


def _says_nothing_of_mpi(environ: Mapping[str, str]) -> bool:
    settings = mpi.answer(["scontrol", "show", "config"], environ)
    return re.search(r"^MpiDefault\s*= none$", settings, re.MULTILINE) is not None


def _over_tcp(ground: Ground, deployment: Deployment, environ: Mapping[str, str]) -> OverTcp:
    platform = ground.platform
    kind: tcp.LauncherKind = platform.launcher
    path = environ.get("PATH")
    if kind == "mpiexec" and not shutil.which(kind, path=path) and shutil.which("pbsdsh", path=path):
        kind = "pbsdsh"
    head = head_of(ground.machines, os.uname().nodename, platform.network.host_suffix)
    return OverTcp(
        shared=expanded(deployment.log_dir),
        launcher=tcp.Launcher(
            kind=kind, words=platform.launcher_args, het_group=environ.get(GROUP_VARIABLE, "")
        ),
        address=head.address,
        python=sys.executable,
        environ=step_environment(environ),
        tied=tied,
    )
