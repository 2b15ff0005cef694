"""`aegis logs`: what a job and its servers wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import open_jobs, remote_option, say

if TYPE_CHECKING:
    from aegis.fleet.jobs import Jobs
    from aegis.runs import Manifest

CHUNK = 1 << 16
# Over there: the size of a file, a line, and then its last lines up to that size.
TAIL = 'size=$(wc -c <"$1") && echo "$size" && head -c "$size" -- "$1" | tail -n "$2"'


@click.command()
@click.argument("handle")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--instance", metavar="NAME", help="The log of this server (a name of `aegis status HANDLE`).")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@remote_option
def command(handle: str, follow: bool, instance: str | None, lines: int | None, remote: str | None) -> None:
    """Print the log of a job, or of one of its servers; of a job that never began, what the scheduler wrote."""
    with open_jobs(remote) as jobs:
        if follow or instance:
            _print_log(jobs, jobs.find(handle), instance, lines, follow=follow)
            return
        found = jobs.find_all(handle)
        for manifest in found:
            if len(found) > 1:
                click.echo(f"==> {manifest.job} <==")
            _print_log(jobs, manifest, None, lines, follow=False)


def _print_log(
    jobs: Jobs, manifest: Manifest, instance: str | None, lines: int | None, *, follow: bool
) -> None:
    from aegis.fleet.logs import log_path, scheduler_log  # noqa: PLC0415 - start-up time

    log = Log(jobs, log_path(jobs, manifest, instance))
    log.print_end(lines) if lines is not None else log.print_new()
    if follow:
        _follow(jobs, manifest, log)
    if not log.position and not instance and (other := scheduler_log(jobs, manifest, log.path)):
        log = Log(jobs, other)
        log.print_end(lines) if lines is not None else log.print_new()
        if log.position:
            say(f"the job has no log of its own; this is {other}")
    if not log.position:
        say(f"{instance or manifest.job} has written nothing")


def _follow(jobs: Jobs, manifest: Manifest, log: Log) -> None:
    """Print what comes until the job has ended."""
    import time  # noqa: PLC0415 - start-up time

    from aegis.fleet.status import views  # noqa: PLC0415 - start-up time
    from aegis.fleet.watch import Gaps  # noqa: PLC0415 - start-up time
    from aegis.runs import ENDED  # noqa: PLC0415 - start-up time

    gaps, gap = Gaps(jobs.policy), jobs.policy.first
    tick = jobs.policy.tick if jobs.is_here else jobs.policy.far_tick
    told = ""
    while True:
        manifest = jobs.reload(manifest)
        (view,) = views(jobs, [manifest], gap, ask_servers=False)
        if view.model_status == "PENDING" and view.reason != told:
            told = view.reason
            say(f"{view.job_id} PENDING: {told}")
        gap = gaps.next(changed=log.print_new())
        if view.model_status in ENDED:
            log.print_new()
            return
        time.sleep(tick)


class Log:
    """A file that grows, here or at the far end."""

    def __init__(self, jobs: Jobs, path: str) -> None:
        self.jobs = jobs
        self.path = path
        self.position = 0

    def print_new(self) -> bool:
        """Print what was added; True when there was something."""
        before = self.position
        try:
            if self.jobs.is_here:
                with open(self.path, "rb") as stream:  # noqa: PTH123 - text in
                    stream.seek(self.position)
                    while chunk := stream.read(CHUNK):
                        self._print(chunk)
            else:
                self._print(self.jobs.transport.read(self.path, self.position))
        except FileNotFoundError:
            return False
        return self.position > before

    def print_end(self, lines: int) -> None:
        """Print the last lines."""
        done = self.jobs.transport.run(["bash", "-c", TAIL, "aegis", self.path, str(lines)])
        if done.code == 0:
            size, _, text = done.out.partition("\n")
            click.echo(text, nl=False)
            self.position = int(size)

    def _print(self, chunk: bytes) -> None:
        click.echo(chunk, nl=False)
        self.position += len(chunk)
