"""What one job is asked to serve.

These two structs are the single source of the deployment file's keys, the common command-line flags, the
`AEGIS_*` environment variables, the JSON Schema and the reference page of the documentation.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
EngineName = Literal["vllm", "sglang", "sim"]
SchedulerName = Literal["local", "pbs", "slurm"]
Executor = Literal["mp", "ray"]
StagerName = Literal["mpi", "tcp", "copy", "none"]

REGISTRY_PORT = 8471
GATEWAY_PORT = 8080
PORT_START = 8000
ENDPOINTS = "aegis_endpoints.txt"


class ModelEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model of a deployment."""

    model: Annotated[Text, Meta(description="Hugging Face id or path of the model")]
    served_model_name: Annotated[
        Text | None, Meta(description="the name that clients use (default: the value of `model`)")
    ] = None
    engine: Annotated[EngineName, Meta(description="inference engine")] = "vllm"
    instances: Annotated[Count, Meta(description="number of servers")] = 1
    tensor_parallel_size: Annotated[Count, Meta(description="devices over which each layer is split")] = 1
    pipeline_parallel_size: Annotated[Count, Meta(description="groups over which the layers are split")] = 1
    data_parallel_size: Annotated[Count, Meta(description="replicas inside one server")] = 1
    distributed_executor: Annotated[
        Executor,
        Meta(description="how a server over several nodes finds its parts: the engine's own launch, or Ray"),
    ] = "mp"
    model_source: Annotated[
        Text | None,
        Meta(description="directory that holds the weights (a model or a Hugging Face cache entry)"),
    ] = None
    download_weights: Annotated[
        bool, Meta(description="download the weights from the Hugging Face Hub before staging")
    ] = False
    extra_vllm_args: Annotated[tuple[str, ...], Meta(description="further arguments of `vllm serve`")] = ()
    extra_sglang_args: Annotated[
        tuple[str, ...], Meta(description="further arguments of `sglang.launch_server`")
    ] = ()
    extra_sim_args: Annotated[tuple[str, ...], Meta(description="further arguments of `aegis sim`")] = ()
    env: Annotated[dict[str, str], Meta(description="environment variables of the server")] = {}

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.served_model_name or self.model

    @property
    def devices(self) -> int:
        """Devices that one instance takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def extra_args(self) -> tuple[str, ...]:
        """Further arguments of the chosen engine."""
        return {
            "vllm": self.extra_vllm_args,
            "sglang": self.extra_sglang_args,
            "sim": self.extra_sim_args,
        }[self.engine]


class Deployment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that one job is asked to serve."""

    models: Annotated[tuple[ModelEntry, ...], Meta(min_length=1, description="the models")]
    name: Annotated[Text | None, Meta(description="name of the job (default: the first model's)")] = None
    platform: Annotated[
        Text, Meta(description="site profile: a name of `aegis platform list` or a file (default: detected)")
    ] = "auto"
    scheduler: Annotated[
        SchedulerName | None, Meta(description="where jobs go (default: the platform's)")
    ] = None
    walltime: Annotated[Text | None, Meta(description="time limit of the job, HH:MM:SS")] = None
    queue: Annotated[Text | None, Meta(description="queue or partition")] = None
    account: Annotated[Text | None, Meta(description="project that pays")] = None
    qos: Annotated[Text | None, Meta(description="quality of service (Slurm)")] = None
    nodes: Annotated[
        Count | None, Meta(description="nodes of the job (default: as many as the servers need)")
    ] = None
    gpus_per_node: Annotated[
        Count | None, Meta(description="devices to use on each node (default: those of the platform)")
    ] = None
    resource_type: Annotated[
        Text | None, Meta(description="type of device to ask the scheduler for, such as a100")
    ] = None
    cpus_per_node: Annotated[Count | None, Meta(description="CPU cores to ask for on each node")] = None
    mem_per_node: Annotated[Text | None, Meta(description="memory to ask for on each node, such as 64G")] = (
        None
    )
    constraint: Annotated[Text | None, Meta(description="features that the nodes must have (Slurm)")] = None
    nodelist: Annotated[Text | None, Meta(description="nodes to run on")] = None
    exclude: Annotated[Text | None, Meta(description="nodes not to run on (Slurm)")] = None
    directives: Annotated[
        tuple[str, ...], Meta(description="further directives of the scheduler, such as --mail-type=END")
    ] = ()
    filesystems: Annotated[Text | None, Meta(description="PBS filesystems directive, such as flare:home")] = (
        None
    )
    port_start: Annotated[
        Port | None, Meta(description="first port on each node, one more for each further server there")
    ] = None
    registry_port: Annotated[Port | None, Meta(description="port of the registry")] = None
    hf_home: Annotated[Text, Meta(description="Hugging Face home on each node")] = "/tmp/hf_home"  # noqa: S108 - the contract's default
    conda_env: Annotated[
        Text | None, Meta(description="conda-pack tarball to distribute and activate on all nodes")
    ] = None
    venv: Annotated[Text | None, Meta(description="virtual environment that holds the engine")] = None
    modules: Annotated[tuple[str, ...], Meta(description="modules to load before the engine starts")] = ()
    image: Annotated[Text | None, Meta(description="apptainer image that holds the engine")] = None
    bind: Annotated[
        tuple[str, ...], Meta(description="paths to bind into the container, each SOURCE[:TARGET[:OPTIONS]]")
    ] = ()
    work_dir: Annotated[
        Text | None, Meta(description="working directory of the job (default: the current one)")
    ] = None
    aegis_env: Annotated[
        Text | None, Meta(description="environment that holds aegis on the compute nodes")
    ] = None
    startup_timeout: Annotated[Count, Meta(description="seconds a server may take to become healthy")] = 600
    max_restarts: Annotated[
        int, Meta(ge=0, description="restarts of a server that keeps failing before it is given up")
    ] = 3
    endpoints_file: Annotated[
        Text,
        Meta(
            description="file that lists the healthy servers; {job} and {run_dir} stand for those of the job "
            "(default of a model of the catalog: in its run directory)"
        ),
    ] = ENDPOINTS
    log_dir: Annotated[Text, Meta(description="root of the run directories")] = "~/.aegis-logs"
    skip_staging: Annotated[
        bool, Meta(description="the weights are in hf_home already: neither stage them nor read model_source")
    ] = False
    stager: Annotated[
        StagerName | None,
        Meta(
            description="what brings weights, environment and image to the nodes (default: the fastest that works "
            "there); none: servers read the sources"
        ),
    ] = None
    prebuilt: Annotated[
        Text | None, Meta(description="the MPI program of staging, for sites where it cannot be compiled")
    ] = None
    map: Annotated[
        Text | None,
        Meta(
            description="arguments of `aegis map`, as in a shell: the job starts its servers, does this work, and ends with it"
        ),
    ] = None
    gateways: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["per-node"] | None,
        Meta(
            description="gateways to start, each one URL for all servers: a number, at most one a node, or per-node"
        ),
    ] = None
    gateway_port: Annotated[
        Port | None, Meta(description="port of the gateways (default: 8080, or another that is free)")
    ] = None
    gateway_keys: Annotated[
        Text | None, Meta(description="file with the keys that the gateways ask for (`aegis gateway keys`)")
    ] = None
    service: Annotated[
        Text | None,
        Meta(description="name that this job's servers are found by, shared by jobs that stand in for it"),
    ] = None
    keep_alive: Annotated[
        bool, Meta(description="submit a successor before the walltime ends, and hand over when it serves")
    ] = False
    until: Annotated[
        Text | None,
        Meta(
            description="when `keep_alive` ends: a date and time (2026-12-31T18:00), or a duration (3-00:00:00)"
        ),
    ] = None
    overlap: Annotated[
        Text | None,
        Meta(
            description="how long before the end of its walltime the successor may start, HH:MM:SS (default: 2 hours, "
            "or half of the walltime)"
        ),
    ] = None
    spare_nodes: Annotated[
        int,
        Meta(
            ge=0,
            description="nodes to ask for beyond those that the servers need: one takes over when a node is lost",
        ),
    ] = 0
    wait: Annotated[bool, Meta(description="submit: return when the servers are healthy")] = False
