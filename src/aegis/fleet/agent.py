"""The agent: one per node; starts, watches, restarts and stops that node's instances.

Standard library only and one file: it is copied to the run directory and started on thousands of nodes at once, by
any Python >= 3.9. It knows no engine: commands, probes and the meaning of log lines come as data (`fleet/order.py`).

    python agent.py FLEET_FILE --node NAME [--secrets FILE] [--parent PID]

Two processes. The guard outlives everything: it is the reaper of all descendants, so that whatever happens to the
worker, even kill -9, nothing stays behind. The worker has one thread per instance: a hung one delays nobody else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import http.client
import json
import math
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PORT_MARK = "{aegis:port}"  # in a command or environment: the API port, known only when it is reserved
INTERNAL_PORT_MARK = "{aegis:internal_port}"
MARK = "AEGIS_START"  # environment variable by which every process of one start is found
KILLED = 128
OK = 200
SERVER_ERROR = 500
LAST_PORT = 65535
TAIL_LINES = 200
TAIL_WIDTH = 2000  # characters of a line that are kept for diagnosis and for the registry
TAIL_SENT = 40  # lines of a failed start that travel to the registry
MAX_PORT_SHIFTS = 12
EXCEPTION = re.compile(r"(?:\([^)]*\) )?[\w.]*(?:Error|Exception)\b: .")  # what a Python traceback ends with
LOG_LINE_LIMIT = 64 * 1024  # bytes; longer lines are cut, so that a progress bar cannot fill the memory

# Runs between fork and exec in the new process: no lock of this process can be held there. argv: parent's pid, CPUs, command
SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
if sys.argv[2]:
    try:
        os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[2].split(",")})
    except OSError as error:
        print("aegis: CPUs %s are not ours: %s" % (sys.argv[2], error), file=sys.stderr)
try:
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError as error:
    print("aegis: cannot run %s: %s" % (sys.argv[3], error.strerror), file=sys.stderr)
    sys.exit(127)
"""


# ------------------------------------------------------------------------------------------- pure judgement


class Policy:
    """The patience of the agent, in seconds."""

    def __init__(self, **values: float) -> None:
        self.startup_timeout = values.get("startup_timeout", 600.0)
        self.probe_interval = values.get("probe_interval", 5.0)
        self.probe_timeout = values.get("probe_timeout", 5.0)
        self.canary_interval = values.get("canary_interval", 60.0)
        self.canary_timeout = values.get("canary_timeout", 30.0)
        self.wedge_timeout = values.get("wedge_timeout", 60.0)  # running > 0 and no token moved
        self.restart_after = values.get("restart_after", 60.0)  # unhealthy for so long: start it anew
        self.stop_grace = values.get("stop_grace", 15.0)
        self.settled_after = values.get(
            "settled_after", 300.0
        )  # healthy for so long: earlier failures are forgiven
        self.backoff_first = values.get("backoff_first", 1.0)
        self.backoff_most = values.get("backoff_most", 60.0)
        self.max_restarts = int(values.get("max_restarts", 3))

    def backoff(self, failures: int) -> float:
        """Return the pause before the next start."""
        return min(self.backoff_most, self.backoff_first * 2.0 ** min(60, max(0, failures - 1)))


class Probe:
    """What one look at a running instance showed."""

    def __init__(
        self,
        *,
        health: bool,
        canary: bool | None = None,
        running: float | None = None,
        tokens: float | None = None,
        detail: str = "",
    ) -> None:
        self.health = health  # /health answered with 200
        self.canary = canary  # a one-token request was answered; None: not asked
        self.running = running  # requests being worked on; None: not known
        self.tokens = tokens  # tokens read and written so far
        self.detail = detail


class Vitals:
    """Judges probes: starting, healthy, unhealthy (silent or wedged), and when a restart is due. Pure."""

    def __init__(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self.started = now
        self.status = "starting"
        self.reason = "starting"
        self.since = now
        self.last_good: float | None = None
        self.last_canary: float | None = None
        self._canary_failed = False
        self._silent = 0  # probes in a row without an answer from /health
        self._tokens: float | None = None
        self._moved = now  # when tokens last moved, or nothing was running

    def observe(self, now: float, probe: Probe) -> str:
        """Take one probe and return the status that follows."""
        if probe.running is not None:
            if not probe.running or probe.tokens is None or probe.tokens != self._tokens:
                self._moved = now
            self._tokens = probe.tokens
        if probe.canary is not None:
            self.last_canary = now
            self._canary_failed = not probe.canary
            if probe.canary:
                self._moved = now
        self._silent = 0 if probe.health else self._silent + 1
        if self._silent == 1 and self.status == "healthy":  # one slow answer under load is no illness
            return self.status
        problem = self._problem(now, probe)
        if self.status == "starting" and (problem or self.last_canary is None):
            self.reason = problem or "waiting for the first answer"
            return self.status
        if not problem:
            self.last_good = now
        self._turn("unhealthy" if problem else "healthy", problem, now)
        return self.status

    def _problem(self, now: float, probe: Probe) -> str:
        """Return what is wrong, or nothing."""
        if not probe.health:
            return probe.detail or "no answer from /health"
        if self._canary_failed:
            detail = f" ({probe.detail})" if probe.detail else ""
            return f"wedged: /health answers, a one-token request does not{detail}"
        stuck = now - self._moved
        if probe.running and stuck >= self.policy.wedge_timeout:
            return f"wedged: {probe.running:.0f} requests running and no token for over {self.policy.wedge_timeout:.0f} s"
        return ""

    def canary_due(self, now: float, running: float | None) -> bool:
        """Tell whether to send a one-token request: before the first `healthy`, then only to an idle instance."""
        if self.status == "starting" or self._canary_failed or self.last_canary is None:
            return True
        return not running and now - self.last_canary >= self.policy.canary_interval

    def restart_due(self, now: float) -> str:
        """Return why the instance should be started anew, or nothing."""
        if self.status == "starting" and now - self.started >= self.policy.startup_timeout:
            return f"not healthy {now - self.started:.0f} s after its start ({self.reason})"
        if self.status == "unhealthy" and now - self.since >= self.policy.restart_after:
            return f"unhealthy for {now - self.since:.0f} s ({self.reason})"
        return ""

    def settled(self, now: float) -> bool:
        """Tell whether it has been healthy long enough to forget earlier failures."""
        return self.status == "healthy" and now - self.since >= self.policy.settled_after

    def _turn(self, status: str, reason: str, now: float) -> None:
        if status != self.status:
            self.status, self.since = status, now
        self.reason = reason


def diagnose(causes: list[list[Any]], lines: list[str], code: int | None) -> tuple[str, bool]:
    """Return the likely cause of a death, and whether another start would fail the same way."""
    text = "\n".join(lines)
    for pattern, cause, permanent in causes:
        match = re.search(pattern, text)
        if match:
            found = next((group for group in match.groups() if group), "") if match.groups() else ""
            return cause.replace("{}", found.strip()[:200]).rstrip(": "), bool(permanent)
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = ", perhaps by the node's out-of-memory killer" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}", False
    said = [line for line in lines if EXCEPTION.match(line)]
    return (said[-1][:240] if said else ""), False


def parse_metrics(text: str, names: dict[str, list[str]]) -> dict[str, float]:
    """Sum the samples of a Prometheus page over their labels, for each group of alternative names."""
    wanted = {name: group for group, alternatives in names.items() for name in alternatives}
    sums: dict[str, float] = {}
    for line in text.split("\n"):  # not splitlines: labels may hold other line separators
        name = line.partition("{")[0].partition(" ")[0]
        group = wanted.get(name)
        if group is None:
            continue
        try:
            value = float(line.rpartition("}")[2].split()[0 if "{" in line else 1])
        except (ValueError, IndexError):
            continue
        if math.isfinite(value):  # JSON has no NaN: one would cost the whole node its report
            sums[group] = sums.get(group, 0.0) + value
    return sums


# ------------------------------------------------------------------------------------------- processes and ports


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; ignored where it does not exist."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value)


def processes_marked(mark: str) -> list[int]:
    """Return the processes whose environment carries this start's mark, whatever group they moved to."""
    wanted = (f"{MARK}={mark}").encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                continue
    return found


def children_of(parent: int) -> list[int]:
    """Return the live child processes of a process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] not in (b"Z", b"X"):
                found.append(int(entry))
    return found


def signal_quietly(send: Callable[[int, int], None], pid: int, number: int) -> None:
    """Send a signal to what may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)


def port_owner(port: int) -> str:
    """Return ` by pid 123 (python -m http.server)` for a listening port of this user, as far as /proc tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                        inodes.add(f"socket:[{fields[9]}]")
        except OSError:
            continue
    for entry in os.listdir("/proc"):
        if entry.isdigit() and inodes:
            try:
                for fd in os.listdir(f"/proc/{entry}/fd"):
                    if os.readlink(f"/proc/{entry}/fd/{fd}") in inodes:
                        with open(f"/proc/{entry}/cmdline", "rb") as file:
                            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
                        return f" by pid {entry} ({command[:200]})"
            except OSError:
                continue
    return ""


class PortHold:
    """Holds a port against other agents of this machine until it is released or the agent dies.

    The name is in the abstract socket namespace: it belongs to the machine, not to a user, and no file is left.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(f"\0aegis-port-{host}-{port}")
        except OSError:
            self._socket.close()
            raise

    def release(self) -> None:
        """Give the port up."""
        self._socket.close()


def reserve_port(host: str, port: int) -> PortHold | None:
    """Return a hold on the port, or None when somebody listens there or another agent holds it."""
    try:
        hold = PortHold(host, port)
    except OSError:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            hold.release()
            return None
    return hold


class Wake:
    """An event that can be waited for together with a process, and set by a signal handler (no lock)."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def set(self) -> None:
        """Wake who waits, now or next time."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")

    def wait(self, timeout: float) -> bool:
        """Wait until woken or the time is over; True when woken."""
        woken = bool(select.select([self.reader], [], [], timeout)[0])
        self.clear()
        return woken

    def clear(self) -> None:
        """Forget earlier calls."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)


def wait_for_end(process: subprocess.Popen[bytes], wake: Wake, timeout: float) -> bool:
    """Wait until the process ends, somebody wakes us, or the time is over; True when it has ended.

    `Popen.wait(timeout)` looks twenty times a second; a process descriptor costs nothing while nothing happens.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # kernels before 5.3
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([wake.reader], [], [], min(0.2, max(0.0, deadline - time.monotonic())))[0]:
                break
    else:
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.register(wake.reader, select.POLLIN)
            poll.poll(timeout * 1000)
        finally:
            os.close(handle)
    wake.clear()
    return process.poll() is not None


class Output:
    """Reads an engine's output: keeps the last lines, and writes all of it to the log while the disk takes it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.error = ""

    def note(self, line: str) -> None:
        """Add a line of our own."""
        self._write(("[aegis {}] {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S"), line)).encode())

    def follow(self, stream: Any) -> threading.Thread:
        """Read the stream to its end in a thread of its own."""
        thread = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        thread.start()
        return thread

    def _pump(self, stream: Any) -> None:
        while True:
            line = stream.readline(LOG_LINE_LIMIT)
            if not line:
                return
            self.tail.append(line[: 4 * TAIL_WIDTH].decode(errors="replace").rstrip()[:TAIL_WIDTH])
            self._write(line)

    def _write(self, data: bytes) -> None:
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)
            self.error = ""
        except OSError as error:
            self.error = f"log not written: {error.strerror}"


# ------------------------------------------------------------------------------------------- one instance


class Instance(threading.Thread):
    """Runs one instance until it is stopped or given up."""

    def __init__(self, order: dict[str, Any], agent: Agent) -> None:
        super().__init__(name=order["id"], daemon=True)
        self.order = order
        self.agent = agent
        self.policy = Policy(**order.get("policy", {}))
        self.output = Output(order["log"])
        self.status, self.reason, self.since = "pending", "", time.time()
        self.port, self.internal_port = order["port"], order["internal_port"]
        self.generation = 0
        self.restarts = 0
        self.failures = 0  # in a row, forgiven after a settled time
        self.pid: int | None = None
        self.load: dict[str, float] = {}
        self.ready_after: float | None = None
        self.last_good: float | None = None
        self.draining = False
        self.tail: list[str] = []
        self._hold: PortHold | None = None
        self._wake = Wake()  # stop, or look for new orders
        self._asking: socket.socket | None = None  # the probe under way
        self._stopping = False
        self._wanted_generation = 0

    # -- what others ask of it

    def stop(self) -> None:
        """Ask the thread to end its processes and itself."""
        self._stopping = True
        self._wake.set()
        _abort(self._asking)

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
            load=self.load,
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
            "port": self.port if self.order["rank"] == 0 else 0,  # the others serve no API
            "service_type": self.order["service_type"],
            "status": status,
            "age": age,
            "metadata": metadata,
        }

    # -- its life

    def run(self) -> None:
        """Start, watch and restart until told to stop or out of tries."""
        while not self._stopping:
            cause, permanent = self._one_life()
            if self._stopping or self.draining:
                break
            if cause is None:  # another member started anew: follow it, this was no failure here
                continue
            self.failures += 1
            if permanent or self.failures > self.policy.max_restarts:
                self._set("failed", cause)
                self._release()
                return
            pause = self.policy.backoff(self.failures)
            self._set(
                "unhealthy" if self.restarts or self.ready_after else "starting",
                f"{cause}; next start in {pause:.0f} s",
            )
            self._wake.wait(pause)
            self.restarts += 1
        self._set("stopped", "stopped")
        self._release()

    def _one_life(self) -> tuple[str | None, bool]:
        """Run the engine once. Return why it ended (None: on another member's account), and if that is for good."""
        taken = self._take_port()
        if taken:
            self.tail = [taken]
            return taken, True
        self.generation = max(self.generation + 1, self._wanted_generation)
        mark = f"{self.order['id']}.{os.getpid()}.{self.generation}"
        self.output.tail.clear()
        self.output.note(f"start {self.generation} on port {self.port}")
        try:
            process = self._spawn(mark)
        except (OSError, ValueError) as error:  # no such directory, arguments too long, no more processes
            self.tail = [f"cannot be started: {error}"]
            return self.tail[0], False
        self.pid = process.pid
        pump = self.output.follow(process.stdout)
        started = time.monotonic()
        self._set("starting", "starting" if not self.restarts else "restarted")
        try:
            reason = self._watch(process, Vitals(self.policy, started))
        finally:
            self._end(process, mark)
            pump.join(2.0)
            self.pid = None
        if reason is None:
            return None, False
        lines = list(self.output.tail)
        died = not reason  # by itself: what we ended says nothing by its code, and may do better next time
        cause, permanent = diagnose(self.order.get("causes", []), lines, process.returncode if died else None)
        if died:
            reason = f"exited with code {process.returncode}" if (process.returncode or 0) >= 0 else ""
        self.tail = lines[-TAIL_SENT:]
        text = "; ".join(part for part in (cause, reason) if part)
        self.output.note(f"ended: {text}")
        if "address already in use" in text.lower() or "port is taken" in text:
            self._release()
            permanent = False
        return text, permanent and died and self.ready_after is None

    def _take_port(self) -> str:
        """Reserve a port, moving on by whole blocks where the user named none. Return what is wrong, if anything."""
        if self._hold is not None or self.order["rank"] > 0:
            return ""
        host, shifts = self.order["bind"], 1 if self.order["port_pinned"] else MAX_PORT_SHIFTS
        for shift in range(shifts):
            step = shift * self.order["port_block"]
            port = self.order["port"] + step
            if port > LAST_PORT:
                break
            self._hold = reserve_port(host, port)
            if self._hold is not None:
                self.port, self.internal_port = port, self.order["internal_port"] + step
                return ""
        port = self.order["port"]
        more = "" if shifts == 1 else f", and so are the next {shifts - 1} candidates"
        return f"port is taken: {port} on {host}{port_owner(port)}{more}"

    def _release(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _spawn(self, mark: str) -> subprocess.Popen[bytes]:
        fill = {PORT_MARK: str(self.port), INTERNAL_PORT_MARK: str(self.internal_port)}

        def filled(text: str) -> str:
            for token, value in fill.items():
                text = text.replace(token, value)
            return text

        environment = {name: value for name, value in os.environ.items() if name not in self.order["unset"]}
        environment.update({name: filled(value) for name, value in self.order["env"].items()})
        environment.update(self.agent.secrets.get("env", {}))
        environment[MARK] = mark
        cpus = ",".join(str(cpu) for cpu in self.order["cpus"])
        command = [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), cpus]
        return subprocess.Popen(
            command + [filled(arg) for arg in self.order["argv"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self.order.get("cwd") or None,
            start_new_session=True,
        )

    def _watch(self, process: subprocess.Popen[bytes], vitals: Vitals) -> str | None:
        """Probe until the process ends or has to. Return why ("" for a death, None to follow another member)."""
        pause = 0.1
        while True:
            if wait_for_end(process, self._wake, pause):
                return ""
            if self._stopping:
                return "stopped"
            if self._wanted_generation > self.generation:
                return None
            now = time.monotonic()
            before = vitals.status
            vitals.observe(time.monotonic(), self._probe(vitals, now))
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
            pause = starting if vitals.status == "starting" else self.policy.probe_interval

    def _probe(self, vitals: Vitals, now: float) -> Probe:
        if self.order["rank"] > 0:  # no API here: a running process is all there is to see
            return Probe(health=True, canary=True)
        policy, health = self.policy, self.order["health"]
        status, detail = self._ask("GET", health["path"], None, policy.probe_timeout)
        if status != OK:
            return Probe(health=False, detail=detail or f"{health['path']} answers {status}")
        running = tokens = canary = None
        if vitals.status != "starting":
            running, tokens = self._read_load()
        detail = ""
        if vitals.canary_due(now, running):
            patience = policy.canary_timeout
            if vitals.status == "starting":  # the first request may compile kernels
                patience = max(1.0, policy.startup_timeout - (now - vitals.started))
            code, answer = self._ask("POST", health["canary_path"], json.dumps(health["canary"]), patience)
            canary = 0 < code < SERVER_ERROR
            if not canary and tokens is not None and self._read_load()[1] not in (None, tokens):
                canary = True  # a burst came before it: it waits its turn, and others are served
            detail = "" if canary else (f"code {code}" if code else answer)
        return Probe(health=True, canary=canary, running=running, tokens=tokens, detail=detail)

    def _read_load(self) -> tuple[float | None, float | None]:
        """Return the requests being worked on and the tokens so far, as far as the engine tells."""
        code, page = self._ask("GET", "/metrics", None, self.policy.probe_timeout)
        if code != OK:
            return None, None
        self.load = parse_metrics(page, self.order["metrics"])
        return self.load.get("running"), self.load.get("tokens")

    def _ask(self, method: str, path: str, body: str | None, timeout: float) -> tuple[int, str]:
        """Return the status and text of an answer; status 0 and what went wrong when there is none in time."""
        connection = http.client.HTTPConnection(
            self.order["address"], self.port, timeout=min(timeout, 3600.0)
        )
        headers = {"Content-Type": "application/json"}
        key = self.agent.secrets.get("env", {}).get("VLLM_API_KEY")
        if key:
            headers["Authorization"] = "Bearer " + key
        deadline = time.monotonic() + timeout
        # A drip of bytes never times out by itself. The connection forgets its socket when the answer is its last.
        watchdog = threading.Timer(timeout, lambda: _abort(self._asking))
        watchdog.daemon = True
        try:
            watchdog.start()
            connection.connect()
            self._asking = connection.sock
            if self._stopping or time.monotonic() >= deadline:
                return 0, "stopping" if self._stopping else f"no connection in {timeout:.0f} s"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, ConnectionRefusedError):
                return 0, f"nothing listens on port {self.port} yet"
            if time.monotonic() >= deadline - 0.05:
                return 0, f"no answer from {path} in {timeout:.0f} s"
            return 0, f"{path}: {error or type(error).__name__}"
        else:
            if time.monotonic() < deadline:  # else it was cut off, which may look like its end
                return answer.status, text
            return 0, f"no answer from {path} in {timeout:.0f} s"
        finally:
            watchdog.cancel()
            self._asking = None
            connection.close()

    def _end(self, process: subprocess.Popen[bytes], mark: str) -> None:
        """End every process of this start: asked first, then killed; stragglers are found by their mark."""
        if process.poll() is None:
            signal_quietly(os.killpg, process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.policy.stop_grace)
        signal_quietly(os.killpg, process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            left = [pid for pid in processes_marked(mark) if pid != process.pid]
            if not left:
                break
            for pid in left:
                signal_quietly(os.kill, pid, signal.SIGKILL)
            time.sleep(0.02)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.output.note(f"process {process.pid} does not end (stuck in the kernel?)")

    def _set(self, status: str, reason: str) -> None:
        if status != self.status:
            self.since = time.time()
        self.status, self.reason = status, reason
        if status == "healthy":
            self.tail = []
        self.agent.changed.set()


def _abort(connected: socket.socket | None) -> None:
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)


# ------------------------------------------------------------------------------------------- the node


class Agent:
    """Runs the instances of one node, and tells the registry about them in one message."""

    def __init__(self, order: dict[str, Any], secrets: dict[str, Any]) -> None:
        self.order = order
        self.secrets = secrets
        self.changed = Wake()  # something to tell the registry
        self.stopping = False
        self._stop = Wake()
        self.instances = [Instance(each, self) for each in order["instances"]]

    def run(self) -> int:
        """Work until told to stop; 0 when stopped, 1 when every instance was given up."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ask_to_stop())
        for instance in self.instances:
            instance.start()
        told = 0.0
        interval = float(self.order.get("push_interval", 10.0))
        retry = 0.5
        while True:
            if self.changed.wait(max(0.05, told + interval - time.monotonic())):
                self._stop.wait(0.05)  # changes come in groups: tell them together
                self.changed.clear()
            if self.stopping:
                break
            if self._push():
                told, retry = time.monotonic() - random.random() * interval / 10, 0.5  # noqa: S311 - agents drift apart
            else:
                self._stop.wait(retry)
                retry = min(retry * 2, interval)
                self.changed.set()
            if not any(instance.is_alive() for instance in self.instances):
                break
        for instance in self.instances:
            instance.stop()
        for instance in self.instances:
            instance.join(instance.policy.stop_grace + 20.0)
        failed = bool(self.instances) and all(instance.status == "failed" for instance in self.instances)
        self._push()
        return 1 if failed else 0

    def _ask_to_stop(self) -> None:
        self.stopping = True
        self._stop.set()
        self.changed.set()

    def _push(self) -> bool:
        """Tell the registry; True when it took the message."""
        services = [instance.report() for instance in self.instances]
        body = json.dumps({"node": self.order["node"], "services": services})
        url = urllib.parse.urlsplit(self.order["registry"])
        connection = http.client.HTTPConnection(url.hostname or "localhost", url.port or 80, timeout=5.0)
        headers = {"Content-Type": "application/json"}
        if self.secrets.get("registry_token"):
            headers["Authorization"] = "Bearer " + self.secrets["registry_token"]
        try:
            path = "/nodes/" + urllib.parse.quote(self.order["node"], safe="")
            connection.request("PUT", path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != OK:
                said = text[:200].decode(errors="replace")
                print(f"aegis agent: the registry answers {answer.status}: {said}", file=sys.stderr)
                return False
            self._obey(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError):
            return False  # nothing there, or what answers is no registry
        finally:
            connection.close()
        return True

    def _obey(self, answer: dict[str, Any]) -> None:
        drained: set[str] = set(answer.get("drain") or ())
        for instance in self.instances:
            if instance.order["id"] in drained and not instance.draining:
                instance.draining = True
                self.changed.set()
            wanted = (answer.get("generations") or {}).get(instance.order["metadata"].get("instance"))
            if wanted:
                instance.reach_generation(int(wanted))
        if answer.get("stop"):
            self._ask_to_stop()


class Guard:
    """Starts the worker, passes signals on, and ends whatever is left when the worker is gone."""

    def __init__(self, argv: list[str], parent: int) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        if parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self.orphaned = bool(parent) and os.getppid() != parent
        self.worker = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--worker", str(os.getpid()), *argv]
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: signal_quietly(os.kill, self.worker.pid, signal.SIGTERM))

    def run(self) -> int:
        """Wait for the worker; return its exit code."""
        if self.orphaned:
            signal_quietly(os.kill, self.worker.pid, signal.SIGTERM)
        code = 1
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                break
            if pid == self.worker.pid:
                code = os.waitstatus_to_exitcode(status)
                break
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:  # orphans become our children: until none is left
            left = children_of(os.getpid())
            if not left:
                break
            for pid in left:
                signal_quietly(os.kill, pid, signal.SIGKILL)
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            time.sleep(0.01)
        return (
            code if code >= 0 else KILLED - code
        )  # as a shell tells it, apart from 1: all instances given up


# ------------------------------------------------------------------------------------------- command line


def read_order(path: str, node: str) -> dict[str, Any]:
    """Return this node's line of the fleet file: the one named, else the one of this host.

    One file serves all nodes, one line each: ten thousand small files would be slower than the servers.
    """
    names = {node} if node else {socket.gethostname(), socket.gethostname().split(".")[0]}
    with open(path, "rb") as file:
        for line in file:
            if any(
                line.startswith(b'{"node":' + json.dumps(name, ensure_ascii=False).encode()) for name in names
            ):
                found: dict[str, Any] = json.loads(line)
                return found
    raise SystemExit("aegis agent: {} has no line for node {}".format(path, " or ".join(sorted(names))))


def read_secrets(path: str) -> dict[str, Any]:
    """Return the secrets, from a file that only its owner may read."""
    if not path:
        return {}
    with open(path) as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise SystemExit(f"aegis agent: {path} may be read by others: chmod 600")
        found: dict[str, Any] = json.load(file)
        return found


def main(argv: list[str]) -> int:
    """Run as guard, or as worker where the guard asks for it."""
    parser = argparse.ArgumentParser(prog="aegis-agent", description="Run the instances of one node.")
    parser.add_argument("fleet", help="the fleet file (JSON lines, one per node)")
    parser.add_argument("--node", default="", help="name of this node in the file (default: the host name)")
    parser.add_argument("--secrets", default="", help="JSON file, mode 0600")
    parser.add_argument("--parent", type=int, default=0, help="end when this process ends")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        order = read_order(options.fleet, options.node)
        if not options.worker:
            return Guard(argv, options.parent).run()
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != options.worker:
            return 1
        return Agent(order, read_secrets(options.secrets)).run()
    except (OSError, ValueError) as error:
        print(f"aegis agent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
