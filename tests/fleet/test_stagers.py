"""How ranks of MPI find each other where Slurm has not been told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.fleet.nodes import Host
from aegis.fleet.stagers import stager_for
from aegis.fleet.staging import Ground
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Platform
from aegis.staging.choose import Choice
from aegis.staging.mpi import OverMpi
from aegis.staging.want import Site

if TYPE_CHECKING:
    from pathlib import Path

ASKED = Choice("mpi", "asked for", asked=True)


@pytest.mark.parametrize(
    ("default", "compiler", "given", "found"),
    [
        ("none", "gcc -lmpich", {}, "pmi2"),
        ("none", "gcc -I/usr/lib/openmpi/include -lmpi", {}, "pmix"),
        ("none", "gcc -lmpich", {"SLURM_MPI_TYPE": "cray_shasta"}, "cray_shasta"),
        ("pmix", "gcc -lmpich", {}, None),
    ],
)
def test_ranks_find_each_other_also_where_slurm_has_no_default(
    tmp_path: Path, default: str, compiler: str, given: dict[str, str], found: str | None
) -> None:
    for name, body in (
        ("scontrol", f"echo 'MpiDefault              = {default}'"),
        ("mpicc", f"echo '{compiler}'"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    program = tmp_path / "mpicc"  # any that can be run
    deployment = Deployment(models=(ModelEntry(model="org/m"),), prebuilt=str(program))
    hosts = (Host("n1", "n1", "0.0.0.0"), Host("n2", "n2", "0.0.0.0"))
    site = Site(local_path="/nvme", work_dir="/", uid=1, home="/home")
    ground = Ground(
        Platform(name="s", scheduler="slurm", launcher="srun"), hosts, (("n1", "n2"),), site, real=True
    )
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", **given}
    stager = stager_for(ASKED, ground, deployment, environ)
    assert isinstance(stager, OverMpi)
    assert stager.environ.get("SLURM_MPI_TYPE") == found
