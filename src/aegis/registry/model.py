"""What the registry knows of a service, what agents send it, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Status = Literal["pending", "starting", "healthy", "unhealthy", "draining", "stopped", "failed"]
STATUSES: Final[tuple[str, ...]] = get_args(Status)
EARLIER_NAMES: Final = {
    "stopping": "draining",
    "unknown": "pending",
}  # clients of the first Aegis ask with these

HEALTHY_SECONDS: Final = 30.0  # default `timeout` of /services/healthy
STALE_SECONDS: Final = 30.0  # without a push: shown unhealthy
REMOVE_SECONDS: Final = 300.0  # without a push: removed
MAP_TYPE: Final = "map"  # `service_type` of a run of `aegis map`: it serves nobody
GATEWAY_TYPE: Final = "gateway"  # of a gateway: it stands before servers and is none of them
JOB_TYPE: Final = "job"  # of what a job's head tells about its job; port 0
NO_ENGINE: Final = frozenset({MAP_TYPE, GATEWAY_TYPE, JOB_TYPE})  # types that take no requests of models
RESERVED_IDS: Final = frozenset({"count", "healthy"})  # routes below /services


class Service(Struct, frozen=True, kw_only=True):
    """One service as clients see it; the keys are a contract (docs/registry.md)."""

    service_id: str
    host: str
    port: int
    service_type: str
    status: Status
    last_seen: float  # epoch seconds of the registry's clock: when the instance last answered its agent
    metadata: dict[str, Any]  # model, job, instance, rank, node, pid, restarts, reason, since, ...


class Report(Struct, frozen=True, kw_only=True):
    """One service in an agent's push."""

    service_id: Annotated[str, Meta(min_length=1)]
    host: str
    port: Annotated[int, Meta(ge=0, le=65535)]  # 0: serves no API (a further member of an instance)
    service_type: str
    status: Status
    # Seconds since the instance last answered: no clock is compared across nodes.
    age: Annotated[float, Meta(ge=0)]
    metadata: dict[str, Any] = {}


class Push(Struct, frozen=True, kw_only=True):
    """One message per node: everything that its agent runs."""

    node: Annotated[str, Meta(min_length=1)]
    services: tuple[Report, ...]
    version: int = 0  # of the orders that it follows


class Orders(Struct, frozen=True, kw_only=True):
    """What a node is to run from now on, as the head of the job says it; only its agent reads the rest."""

    node: Annotated[str, Meta(min_length=1)]
    version: Annotated[int, Meta(ge=1)]  # the highest holds
    instances: tuple[Raw, ...]


class Seen(Struct, frozen=True, kw_only=True):
    """A node that tells of itself."""

    node: str
    age: float  # seconds since its last push
    version: int  # of the orders that it follows


class Wish(Struct, frozen=True, kw_only=True):
    """An operator's wish for another number of servers of a model."""

    model: Annotated[str, Meta(min_length=1)]
    instances: Annotated[int, Meta(ge=0)]
    grace: Annotated[float, Meta(ge=0)] = 300.0  # seconds that servers have to finish what they run
    force: bool = False  # none of any model may be left


class Granted(Struct, frozen=True, kw_only=True):
    """What the head of the job makes of a wish."""

    problem: str = ""  # why not; "": it is granted
    hint: str = ""
    starting: tuple[str, ...] = ()  # instances
    leaving: tuple[str, ...] = ()


class Asked(Struct, frozen=True, kw_only=True):
    """A wish, and the answer once there is one."""

    id: str
    wish: Wish
    answer: Granted | None = None


class Acknowledgement(Struct, frozen=True, kw_only=True):
    """The answer to a push: what the agent should do."""

    generations: dict[str, int] = {}  # per instance over several nodes: the newest start of any member
    drain: tuple[str, ...] = ()  # instances to mark draining
    stop: bool = False  # the whole fleet is to end
    orders: Raw | UnsetType = UNSET  # newer ones than those that the agent follows


class Change(Struct, frozen=True, kw_only=True):
    """A service appeared, changed or went: one line of the journal."""

    time: float  # epoch seconds
    node: str
    service: Service
    removed: bool = False


class Retirement(Struct, frozen=True, kw_only=True):
    """The wish that a job hands over, and the answer to it."""

    successor: Annotated[str, Meta(min_length=1)]  # handle of the job that serves in its place
    done: bool = False  # the job has let go of what both cannot have: its endpoints file


class Watched(Struct, frozen=True, kw_only=True):
    """The answer of `/watch`: what changed after the revision that was asked for."""

    revision: int  # ask with this one next time
    services: tuple[Service, ...]  # the changed ones; all of them when `reset`
    removed: tuple[str, ...]  # ids
    reset: bool  # forget what you knew: the revision asked for is unknown or too old
    stop: bool  # the whole fleet is to end
    time: float = (
        0.0  # epoch seconds of the registry's clock, on which `last_seen` stands; 0 from earlier ones
    )
    wishes: tuple[Asked, ...] | UnsetType = UNSET  # those without an answer, for the head of the job
    retire: str = ""  # handle of the job that takes over


class Count(Struct, frozen=True):
    """The answer of `/services/count`."""

    count: int


class Failure(Struct, frozen=True):
    """The answer of every request that failed."""

    error: str
