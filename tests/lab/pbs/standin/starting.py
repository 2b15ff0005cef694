"""A job gets its daemon, its script, its node file and its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .mom import Task
from .placing import walltime

if TYPE_CHECKING:
    from .jobs import Job
    from .wire import Settings

MOM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from standin.mom import main; main()"


def start(job: Job, site: Settings, spool: Path, folder: Path) -> None:
    """Start the daemon of a job."""
    folder.mkdir(exist_ok=True)
    script = folder / f"{job.id(site)}.SC"
    script.write_text(job.script)
    script.chmod(0o700)
    node_file = folder / "nodes"
    node_file.write_text("".join(f"{site.nodes[node]}\n" for node in job.nodes))
    seconds = walltime(job.resources.get("walltime", ""))
    output, error = (
        _file(job, site, path, suffix) for path, suffix in ((job.output, "OU"), (job.error, "ER"))
    )
    task = Task(
        id=job.id(site),
        script=str(script),
        node=job.nodes[0],
        environ=_environ(job, site, node_file),
        home=site.home,
        output=output,
        error=output if job.join == "oe" else error,
        direct="d" in job.keep,
        undelivered=str(spool / "undelivered"),
        walltime=seconds,
        late=site.late,
        grace=site.grace,
        rename_host=site.rename_hosts,
    )
    (folder / "task.json").write_text(json.dumps(asdict(task)))
    package = str(Path(__file__).parents[1])
    with (spool / "mom.log").open("ab") as log:
        mom = subprocess.Popen(
            [sys.executable, "-IS", "-c", MOM, package, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**site.environ, "PBS_LAB_NODE": job.nodes[0]},
        )
    mom.returncode = 0  # it is reaped with all others


def _file(job: Job, site: Settings, path: str, suffix: str) -> str:
    if path.endswith("/"):
        return f"{path}{job.id(site)}.{suffix}"
    return path if job.index is None else f"{path}.{job.index}"


def _environ(job: Job, site: Settings, node_file: Path) -> dict[str, str]:
    shown = job.attributes(site)
    cpus = str(job.chunks()[0].ncpus)
    own = {
        "ENVIRONMENT": "BATCH",
        "HOME": site.home,
        "LOGNAME": job.owner,
        "USER": job.owner,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "NCPUS": cpus,
        "OMP_NUM_THREADS": cpus,
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBCOOKIE": "0123456789ABCDEF0123456789ABCDEF",
        "PBS_JOBDIR": site.home,
        "PBS_JOBID": job.id(site),
        "PBS_JOBNAME": job.name,
        "PBS_MOMPORT": "15003",
        "PBS_NODEFILE": str(node_file),
        "PBS_NODENUM": "0",
        "PBS_QUEUE": job.queue,
        "PBS_TASKNUM": "1",
        "PBS_LAB_NODE": job.nodes[0],
    }
    if job.account:
        own["PBS_ACCOUNT"] = job.account
    if job.index is not None:
        own |= {"PBS_ARRAY_INDEX": str(job.index), "PBS_ARRAY_ID": f"{job.number}[].{site.server}"}
    return {**site.environ, **shown["Variable_List"], **own}
