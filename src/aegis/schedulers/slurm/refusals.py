"""What Slurm's commands say when they refuse, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from aegis.schedulers.transport import Done

UNKNOWN_JOB = "Invalid job id specified"
ENDED_ALREADY = "already completing or completed"
AWAY = (
    "Unable to contact slurm controller",
    "Unable to establish control",
    "Unable to establish controller",
    "Unable to resolve",
    "Slurm controller not responding",
    "Slurm temporarily unable to accept job",
    "Slurm backup controller in standby mode",
    "Communication connection failure",
    "Unexpected message received",
    "Resource temporarily unavailable",
)
UNSURE = (
    "Socket timed out",
    "Zero Bytes were transmitted or received",
)  # what was asked for may have been done
LOOK = "the job may have been accepted: look with squeue before you submit it again"
PARTITIONS = "`sinfo -s` lists the partitions; choose one with --queue"
HINTS = (
    (
        "individual component of heterogeneous job",
        "while it waits, only the whole job can be cancelled: give its id without the `+`",
    ),
    ("Memory specification can not be satisfied", "no node has so much memory: lower --mem-per-node"),
    ("Invalid partition name", PARTITIONS),
    ("No partition specified", PARTITIONS),
    (
        "User's group not permitted to use this partition",
        "this partition is not open to you; choose another with --queue",
    ),
    ("not permitted to use this partition", PARTITIONS),
    (
        "Invalid account",
        "`sacctmgr show assoc user=$USER format=account,partition` lists yours; choose one with --account",
    ),
    ("Invalid qos", "`sacctmgr show assoc user=$USER format=account,qos` lists yours; choose one with --qos"),
    (
        "Requested time limit is invalid",
        "the partition or the QoS does not allow so long: lower --walltime, or see `sinfo -s`",
    ),
    (
        "More processors requested than permitted",
        "no partition of this name has so many nodes or CPUs: `sinfo -s` shows them",
    ),
    (
        "Node count specification invalid",
        "the partition has fewer nodes, or gives fewer to one job: `sinfo -s` shows them",
    ),
    (
        "Requested partition configuration not available",
        "walltime or nodes are outside the partition's limits: `scontrol show partition` shows them",
    ),
    (
        "Requested node configuration is not available",
        "no node of the partition has so many devices, CPUs or so much memory: `sinfo -o '%P %D %G %c %m'` shows them",
    ),
    ("Invalid feature specification", "`sinfo -o '%P %f'` shows the features of the nodes; see --constraint"),
    (
        "Invalid generic resource",
        "`sinfo -o '%P %G'` shows the devices of the nodes; see --gpus-per-node and --resource-type",
    ),
    (
        "Invalid Trackable RESource",
        "`sinfo -o '%P %G'` shows the devices of the nodes; see --gpus-per-node and --resource-type",
    ),
    ("Invalid node name specified", "`sinfo -N` lists the nodes; see --nodelist and --exclude"),
    (
        "accounting/QOS policy",
        "your account, or its QoS, has used up its time or has too many jobs: `sshare` and `sacctmgr show qos` show it",
    ),
    (
        "Job violates accounting",
        "your account, or its QoS, allows no more at present: `sacctmgr show qos` shows its limits",
    ),
    ("Access/permission denied", "Slurm does not allow this to you"),
    ("User not found on host", "the site does not know you on its nodes"),
    ("unrecognized option", "see `directives` of the deployment and of the platform"),
    ("invalid option", "see `directives` of the deployment and of the platform"),
)


def trouble(command: str, what: str, done: Done) -> AegisError:
    """Return the error that says what a command of Slurm refused.

    Args:
        command: its name.
        what: that it was asked for, as the start of a sentence.
        done: what it answered.
    """
    said = complaint(command, done)
    if is_unsure(done) or any(text in done.err for text in AWAY):
        look = command == "sbatch" and is_unsure(done)
        return SchedulerUnavailable(
            f"Slurm does not answer: {said}", hint=LOOK if look else "try again later"
        )
    if UNKNOWN_JOB in said:
        return NotFoundError(f"{what}: {said}")
    return SiteError(f"{what}: {said}", hint=next((hint for text, hint in HINTS if text in said), None))


def is_unsure(done: Done) -> bool:
    """Tell whether the controller may have done what it was asked for, and failed to say so."""
    return any(text in done.err for text in UNSURE)


def complaint(command: str, done: Done) -> str:
    """Return what a command said on its standard error, without its name, and the same thing once."""
    lines = []
    for line in done.err.splitlines():
        text = line.strip().removeprefix(f"{command}:").strip().removeprefix("error:").strip()
        text = text.removeprefix("Batch job submission failed:").strip()
        if text and text not in lines and not text.startswith("Try "):
            lines.append(text)
    return "; ".join(lines) or f"{command} ended with exit code {done.code}"
