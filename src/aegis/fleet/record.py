"""What readers find of a launch on the disk: its manifest, and the file of its endpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import InterruptedByUser, PartialSuccess
from aegis.fleet.endpoints import EndpointsFile, endpoint_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.fleet.ending import Stop
    from aegis.fleet.progress import Progress
    from aegis.fleet.roster import Roster
    from aegis.runs import Manifest, RunDir


class Record:
    """Keeps both files up to date; what cannot be written is a warning, and the servers go on.

    Args:
        run: the run directory.
        manifest: of the job.
        say: gets the warnings.
    """

    def __init__(self, run: RunDir, manifest: Manifest, say: Callable[[str], None]) -> None:
        self.manifest = manifest
        self.endpoints = EndpointsFile(Path(str(manifest.endpoints_file)))
        self._run, self._say = run, say
        self._told = ""  # what was wrong with the endpoints file

    def note(self) -> None:
        """Write the manifest."""
        try:
            self._run.write_manifest(self.manifest)
        except OSError as error:
            self._say(f"warning: {self._run.manifest} cannot be written: {error.strerror}")

    def refresh(self, progress: Progress, *, renewed: bool) -> bool:
        """Bring both up to date; True when the manifest was written.

        Args:
            progress: of the fleet.
            renewed: there is something else to note.
        """
        manifest = self.manifest
        changed = self.endpoints.update(progress.heads.values())
        if self.endpoints.problem != self._told:
            self._told = self.endpoints.problem
            if self._told:
                self._say(f"warning: {self._told}")
        lines, gateways = endpoint_lines(progress.heads.values()), endpoint_lines(progress.gateways)
        if not (changed or renewed or gateways != manifest.gateways):
            return False
        manifest.gateways = gateways
        manifest.base_url = f"http://{(gateways or lines)[0]}/v1" if lines else None
        if lines and manifest.state == "LAUNCHING":
            manifest.state, manifest.ready = "READY", time.time()
        self.note()
        return True

    def explain(self, reason: str) -> None:
        """Note what the job does besides serving."""
        if self.manifest.reason != reason:
            self.manifest.reason = reason
            self.note()

    def regrown(self, roster: Roster) -> None:
        """Note what is served now, and on how many nodes."""
        self.manifest.instances, self.manifest.nodes = len(roster.wanted), roster.nodes
        self.manifest.deployment = msgspec.to_builtins(roster.deployment)
        self.note()

    def close(self, stop: Stop) -> None:
        """Note how the launch ended."""
        manifest, error = self.manifest, stop.error
        served = error is None or isinstance(error, InterruptedByUser | PartialSuccess)
        manifest.state = "SHUTDOWN" if served else "FAILED"
        manifest.reason = error.message if error else stop.why
        manifest.exit_code = error.exit_code if error else 0
        manifest.ended, manifest.base_url, manifest.gateways = time.time(), None, []
        self.note()
