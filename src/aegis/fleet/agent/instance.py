"""One instance: started, watched and started again, in a thread of its own."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from .diagnosis import diagnose
from .engine import end, spawn
from .needs import is_here
from .output import Output
from .ports import Ports
from .probing import Prober
from .processes import Wake, wait_for_end
from .vitals import Policy, Vitals

if TYPE_CHECKING:
    import subprocess

DRAINED = "drained"  # the reason of an end that somebody wished for this instance alone
SETTLE_SECONDS = 3.0  # until everybody who sends requests has heard that an instance takes no more
LEAVING_SECONDS = 0.5  # between two looks at one that leaves
TAIL_SENT = 40  # lines of a failed start that travel to the registry


class Instance(threading.Thread):
    """Runs one instance until it is stopped or given up."""

    def __init__(self, order: dict[str, Any], secrets: dict[str, Any], changed: Wake) -> None:
        super().__init__(name=order["id"], daemon=True)
        self.order = order
        self.secret_env: dict[str, str] = secrets.get("env", {})
        self.policy = Policy(**order.get("policy", {}))
        self.output = Output(order["log"])
        self.ports = Ports(order)
        self.prober = Prober(order, self.policy, self.ports, self.secret_env.get("VLLM_API_KEY", ""))
        self.status, self.reason, self.since = "pending", "", time.time()
        self.generation = int(order.get("generation", 0))  # of what ran under this name before
        self.restarts = 0
        self.failures = 0  # in a row, forgiven after a settled time
        self.pid: int | None = None
        self.ready_after: float | None = None
        self.last_good: float | None = None
        self.draining = False
        self.leaving = False  # ends for good when it has no requests left
        self.tail: list[str] = []
        self._changed = changed  # set when there is something to tell the registry
        self._wake = Wake()  # stop, or look for new orders
        self._stopping = False
        self._wanted_generation = 0
        self._settled_at = self._leave_by = 0.0

    # -- what others ask of it

    def stop(self) -> None:
        """Ask the thread to end its processes and itself."""
        self._stopping = True
        self._wake.set()
        self.prober.stop()

    def leave(self, grace: float) -> None:
        """Take no new requests, finish those that run within so many seconds, and end for good."""
        self._settled_at = time.monotonic() + SETTLE_SECONDS
        self._leave_by = time.monotonic() + grace
        self.draining = self.leaving = True
        self._changed.set()
        self._wake.set()

    def make_way(self) -> None:
        """End at once: one with other orders comes in its place."""
        self.leaving = True
        self.stop()

    def reach_generation(self, generation: int) -> None:
        """Start anew if another member of this instance already did."""
        if generation > self.generation:
            self._wanted_generation = generation
            self._wake.set()

    def report(self) -> dict[str, Any]:
        """Return what the registry is told."""
        now = time.monotonic()
        metadata = dict(self.order["metadata"])
        metadata.update(
            restarts=self.restarts,
            generation=self.generation,
            pid=self.pid,
            since=self.since,
            reason=self.reason,
            load=self.prober.load,
        )
        if self.ready_after is not None:
            metadata["ready_after"] = round(self.ready_after, 2)
        if self.tail:
            metadata["tail"] = self.tail
        if self.output.error:
            metadata["log_error"] = self.output.error
        status = "draining" if self.draining and self.status in ("healthy", "unhealthy") else self.status
        age = 0.0 if self.last_good is None else max(0.0, now - self.last_good)
        return {
            "service_id": self.order["id"],
            "host": self.order["address"],
            "port": self.ports.api if self.order["rank"] == 0 else 0,  # the others serve no API
            "service_type": self.order["service_type"],
            "status": status,
            "age": age,
            "metadata": metadata,
        }

    # -- its life

    def run(self) -> None:
        """Start, watch and restart until told to stop or out of tries."""
        given_up = self._live()
        ended = DRAINED if self.draining and not self._stopping else "stopped"
        self._set("failed" if given_up else "stopped", given_up or ended)
        self.ports.release()
        self.output.close()

    def _live(self) -> str:
        """Start, watch and restart. Return why it was given up, or nothing when it was stopped."""
        if not self._has_its_needs():
            ours = self._stopping or self.leaving
            return "" if ours else "told to end before its node had all that it needs"
        while not self._stopping and not self.leaving:
            cause, permanent = self._one_life()
            if self._stopping or self.draining:
                break
            if cause is None:  # another member started anew: follow it, this was no failure here
                continue
            self.failures += 1
            if permanent or self.failures > self.policy.max_restarts:
                return cause
            pause = self.policy.backoff(self.failures)
            self._set(
                "unhealthy" if self.restarts or self.ready_after else "starting",
                f"{cause}; next start in {pause:.0f} s",
            )
            self._wake.wait(pause)
            self.restarts += 1
        return ""

    def _has_its_needs(self) -> bool:
        """Wait until what it needs is staged to this node; False where it is told to end before."""
        pause = 0.1
        while not all(map(is_here, self.order.get("needs", ()))):
            if self._stopping or self.draining:
                return False
            if self.reason != "staging":
                self._set("pending", "staging")
            self._wake.wait(pause)
            pause = min(1.0, pause * 1.5)
        return True

    def _one_life(self) -> tuple[str | None, bool]:
        """Run the engine once. Return why it ended (None: on another member's account), and if that is for good."""
        taken = self.ports.take()
        if taken:
            self.tail = [taken]
            return taken, True
        self.generation = max(self.generation + 1, self._wanted_generation)
        mark = f"{self.order['id']}.{os.getpid()}.{self.generation}"
        self.output.tail.clear()
        self.output.note(f"start {self.generation} on port {self.ports.api}")
        try:
            process = spawn(self.order, self.ports.api, self.ports.internal, self.secret_env, mark)
        except (OSError, ValueError) as error:  # no such directory, arguments too long, no more processes
            self.tail = [f"cannot be started: {error}"]
            return self.tail[0], False
        reason = self._accompany(process, mark)
        return (None, False) if reason is None else self._judge(process.returncode, reason)

    def _accompany(self, process: subprocess.Popen[bytes], mark: str) -> str | None:
        """Watch the engine, then end it. Return why, as `_watch` does."""
        self.pid = process.pid
        pump = self.output.follow(process.stdout)
        vitals = Vitals(self.policy, time.monotonic())
        self._set("starting", "starting" if not self.restarts else "restarted")
        try:
            return self._watch(process, vitals)
        finally:
            if not end(process, mark, self.policy.stop_grace):
                self.output.note(f"process {process.pid} does not end (stuck in the kernel?)")
            pump.join(2.0)
            self.pid = None

    def _judge(self, code: int | None, reason: str) -> tuple[str, bool]:
        """Return the cause of an end in words, and whether another start would fail the same way."""
        lines = list(self.output.tail)
        died = not reason  # by itself: what we ended says nothing by its code, and may do better next time
        cause, permanent = diagnose(self.order.get("causes", []), lines, code if died else None)
        if died:
            reason = f"exited with code {code}" if (code or 0) >= 0 else ""
        self.tail = lines[-TAIL_SENT:]
        text = "; ".join(part for part in (cause, reason) if part)
        self.output.note(f"ended: {text}")
        if "address already in use" in text.lower() or "port is taken" in text:
            self.ports.release()
            permanent = False
        return text, permanent and died and self.ready_after is None

    def _watch(self, process: subprocess.Popen[bytes], vitals: Vitals) -> str | None:
        """Probe until the process ends or has to. Return why ("" for a death, None to follow another member)."""
        pause = 0.1
        while True:
            if wait_for_end(process, self._wake, pause):
                return ""
            if self._stopping or (self.leaving and self._may_leave(vitals)):
                return "stopped"
            if self._wanted_generation > self.generation:
                return None
            now = time.monotonic()
            before = vitals.status
            vitals.observe(time.monotonic(), self.prober.look(vitals, now))
            self.last_good = vitals.last_good
            if vitals.status == "healthy" and self.ready_after is None:
                self.ready_after = time.monotonic() - vitals.started
            if vitals.status != before or vitals.reason != self.reason:
                self._set(vitals.status, vitals.reason)
            if vitals.settled(now):
                self.failures = 0
            due = vitals.restart_due(time.monotonic())
            if due:
                return due
            starting = min(1.0, pause * 1.5)
            usual = min(self.policy.probe_interval, LEAVING_SECONDS if self.leaving else math.inf)
            pause = starting if vitals.status == "starting" else usual

    def _may_leave(self, vitals: Vitals) -> bool:
        """Tell whether nobody waits for an answer: none was sent here, all are answered, or the time is over."""
        if vitals.status == "starting" or time.monotonic() >= self._leave_by:
            return True
        load = self.prober.load
        settled = load.get("at", 0.0) > self._settled_at
        return settled and "running" in load and not load["running"] and not load.get("waiting")

    def _set(self, status: str, reason: str) -> None:
        if status != self.status:
            self.since = time.time()
        self.status, self.reason = status, reason
        if status == "healthy":
            self.tail = []
        self._changed.set()
