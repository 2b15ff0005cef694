"""The head of a job: place, start the registry and the agents, follow the fleet, and end it whole."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.engines.ray import TOKEN_VARIABLE
from aegis.errors import (
    AegisError,
    ConfigError,
    InterruptedByUser,
    RegistryUnreachable,
)
from aegis.files import PRIVATE, write_atomically
from aegis.fleet.archive import agent_archive
from aegis.fleet.delivery import Delivery, delivery
from aegis.fleet.ending import SHUT_DOWN, Stop, not_in_time, nothing_left
from aegis.fleet.endpoints import endpoint_lines, is_own
from aegis.fleet.gateways import gateway_count, gateway_ids, with_gateways
from aegis.fleet.growth import LOST_SECONDS, NODE_LOST, Growth
from aegis.fleet.handover import by_model
from aegis.fleet.inside import Walltime, patience, submitted_secrets
from aegis.fleet.launchers import agents_for
from aegis.fleet.nodes import Host, allocation, head_of
from aegis.fleet.opening import also_into, open_run
from aegis.fleet.order import Fleet, fleet_file, node_orders
from aegis.fleet.prepare import place_on, refuse_shared_endpoints
from aegis.fleet.progress import Counts, Progress, failure_lines, members_of
from aegis.fleet.record import Record
from aegis.fleet.roster import Roster
from aegis.fleet.services import RegistryProcess, registry_client
from aegis.fleet.staging import ground_at, site_of
from aegis.fleet.standing import Standing
from aegis.fleet.succession import Succession
from aegis.fleet.successors import Own, refuse_by_hand
from aegis.fleet.weights import find_weights, path_of
from aegis.fleet.work import Work, words_of
from aegis.registry.model import MAP_TYPE
from aegis.schedulers.base import JOB_VARIABLE, RUN_DIR_VARIABLE, SECRET_NAMES
from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import FrameType

    from aegis.spec.resolve import Resolved
    from aegis.staging.want import Site

WATCH_SECONDS = 1.0  # how long the head listens before it looks at its own processes
REVIVAL_PATIENCE = 60.0  # a registry that stays away so long ends the launch


class Launch:
    """One launch, from allocation to the last process."""

    def __init__(self, resolved: Resolved, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.resolved, self.deployment = resolved, resolved.deployment
        self.passed = submitted_secrets(environ)
        if resolved.hf_token:
            self.passed["HF_TOKEN"] = resolved.hf_token.reveal()
        self.environ = environ
        self.say = say
        spare = self.deployment.spare_nodes
        self.hosts: list[Host] = allocation(resolved.platform, environ, spare)
        self.platform, self.placement = place_on(
            resolved.platform, self.deployment, max(1, len(self.hosts) - spare)
        )
        self.gateways = gateway_count(resolved, self.placement.nodes)
        self.started = time.monotonic()
        limit = parse_walltime(self.deployment.walltime) if self.deployment.walltime else None
        self.walltime = Walltime(limit, environ, local=self.platform.launcher == "local")
        self.agent_patience = patience(environ)
        self.work: Work | None = None
        self.standing: Standing | None = None
        self._wish: Stop | None = None
        self._interruptions = False  # whether a signal ends what is going on
        self._unneeded: set[str] = set()  # members that are to be told that they wait in vain
        self._signalled = False

    def run(self, on_ready: Callable[[list[str]], None]) -> None:
        """Serve until told to stop.

        Args:
            on_ready: called once with the endpoints when the fleet is settled.

        Raises:
            AegisError: it could not start, nothing is left, or it was interrupted.
        """
        refuse_by_hand(self.deployment, self.environ)
        self._refuse_shared_endpoints()
        self._look_for_weights()
        self.run_dir, self.manifest = open_run(
            self.deployment, self.platform, self.placement, self.environ, self.say
        )
        if not self.environ.get(RUN_DIR_VARIABLE):
            self.say = also_into(self.run_dir.err, self.say)
        self.record = Record(self.run_dir, self.manifest, self.say)
        own = Own(
            self.resolved,
            self.run_dir,
            self.manifest,
            self.walltime,
            self.secrets,
            self.environ,
            self.agent_patience,
        )
        self.succession = Succession(own, self.record.endpoints, self.say)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        head = head_of(self.hosts, os.uname().nodename, self.platform.network.host_suffix)
        self.registry = RegistryProcess(self.run_dir, head.bind, head.address, self.deployment.registry_port)
        self.agents = agents_for(
            self.platform,
            self.run_dir,
            self.hosts,
            sys.executable,
            self.environ,
            spare=self.deployment.spare_nodes > 0,
        )
        try:
            self._write_secrets()
            with self._interruptible(), self._delivery() as self.delivery:
                self._start()
                self._follow(on_ready)
        except Stop as stop:
            self._end(stop)
        except OSError as error:
            said = AegisError(f"{error.filename or self.run_dir.path}: {error.strerror}")
            self._end(Stop(said.message, said))
        except AegisError as error:
            self._end(Stop(error.message, error))

    def _start(self) -> None:
        """Start the registry, the staging and the agents; from then on a signal is a wish, and no interruption."""
        if other := self.succession.replaced_by:
            raise Stop(f"not needed: {other} stands in already")
        self.registry.start()
        fleet = self._fleet()
        orders = with_gateways(fleet, node_orders(fleet), self.gateways)
        self.progress = Progress(members_of(orders), gateway_ids(orders))
        seconds = self.agent_patience.get(NODE_LOST, LOST_SECONDS)
        self.growth = Growth(Roster(fleet, orders), self.run_dir, self.agents, self.say, seconds)
        self._write(self.run_dir.fleet, fleet_file(orders))
        self._write(self.run_dir.agent, agent_archive())
        self._announce()
        self._begin_work()
        self.delivery.start()
        self.agents.folder = self.delivery.bring_agents(self.run_dir, self.hosts)
        self._interruptions = False
        self.agents.start()

    # -- before

    def _look_for_weights(self) -> None:
        """Refuse what is not there before there is anything to clean up.

        Raises:
            ConfigError: weights that are not to be downloaded are missing.
        """
        for entry in self.deployment.models:
            if not entry.download_weights:
                find_weights(entry, skip_staging=self.deployment.skip_staging)

    def _delivery(self) -> AbstractContextManager[Delivery]:
        ground = ground_at(self.platform, self.hosts, self.placement, self._site())
        return delivery(self.deployment, ground, self.environ, self.passed.get("HF_TOKEN"), self.say)

    def _site(self) -> Site:
        """Return the paths of the nodes; a node-local one that is not known here is missed only where it is needed."""
        try:
            return site_of(self.platform, self.environ)
        except ConfigError:
            if self.deployment.conda_env or self.deployment.image:
                raise
            return site_of(self.platform, self.environ, real=False)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While things are looked at, downloaded and unpacked, a signal ends the launch at once."""
        self._interruptions = True
        if self._wish:
            raise self._wish
        try:
            yield
        finally:
            self._interruptions = False

    def _refuse_shared_endpoints(self) -> None:
        if not is_own(self.deployment.endpoints_file):
            file = Path(os.path.abspath(self.deployment.endpoints_file))  # noqa: PTH100 - links stay
            service = self.deployment.service if self.deployment.keep_alive else None
            refuse_shared_endpoints(file, self.environ, service)

    def _write_secrets(self) -> None:
        token = secrets.token_urlsafe(24)
        passed = self.secrets
        if any(entry.distributed_executor == "ray" for entry in self.deployment.models):
            passed[TOKEN_VARIABLE] = secrets.token_hex(32)
        content = msgspec.json.encode({"registry_token": token, "env": passed}).decode()
        self._write(self.run_dir.token, token + "\n", PRIVATE)
        self._write(self.run_dir.secrets, content, PRIVATE)

    @property
    def secrets(self) -> dict[str, str]:
        """What servers need, and nobody may see."""
        own = {name: self.environ[name] for name in SECRET_NAMES if self.environ.get(name)}
        return {**own, **self.passed}

    def _write(self, file: Path, content: str | bytes, mode: int = 0o644) -> None:
        try:
            write_atomically(file, content, mode)
        except OSError as error:
            raise AegisError(
                f"{file} cannot be written: {error.strerror}", hint="choose another directory with --log-dir"
            ) from None

    def _fleet(self) -> Fleet:
        return Fleet(
            deployment=self.deployment,
            platform=self.platform,
            placement=self.placement,
            hosts=tuple(self.hosts),
            weights=self.delivery.weights,
            staged=self.delivery.staged,
            job=self.manifest.job,
            run=self.run_dir,
            registry_url=self.registry.url,
            python=sys.executable,
            work_dir=os.getcwd(),  # noqa: PTH109 - text
            path=path_of(self.environ),
            no_proxy=self.environ.get("no_proxy") or self.environ.get("NO_PROXY") or "",
            patience=self.agent_patience,
        )

    def _announce(self) -> None:
        count = len(self.placement.instances)
        names = ", ".join(dict.fromkeys(entry.name for entry in self.deployment.models))
        nodes, spare = self.placement.nodes, len(self.hosts) - self.placement.nodes
        self.say(
            f"job {self.manifest.job}: {count} instance{'s' * (count != 1)} of {names} on {nodes} node{'s' * (nodes != 1)}"
            f"{f', and {spare} to spare' if spare else ''}"
        )
        self.say(f"registry {self.registry.url}, logs in {self.run_dir.path}")
        self.succession.announce()
        self.manifest.registry_url = self.registry.url
        self.record.note()

    def _begin_work(self) -> None:
        """Start the job's `aegis map`, where it has one."""
        if not self.deployment.map:
            return
        words = words_of(self.deployment.map)
        if self.walltime.limit and self.walltime.local:  # of a scheduler's job it knows the end by itself
            words += ["--walltime", format_walltime(max(1, int(self.walltime.until_notice())))]
        environ = {**self.environ, **self.passed, JOB_VARIABLE: self.manifest.job}
        if self.deployment.platform != "auto":  # may be a file, which nobody finds by its name
            environ["AEGIS_PLATFORM"] = self.deployment.platform
        self.work = Work(words, self.run_dir, environ, self.say)
        self.work.start(self.registry.url)

    # -- while it serves

    def _follow(self, on_ready: Callable[[list[str]], None]) -> None:
        """Follow the registry until a reason to stop turns up."""
        self.client = registry_client(self.registry.url, self.run_dir, timeout=10.0)
        teller = registry_client(self.registry.url, self.run_dir, timeout=2.0)
        self.standing = Standing(teller, self.manifest, self.walltime)
        since: int | None = None
        silent_since: float | None = None
        ready = False
        while True:
            try:
                seen = self.client.watch(since, WATCH_SECONDS)
                since, silent_since = seen.revision, None
                for line in self.progress.apply(seen.services, seen.removed, reset=seen.reset):
                    self.say(line)
                if seen.stop:
                    raise Stop(SHUT_DOWN)
                if seen.retire:
                    self.succession.retire(seen.retire, self.client)
                if self.growth.step(self.client, seen, self.progress):
                    self.deployment = self.growth.roster.deployment
                    self.record.regrown(self.growth.roster)
            except RegistryUnreachable as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > REVIVAL_PATIENCE:
                    raise Stop(error.message, error) from None
                if self.registry.revive():
                    self.say("the registry ended: started again")
                since = None
                time.sleep(0.2)
            self._refresh()
            self.standing.tell()
            counts = self.progress.counts
            self._check(counts)
            if counts.settled and counts.healthy and self.progress.gateways_settled and not ready:
                ready = True
                self._ready(counts, on_ready)

    def _refresh(self) -> None:
        """Bring the endpoints file and the manifest up to date."""
        for line in (*self.agents.check(), *self.delivery.news()):
            self.say(line)
        self._refuse_unstaged()
        if not self.record.refresh(self.progress, renewed=self.succession.refresh()):
            self.record.explain(self._reason())

    def _reason(self) -> str:
        """Return what the job does besides serving."""
        if self.manifest.state == "LAUNCHING":
            return self.delivery.status
        if said := self.succession.reason:
            return said
        runs = [each for each in self.progress.services.values() if each.service_type == MAP_TYPE]
        return str(runs[0].metadata.get("text", "")) if runs else ""

    def _refuse_unstaged(self) -> None:
        """Give up the instances whose nodes lack what they need; their agents are told through the registry."""
        for failure in self.delivery.failures():
            self.growth.unstaged(failure.host)
            why = f"{failure.error or 'not staged'} ({failure.host})"
            self._unneeded |= set(
                self.progress.refuse(failure.host, self.delivery.manifest(failure.item), why)
            )
        for member in self._unneeded & set(self.progress.services):  # the others have not said anything yet
            with contextlib.suppress(AegisError):
                self.client.drain(member)
                self._unneeded.discard(member)

    def _check(self, counts: Counts) -> None:
        """Raise Stop when there is a reason to end."""
        if self._wish:
            raise self._wish
        if self.work and (ended := self.work.ended()):
            raise Stop(*ended)
        elapsed = time.monotonic() - max(self.started, self.delivery.ended or math.inf)
        # `stopped` may be the last word of an agent that was killed, and is started again
        given_up = counts.lost and self.progress.given_up
        if (given_up and not self.growth.goes_on(self.client, self.progress)) or not self.agents.running:
            raise nothing_left(self.progress, self.run_dir, self.say)
        if self.walltime.is_over():
            raise Stop(self.walltime.sentence)
        if why := self.succession.ended:
            raise Stop(why)
        if not counts.healthy and self.manifest.ready is None and elapsed > self.deployment.startup_timeout:
            raise not_in_time(self.progress, self.deployment.startup_timeout)

    def _ready(self, counts: Counts, on_ready: Callable[[list[str]], None]) -> None:
        took = time.monotonic() - self.started
        self.manifest.settled = True
        self.record.note()
        self.say(
            f"ready: {counts.healthy} of {counts.wanted} healthy after {took:.1f} s; endpoints in {self.record.endpoints.path}"
        )
        for line in failure_lines(self.progress.failed):
            self.say(line)
        self.succession.settled(lambda: by_model(list(self.progress.services.values())))
        on_ready(endpoint_lines(self.progress.heads.values()))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signalled = True
        if number == signal.SIGINT:
            self._wish = Stop("interrupted", InterruptedByUser("interrupted; all servers are stopped"))
        elif self.walltime.explains_a_signal():
            self._wish = Stop(self.walltime.sentence)
        else:
            self._wish = Stop("shut down")
        if self._interruptions:
            raise self._wish

    # -- after

    def _end(self, stop: Stop) -> None:
        """End every process, leave the files as a reader expects them, and raise what there is to raise."""
        self.say(f"stopping: {stop.why.splitlines()[0]}" if stop.why else "stopping")
        if self.standing:
            self.standing.end()
        if self.work:
            self.work.stop()
        self.agents.stop()
        self.registry.stop()
        self.record.endpoints.remove()
        self.run_dir.remove_secrets()
        # a signal may mean that the job is to run again
        if self.manifest.secrets_file and not self._signalled:
            Path(self.manifest.secrets_file).unlink(missing_ok=True)
        self.succession.end(wished=stop.why == SHUT_DOWN, failed=bool(stop.error) and not self._signalled)
        self.record.close(stop)
        if stop.error:
            raise stop.error
