"""The server: answers the commands, one after the other, and looks after its jobs between two of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .admission import admit, indices
from .cycle import Cycle
from .jobs import HELD, QUEUED, Job
from .state import RUNS, Refused
from .views import nodes, queues
from .wire import FINISHED, NO_MOM, PERMISSION, UNKNOWN_JOB

TICK = 0.02


class Server(Cycle):
    """What commands ask."""

    def serve(self) -> None:
        """Answer for ever."""
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(self.spool)  # a whole path may be too long for a socket
            Path("socket").unlink(missing_ok=True)
            listener.bind("socket")
            listener.listen(64)
            listener.settimeout(TICK)
            while True:
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection:
                        self._answer(connection)
                self.tick()
                self.save()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as stream:
            question = json.loads(stream.readline())
            try:
                answer = getattr(self, question["verb"])(question)
            except Refused as error:
                answer = {"error": error.code, "text": error.text}
            self.save()
            connection.sendall(json.dumps(answer).encode())

    def submit(self, question: dict[str, Any]) -> dict[str, Any]:
        """Take a job; of an array, one for each index besides."""
        job = admit(self, question)
        self.next += 1
        self.jobs[job.sequence] = job
        for index in indices(job.indices) if job.indices else ():
            single = Job(**{**asdict(job), "indices": "", "index": index})
            self.jobs[single.sequence] = single
        return {"id": job.id(self.site)}

    def stat(self, question: dict[str, Any]) -> dict[str, Any]:
        """Tell about jobs: some, or all that are not over."""
        whole = [job for job in self.jobs.values() if job.index is None and not job.is_over]
        found: list[dict[str, Any]] = []
        for text in question["ids"] or [job.id(self.site) for job in whole]:
            try:
                job = self.find(text)
            except Refused as error:
                found.append({"id": error.text, "error": error.code})
                continue
            if job.is_over and not question["history"]:
                found.append({"id": job.id(self.site), "error": FINISHED})
                continue
            shown = [job, *(self.parts(job) if question["parts"] else [])]
            found += [{"id": each.id(self.site), "job": each.attributes(self.site)} for each in shown]
        return {"found": found}

    def delete(self, question: dict[str, Any]) -> dict[str, Any]:
        """Delete jobs; of several with an unknown one among them, the server dies."""
        refused = []
        for text in question["ids"]:
            try:
                self._delete(self.find(text), question["user"] or self.site.user, force=question["force"])
            except Refused as error:
                if len(question["ids"]) > 1 and error.code == UNKNOWN_JOB:
                    self.save()
                    os._exit(139)
                refused.append({"id": error.text, "error": error.code, "given": text})
        return {"refused": refused}

    def hold(self, question: dict[str, Any]) -> dict[str, Any]:
        """Hold a job, or release it."""
        job = self.find(question["id"])
        whom = question["user"] or self.site.user
        if question["release"]:
            job.hold, job.comment = "n", ""
            if job.state == "H":
                job.state, job.substate = "Q", QUEUED
        else:
            job.hold = "u"
            job.comment = f"Job held by {whom} on {time.ctime()}"
            if job.state == "Q":
                job.state, job.substate = "H", HELD
        job.changed = time.time()
        return {}

    def nodes(self, question: dict[str, Any]) -> dict[str, Any]:
        """Tell about nodes."""
        del question
        return {"nodes": nodes(self)}

    def queues(self, question: dict[str, Any]) -> dict[str, Any]:
        """Tell about queues."""
        del question
        return {"queues": queues(self)}

    def _delete(self, job: Job, user: str, *, force: bool) -> None:
        if job.is_over:
            raise Refused(FINISHED, job.id(self.site))
        if user not in {job.owner, "root"}:
            raise Refused(PERMISSION, job.id(self.site))
        if job.state == "B":
            for part in self.parts(job):
                if not part.is_over:
                    self._delete(part, user, force=force)
        elif job.state not in RUNS:
            job.deleted_by = user
            job.comment = f"{job.comment} and terminated" if job.comment else ""
            job.drop()
        elif job.nodes[0] in self.down:
            if not force:
                raise Refused(NO_MOM, job.id(self.site))
            job.delete("")
            job.deleted_by = user
            job.drop()
        else:
            if not job.deleted_by:
                job.delete(f"{user}@{self.site.submit_host}")
            with (self.folder(job) / "kill").open("a") as wishes:
                wishes.write(f"{signal.SIGKILL if force else signal.SIGTERM:d}\n")


def main() -> None:
    """Serve the spool that is given."""
    Server(Path(sys.argv[1])).serve()
