"""Site profiles: what a node of a platform has and how its jobs are run.

Profiles are the YAML files in `aegis/data/platforms`; a user adds or overrides one with a file in
`$AEGIS_PLATFORM_DIR` or `~/.config/aegis/platforms`, or names a file in `platform:`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

Launcher = Literal["local", "mpiexec", "srun", "ssh"]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]


class Queue(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a queue accepts; a job that fits none of them would wait for ever."""

    name: str
    min_nodes: Positive = 1
    max_nodes: Positive | None = None
    max_walltime: str | None = None  # HH:MM:SS
    routes_from: str | None = None  # the queue that users name, where it is another one
    note: str = ""


class Node(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One node: devices are what the engine counts as one GPU (a GPU, a GCD or a tile)."""

    devices: Positive | None = None  # None: as many as are detected, or CPU cores are shared out
    device_kind: str = "GPU"
    device_memory_gib: float | None = None
    mask_variable: str | None = "CUDA_VISIBLE_DEVICES"
    device_cpus: tuple[str, ...] = ()  # per device a CPU list, "1-8,105-112"
    sockets: tuple[tuple[int, ...], ...] = ()  # devices by socket; empty: one socket
    devices_per_card: Positive = 1  # neighbours joined by a faster link
    cores: Positive | None = None  # CPU cores that a job may have; None: not known
    memory_gib: float | None = None
    local_path: str = "/tmp"  # noqa: S108 - the node-local file system of most sites


class Network(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How nodes reach each other and the outside."""

    host_suffix: str = ""  # appended to a node's name for the fast network
    http_proxy: str | None = None
    all_proxy: str | None = None
    no_proxy: tuple[str, ...] = ()


class Platform(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A site profile."""

    name: str
    description: str = ""
    extends: str | None = None
    hostnames: tuple[str, ...] = ()  # patterns of login and compute node names, for detection
    scheduler: Literal["local", "pbs", "slurm"] = "local"
    launcher: Launcher = "local"
    launcher_args: tuple[str, ...] = ()
    nodes: Positive = 1  # local only: how many nodes to play
    node: Node = Node()
    network: Network = Network()
    setup: tuple[str, ...] = ()  # shell lines before an engine starts: module load ...
    env: dict[str, str] = {}
    unset: tuple[str, ...] = ()
    engine_args: dict[str, tuple[str, ...]] = {}  # per engine, unless the user gives the same flag
    weights_dir: str | None = None
    defaults: dict[str, str] = {}  # deployment keys that the site presets: filesystems, walltime, queue
    required: tuple[str, ...] = ()  # deployment keys that the site's scheduler insists on
    directives: tuple[str, ...] = ()  # further scheduler directives of every job
    gpus: Literal["gres", "gpus-per-node", "ngpus", "none"] = "none"  # how the scheduler is asked for devices
    gpu_type: str | None = None  # as the scheduler spells it: l40s
    systems: tuple[str, ...] = ()  # the planner's names of its devices, the most common first: a100_40
    shared_nodes: bool = False  # jobs share nodes: only what is used is asked for
    cpus_per_device: Positive | None = None  # what to ask for on shared nodes
    memory_per_device_gib: Positive | None = None  # as above
    container: Literal["apptainer", "singularity"] = "apptainer"
    container_args: tuple[str, ...] = ()  # such as --nv, --rocm
    queues: tuple[Queue, ...] = ()
