"""What `GET /overview` answers: everything that is shown of a fleet at a moment.

Times are epoch seconds of the registry's clock. None stands for what nobody has told.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Quantiles(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Latencies of one interval in seconds; as fine as the engine's buckets."""

    count: float  # observations
    p50: float
    p90: float
    p99: float


class Load(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What servers do now; rates are those of the last interval that was told."""

    running: float | None = None  # requests
    waiting: float | None = None
    kv_cache: float | None = None  # share of 1
    prompt_rate: float | None = None  # tokens/s
    generation_rate: float | None = None
    request_rate: float | None = None  # requests/s that ended well


class Point(Load, frozen=True, kw_only=True, omit_defaults=True):
    """What the servers of a model did together, at one time of its history."""

    time: float
    healthy: int = 0
    first_token: Quantiles | None = None  # time to the first token (TTFT)
    inter_token: Quantiles | None = None  # time from token to token (ITL)


class Job(Struct, frozen=True, kw_only=True):
    """One job, as its head tells of it."""

    handle: str
    name: str = ""
    service: str | None = None  # that it is found by, with those that stand in for it
    state: str = "UNKNOWN"  # as in its manifest: LAUNCHING, READY
    reason: str = ""
    started: float | None = None
    walltime_end: float | None = None  # None: it has no limit
    nodes: int = 0
    gateways: tuple[str, ...] = ()  # host:port
    predecessor: str | None = None  # handle of the job that it takes over from
    successor: str | None = None
    seen: float = 0.0  # when its head last told


class Node(Struct, frozen=True, kw_only=True):
    """One node, as its agent tells of it."""

    name: str
    seen: float  # when its agent last pushed
    job: str = ""  # handle
    instances: tuple[str, ...] = ()  # ids, in the order of the agent


class Instance(Struct, frozen=True, kw_only=True):
    """One service of an agent: an instance's server, a further member of an instance, or a gateway."""

    id: str
    model: str = ""
    job: str = ""  # handle
    node: str = ""
    host: str = ""  # address
    port: int = 0  # 0: it serves no API
    type: str = ""  # vllm, sglang, sim, ..., vllm-member, gateway
    rank: int = 0  # above 0: a further member, which counts for no instance of its own
    status: str = "pending"
    since: float | None = None  # when it got its status
    seen: float = 0.0  # when it last answered its agent
    restarts: int = 0
    reason: str = ""
    devices: tuple[int, ...] = ()
    load: Load = Load()


class Model(Struct, frozen=True, kw_only=True):
    """All instances of one model together."""

    name: str
    instances: int = 0
    statuses: dict[str, int] = {}  # instances by status
    now: Point
    # Oldest first: a point every 5 s of the last half hour, one a minute before (6 h); bounded.
    history: tuple[Point, ...] = ()


class MapRun(Struct, frozen=True, kw_only=True):
    """One run of `aegis map`."""

    id: str
    text: str = ""  # how far it is, in words
    host: str = ""
    done: int = 0
    total: int = 0
    failed: int = 0
    rate: float | None = None  # rows/s
    eta: float | None = None  # seconds
    seen: float = 0.0


class Error(Struct, frozen=True, kw_only=True):
    """Something that went wrong with an instance."""

    number: int  # rises by one with every error of this registry
    time: float
    instance: str  # id
    model: str = ""
    status: str = ""  # that it got with it: unhealthy, failed, starting
    text: str
    tail: tuple[str, ...] = ()  # the last lines that it wrote


class Overview(Struct, frozen=True, kw_only=True):
    """A fleet at a moment."""

    time: float
    version: str  # of Aegis
    jobs: tuple[Job, ...] = ()
    models: tuple[Model, ...] = ()
    instances: tuple[Instance, ...] = ()
    nodes: tuple[Node, ...] = ()
    maps: tuple[MapRun, ...] = ()
    errors: tuple[Error, ...] = ()  # the last 50, oldest first
    problems: tuple[str, ...] = ()  # why something cannot be shown, such as a registry that does not answer


class Change(Struct, frozen=True, kw_only=True):
    """What changed since the last word of `/ui/events`.

    Collections are by key (handle, name, id); an object has only the fields that changed, or is null when it is gone.
    A model's `history` is not among its fields: `points` has what is to be added to it.
    """

    time: float
    jobs: dict[str, dict[str, Any] | None] = {}
    models: dict[str, dict[str, Any] | None] = {}
    instances: dict[str, dict[str, Any] | None] = {}
    nodes: dict[str, dict[str, Any] | None] = {}
    maps: dict[str, dict[str, Any] | None] = {}
    points: dict[str, list[Point]] = {}  # by model
    errors: list[Error] = []  # new ones
    problems: tuple[str, ...] | None = None  # None: as before
