"""What happens by itself: jobs are routed, started, followed to their end, and put back when a node is lost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING

from .jobs import BEGUN, DEPENDING, EXITING, HELD, QUEUED, WAITING, Job, moment
from .placing import place, walltime
from .starting import start
from .state import Refused, State

if TYPE_CHECKING:
    from .wire import Queue


class Cycle(State):
    """Server, scheduler and routing in one."""

    def tick(self) -> None:
        """Bring everything up to date."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        down = self.down
        for job in list(self.jobs.values()):
            if job.state == "E":
                job.end(job.exit_status, job.delivered)
                if not self.site.history:
                    del self.jobs[job.sequence]
            elif job.state == "R":
                self._follow(job, down)
            elif job.substate in {DEPENDING, WAITING}:
                self._depend(job)
            elif job.waits and self.site.queues[job.queue].route_to:
                self._route(job)
            elif job.waits:
                self._schedule(job, down)
            elif job.indices and not job.is_over:
                self._gather(job)

    def _follow(self, job: Job, down: set[str]) -> None:
        folder = self.folder(job)
        with contextlib.suppress(OSError, ValueError):
            job.session = job.session or int((folder / "session").read_text())
        if job.nodes[0] in down:
            gone = time.time() - (self.spool / "down" / job.nodes[0]).stat().st_mtime
            if gone > self.site.node_fail_requeue:
                if job.rerunnable:
                    job.requeue()
                else:
                    job.end(-20, None)
            return
        job.lost_sister = job.lost_sister or bool(down & set(job.nodes))
        try:
            end = json.loads((folder / "end.json").read_text())
        except FileNotFoundError:
            return
        if not end["failed_to_start"]:
            job.exit_status, job.delivered = end["exit_status"], end["delivered"]
            job.state, job.substate, job.changed = "E", EXITING, time.time()
        elif job.run_count < self.site.start_tries:
            job.state, job.substate, job.nodes = "Q", QUEUED, []
        else:
            job.state, job.substate, job.nodes, job.hold = "H", HELD, [], "s"
            job.comment = "job held, too many failed attempts to run"

    def _depend(self, job: Job) -> None:
        if job.substate == WAITING:
            job.release()
            return
        kind, _, other = job.depend.partition(":")
        try:
            before = self.find(other.partition("@")[0])
        except Refused:
            job.drop()
            return
        if kind == "after":
            if before.started or before.is_over:
                job.release()
        elif before.is_over:
            if kind == "afterany" or before.exit_status == 0:
                job.state, job.substate, job.hold = "Q", QUEUED, "n"
            else:
                job.drop()

    def _route(self, job: Job) -> None:
        for name in self.site.queues[job.queue].route_to:
            if self.site.queues[name].enabled and fits(job, self.site.queues[name]):
                job.queue = name
                return
        del self.jobs[job.sequence]

    def _schedule(self, job: Job, down: set[str]) -> None:
        if not self.site.queues[job.queue].started:
            job.comment = "Not Running: Queue not started."
            return
        nodes, why = place(job.chunks(), job.scatter, self.used(), down, self.site)
        if not nodes:
            job.comment = why
            return
        job.begin(nodes)
        start(job, self.site, self.spool, self.folder(job))

    def _gather(self, job: Job) -> None:
        parts = self.parts(job)
        letters = "".join(each.state for each in parts)
        names = {"Queued": "Q", "Running": "R", "Exiting": "E", "Expired": "X"}
        job.counts = " ".join(f"{word}:{letters.count(letter)}" for word, letter in names.items())
        if job.state == "Q" and set(letters) - {"Q"}:
            job.state, job.substate, job.started = "B", BEGUN, time.time()
            job.comment = f"Job Array Began at {moment(job.started)}"
        if all(each.is_over for each in parts):
            job.end(int(any(each.exit_status for each in parts)))


def fits(job: Job, queue: Queue) -> bool:
    """Tell whether a queue takes so many nodes for so long."""
    seconds = walltime(job.resources.get("walltime", "")) or 0
    nodes_fit = queue.max_nodes is None or len(job.chunks()) <= queue.max_nodes
    return nodes_fit and (queue.max_walltime is None or seconds <= queue.max_walltime)
