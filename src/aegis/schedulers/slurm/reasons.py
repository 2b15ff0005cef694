"""Why a job waits: Slurm's reason codes in words. What is in no list passes through as it is."""

from __future__ import annotations

import re

NEVER = "it will never start"

WAITS = {
    "": "",
    "None": "",
    # it waits its turn
    "Priority": "waits behind jobs of higher priority",
    "Resources": "waits for free nodes",
    "BeginTime": "waits for its start time",
    "Cleaning": "waits for the rest of an earlier run to end",
    "Dependency": "waits for another job",
    "FedJobLock": "waits for the other clusters of the federation to agree",
    "JobArrayTaskLimit": "waits for other jobs of its array",
    "Licenses": "waits for licences",
    "MaxPoweredUpNodes": "waits for nodes: no more may be powered up",
    "NodeDown": "waits for a node that is down",
    "Nodes required for job are DOWN": "waits for nodes that are down, drained or reserved",
    "PartitionDown": "waits for its partition, which starts no jobs at present",
    "PartitionInactive": "waits for its partition, which is switched off",
    "PowerNotAvail": "waits for electric power",
    "PowerReserved": "waits for electric power, which is reserved",
    "Prolog": "waits for the site's preparation of its nodes",
    "QOSUsageThreshold": "waits until its QoS has used less",
    "ReqNodeNotAvail": "waits for nodes that are down, drained or reserved",
    "Reservation": "waits for its reservation",
    "SchedDefer": "waits for the scheduler's next round",
    "Systemfailure": "waits: Slurm itself, a file system or the network has failed",
    # somebody has to do something
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held by its user: `scontrol release` lets it go",
    "JobHoldMaxRequeue": "held: it was put back into the queue too often",
    "ReservationDeleted": "held: its reservation was deleted",
    "job requeued in held state": "held: it was put back into the queue",
    "launch failed requeued held": "held: it could not be started on its nodes",
    # nothing helps
    "AccountNotAllowed": f"its account may not use this partition: {NEVER}",
    "AccountingPolicy": "waits: a limit of its account or QoS",
    "BadConstraints": f"asks for what no node has: {NEVER}",
    "DeadLine": f"cannot end before its deadline: {NEVER}",
    "DependencyNeverSatisfied": f"waits for a job that did not end as it should have: {NEVER}",
    "InvalidAccount": f"its account is not valid: {NEVER}",
    "InvalidQOS": f"its QoS is not valid: {NEVER}",
    "PartitionConfig": f"asks for more nodes, or others, than the partition gives: {NEVER}",
    "PartitionNodeLimit": f"asks for more or fewer nodes than the partition gives to one job: {NEVER}",
    "PartitionTimeLimit": f"asks for more than the partition's time limit: {NEVER}",
    "QOSNotAllowed": f"its QoS may not be used in this partition: {NEVER}",
    # a first run ended so, and the job is back
    "JobLaunchFailure": "could not be started on its nodes",
    "NonZeroExitCode": "its first run failed",
    "OutOfMemory": "its first run took too much memory",
    "RaisedSignal": "its first run was ended by a signal",
    "TimeLimit": "its first run was killed at its walltime",
}
# The limits of accounts and QoS are some two hundred names made of parts.
LIMITS = (
    (r"(Assoc|QOS)Grp\w*(?<!Run)Minutes?(Limit)?", "waits: the time of its {whose} is used up"),
    (r"(Assoc|QOS)Grp\w*", "waits: the running jobs of its {whose} have reached a limit together"),
    (
        r"(Assoc|QOS)(Max|Min)\w*(PerJob|PerNode)\w*",
        f"asks for more or less than its {{whose}} gives to one job: {NEVER}",
    ),
    (r"(Assoc|QOS)Max\w*", "waits: its user has reached a limit of its {whose}"),
    (r"(Max)\w*PerAccount", "waits: its account has reached a limit of the QoS"),
    (r"(Burst)Buffer\w*", "waits for the burst buffer"),
)
WHOSE = {"Assoc": "account", "QOS": "QoS"}


def waiting(reason: str) -> str:
    """Return why a job waits, with Slurm's own word behind it where it is one."""
    text = reason.strip("() ")
    key = re.split(r"[,:(]", text)[0].replace("_", " ").strip()
    words = WAITS[key] if key in WAITS else _limit(key)
    if words:
        return words if " " in key else f"{words} ({text})"
    return "" if key in WAITS else text


def _limit(key: str) -> str:
    for pattern, words in LIMITS:
        if match := re.fullmatch(pattern, key):
            return words.format(whose=WHOSE.get(match[1], ""))
    return ""
