"""The staging of a launch: it goes on in a thread while agents start, and each instance waits for its own node's part."""

from __future__ import annotations

import os
import queue
import secrets
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import structs

from aegis.errors import AegisError
from aegis.fleet.environments import expanded
from aegis.fleet.order import Need, Staged, Weights
from aegis.fleet.stagers import chosen, stager_for
from aegis.fleet.staging import fetch, loaded_from, planned, source_of, wants_of
from aegis.fleet.weights import find_weights
from aegis.staging.events import NodeResult
from aegis.staging.listing import MAGIC, MANIFEST, Directory, File, Item, encode
from aegis.staging.plan import Plan
from aegis.staging.progress import LOG_SECONDS, Progress, size_text
from aegis.staging.runners import OneThenAnother, OnThisMachine
from aegis.staging.stage import failure_lines, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.fleet.nodes import Host
    from aegis.fleet.staging import Ground
    from aegis.runs import RunDir
    from aegis.spec.deployment import Deployment
    from aegis.staging.events import Event
    from aegis.staging.stage import Stager
    from aegis.staging.want import Want

T = TypeVar("T")
BRING_SECONDS: Final = 20.0  # for the agents to be on all nodes, which wait for nothing else
BRING_SECONDS_EACH: Final = 0.01
STOP_SECONDS: Final = 3.0  # for the stager's processes to end; they do not outlive this one anyway


class Delivery:
    """What is brought to the nodes of a launch, and how far it is."""

    def __init__(
        self,
        plan: Plan,
        stager: Stager | None,
        weights: tuple[Weights, ...],
        staged: Staged,
        local_path: str = "",
    ) -> None:
        self.plan = plan
        self.weights = weights  # per model: what its servers load
        self.staged = staged
        self.ended: float | None = None if plan.items else time.monotonic()
        self._stager = stager
        self._local_path = local_path  # of a node
        self._progress = Progress([item.size for item in plan.items], [item.hosts for item in plan.items])
        self._failures: queue.SimpleQueue[NodeResult] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told = time.monotonic()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="staging", daemon=True)

    def start(self) -> None:
        """Begin; what there is to say is asked for later."""
        if self.plan.items:
            self._thread.start()

    @property
    def status(self) -> str:
        """What `aegis status` says of it; "" when it is over."""
        return self._progress.status() if self.ended is None else ""

    def failures(self) -> list[NodeResult]:
        """Return the nodes that were found since the last call to lack something for good."""
        return _drained(self._failures)

    def news(self) -> list[str]:
        """Return what a person wants to know since the last call: how far it is, now and then."""
        lines = _drained(self._news)
        now = time.monotonic()
        if self.ended is None and now - self._told >= LOG_SECONDS:
            self._told = now
            lines.append(self._progress.line())
        return lines

    def manifest(self, item: int) -> str:
        """Return where an item says that it is there, as the needs of instances name it."""
        return _manifest_of(self.plan.items[item])

    def bring_agents(self, run: RunDir, hosts: Sequence[Host]) -> str | None:
        """Bring the agent and its orders to all nodes, beside the rest; return the folder that they are in there.

        Ten thousand nodes would read both from the shared file system at once; the orders are as many lines. Where this
        does not succeed everywhere, or nothing is staged anyway, None: agents read them there after all.
        """
        if self._stager is None or isinstance(self._stager, OnThisMachine) or "$" in self._local_path:
            return None
        item = _agent_item(run, self._local_path)
        names = [host.name for host in hosts]
        deadline = time.monotonic() + BRING_SECONDS + BRING_SECONDS_EACH * len(names)

        def heard(_: Event) -> None:
            if time.monotonic() > deadline:
                raise AegisError("they were not on all nodes in time")

        # by what goes on without a node that is lost: everybody waits for this
        second = self._stager.second if isinstance(self._stager, OneThenAnother) else self._stager
        try:
            results = stage([item], names, second, heard)
        except AegisError as error:
            self._news.put(f"agents start from {run.path}: {error.message}")
            return None
        if results.failed:
            self._news.put(f"agents start from {run.path}: {failure_lines(results)[0]}")
            return None
        return item.destination

    def stop(self) -> None:
        """End it, and wait until its processes are gone."""
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        if self._stager is None:
            return
        try:
            results = stage(self.plan.items, self.plan.hosts, self._stager, self._heard)
            there = len(results.complete_hosts)
            self._news.put(
                f"staged {size_text(self.plan.size)} to {there} of {len(self.plan.hosts)} nodes in {results.seconds:.1f} s"
            )
            for line in failure_lines(results):
                self._news.put(line)
        except _Stopped:
            pass
        except AegisError as error:
            self._news.put(error.message)
            for number, hosts in enumerate(self._progress.waiting):
                for host in hosts:
                    self._failures.put(NodeResult(item=number, host=host, ok=False, error=error.message))
        finally:
            self.ended = time.monotonic()

    def _heard(self, event: Event) -> None:
        if self._stopping:
            raise _Stopped
        self._progress.apply(event, time.monotonic())
        if isinstance(event, NodeResult) and not event.ok:
            self._failures.put(event)


class _Stopped(Exception):
    """The launch ends: nobody waits for what is staged any more."""


@contextmanager
def delivery(
    deployment: Deployment,
    ground: Ground,
    environ: Mapping[str, str],
    token: str | None,
    say: Callable[[str], None],
) -> Iterator[Delivery]:
    """Download what is to be downloaded, look at the sources, and yield what is to be brought to the nodes.

    Args:
        deployment: what is served.
        ground: where.
        environ: of the job.
        token: for downloads.
        say: gets a line for what takes its time.

    Raises:
        AegisError: something cannot be had, or cannot be staged.
    """
    if deployment.skip_staging:
        yield _nothing(_left_by_staging(deployment, ground))
        return
    fetch(deployment, environ, token, say)
    choice = chosen(deployment, ground, environ)
    if choice.stager == "none":
        yield _nothing([find_weights(entry, skip_staging=False) for entry in deployment.models])
        return
    wants = wants_of(deployment, ground)
    with planned(wants, deployment, tell=say) as plan:
        stager = stager_for(choice, ground, deployment, environ, say) if plan.items else None
        made = Delivery(plan, stager, *_loaded(deployment, wants, plan), ground.site.local_path)
        if plan.items:
            nodes = f"{len(plan.hosts)} node{'s' * (len(plan.hosts) != 1)}"
            say(f"staging {size_text(plan.size)} to {nodes} ({choice.stager}: {choice.why})")
        try:
            yield made
        finally:
            made.stop()


def need_of(item: Item) -> Need:
    """Return how an agent sees that an item is on its node."""
    records = encode([structs.replace(item, hosts=())])[len(MAGIC) :]
    file = _only_file(item)
    return Need(
        manifest=_manifest_of(item),
        length=len(records),
        crc=zlib.crc32(records),
        file=item.destination if file else "",
        size=file.size if file else 0,
        mtime_ns=file.mtime_ns if file else 0,
    )


def _manifest_of(item: Item) -> str:
    return item.destination + (MANIFEST if _only_file(item) else f"/{MANIFEST}")


def _only_file(item: Item) -> File | None:
    """Return the file that an item consists of; None where it is a tree."""
    return item.files[0] if len(item.files) == 1 and item.files[0].path == "." else None


def _agent_item(run: RunDir, local_path: str) -> Item:
    """Return the agent and its orders as an item; nobody can have made a folder of that name before."""
    files = []
    for path in (run.agent, run.fleet):
        found = path.stat()
        files.append(
            File(path=path.name, size=found.st_size, mtime_ns=found.st_mtime_ns, mode=0o600, source=path.name)
        )
    return Item(
        source=str(run.path),
        destination=f"{local_path.rstrip('/')}/aegis-agent-{os.getuid()}-{secrets.token_hex(8)}",
        directories=(Directory(".", 0o700),),
        files=tuple(files),
    )


def _nothing(weights: Sequence[Weights]) -> Delivery:
    return Delivery(Plan(items=(), wants=(), hosts=()), None, tuple(weights), Staged())


def _left_by_staging(deployment: Deployment, ground: Ground) -> list[Weights]:
    """Return what servers load where the weights are there already: a directory of its own, or what the hub's name finds."""
    places = loaded_from(wants_of(deployment, ground, gone=True))
    found = []
    for entry in deployment.models:
        source = str(expanded(entry.model_source).absolute()) if entry.model_source else ""
        place = places.get(source, "")
        is_there = bool(place) and Path(place).is_dir()
        found.append(Weights(place, local=True) if is_there else find_weights(entry, skip_staging=True))
    return found


def _loaded(deployment: Deployment, wants: Sequence[Want], plan: Plan) -> tuple[tuple[Weights, ...], Staged]:
    """Return what servers load from their nodes, and what of it they wait for."""
    needs = {
        (want.kind, want.source): need_of(item) for item, want in zip(plan.items, plan.wants, strict=True)
    }
    of_all = [need for (kind, _), need in needs.items() if kind != "weights"]
    places = loaded_from(wants)
    weights, waited = [], []
    for entry in deployment.models:
        source = source_of(entry, deployment)
        place = places.get(source or "")
        weights.append(Weights(place, local=True) if place else find_weights(entry, skip_staging=False))
        own = needs.get(("weights", source or ""))
        waited.append(() if entry.engine == "sim" else (*of_all, *([own] if own else [])))
    of_kind = {want.kind: want.loaded for want in wants}
    staged = Staged(needs=tuple(waited), environment=of_kind.get("environment"), image=of_kind.get("image"))
    return tuple(weights), staged


def _drained(waiting: queue.SimpleQueue[T]) -> list[T]:
    found = []
    while not waiting.empty():
        found.append(waiting.get())
    return found
