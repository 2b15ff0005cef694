"""A step of a job: the words before a program that is to run once on each node, by srun or mpiexec, or far away by ssh."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Nobody is there to answer a question, and a node that is gone says nothing by itself
SSH: Final = (
    *("-oBatchMode=yes", "-oConnectTimeout=30"),
    *("-oServerAliveInterval=15", "-oServerAliveCountMax=4"),
)
MOST_APART: Final = 512  # nodes that may get an srun each, where one for all does not start
REFUSED: Final = re.compile(r"^srun: error: (Application launch failed|Unable to create step)", re.MULTILINE)
# Of the job, but not of this step: with any of them a step gets a part of what the job has on a node.
NOT_OF_THE_STEP: Final = (
    *("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_EXACT"),
    *("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"),
)


def step_words(
    launcher: str, nodes: int, host_file: str, group: str = "", *, survives: bool = True
) -> list[str]:
    """Return the words of the launcher.

    Args:
        launcher: `srun` or `mpiexec`.
        nodes: how many.
        host_file: their names, one a line: those of a large job are too long for an argument.
        group: srun: the component of the job.
        survives: srun: goes on without a node that is lost, or a task that fails; what cannot (MPI) ends at once.
    """
    if launcher != "srun":
        return ["mpiexec", "-n", str(nodes), "-ppn", "1", "--hostfile", host_file]
    end = ("--no-kill", "--kill-on-bad-exit=0", "--wait=0") if survives else ("--kill-on-bad-exit=1",)
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--nodelist={host_file}"),
        # beside other steps of the job; CPUs and GPUs are not asked for: a step that names none has all of them
        *("--mem=0", "--cpu-bind=none", "--overlap", "--export=ALL"),
        *end,
        *([f"--het-group={group}"] if group else []),
    ]


def one_node_was_refused(launcher: str, nodes: int, said: str) -> bool:
    """Tell whether a step has ended on all of its nodes because srun could not start it on one of them.

    Args:
        launcher: `srun` or another.
        nodes: of the step.
        said: what it has written to standard error.
    """
    return launcher == "srun" and 1 < nodes <= MOST_APART and REFUSED.search(said) is not None


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a step that is to have all that the job has on its nodes."""
    return {name: value for name, value in environ.items() if name not in NOT_OF_THE_STEP}
