"""How probes are judged: the patience, one look, and the state that follows from all looks. Pure."""

from __future__ import annotations


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
