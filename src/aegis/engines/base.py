"""What every engine tells: its command, its environment, how to see that it lives, and what its last words mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.placement import Instance, Member
    from aegis.spec.deployment import ModelEntry
    from aegis.spec.platform import Platform

# Filled in by the agent, which alone can see which ports are free (fleet/agent/engine.py has the same two). A NUL can
# stand in no argument and no variable, so no word of a user is taken for one.
PORT = "\0port\0"
INTERNAL_PORT = "\0internal_port\0"
MASTER_PORT_OFFSET = 60  # within an instance's internal ports: engines take them from the first on


class Start(Struct, frozen=True, kw_only=True):
    """One member of one instance, about to be started."""

    entry: ModelEntry
    instance: Instance
    member: Member
    platform: Platform
    weights: str  # what the engine loads: a directory, or a Hugging Face id
    weights_are_local: bool
    address: str  # by which other nodes reach this one
    bind: str  # address to listen on
    master: str  # address of the node of rank 0
    executable: str  # the engine's program
    python: str  # the Python that holds aegis (the sim engine), or the engine

    @property
    def members(self) -> int:
        """Nodes that the instance spans."""
        return len(self.instance.members)

    @property
    def master_port(self) -> str:
        """Port on which the members find each other."""
        return str(self.instance.members[0].internal_port + MASTER_PORT_OFFSET)

    @property
    def is_head(self) -> bool:
        """Rank 0 serves the API."""
        return self.member.rank == 0


class Health(Struct, frozen=True):
    """How to see that an instance lives: a route, and a one-token request."""

    path: str
    canary_path: str  # "": no token can be asked for
    canary: dict[str, Any]


class Cause(Struct, frozen=True, array_like=True):
    """What a line in an engine's output means; `{}` in `meaning` is the pattern's first group."""

    pattern: str
    meaning: str
    permanent: bool  # another start would fail the same way


class Engine(Protocol):
    """The seam between Aegis and an inference engine. Pure: nothing is started or read here."""

    name: str
    program: str  # the executable that a virtual environment of the engine has
    metrics: Mapping[
        str, tuple[str, ...]
    ]  # our name of a quantity -> the engine's names of it, newest first (METRICS)
    causes: tuple[Cause, ...]
    reserved: Mapping[str, str | None]  # flags that the deployment's keys set -> the key

    def command(self, start: Start) -> tuple[str, ...]:
        """Return the command line."""
        ...

    def environment(self, start: Start) -> dict[str, str]:
        """Return the variables that the engine needs, apart from the platform's."""
        ...

    def health(self, entry: ModelEntry) -> Health:
        """Return how to see that an instance lives."""
        ...


# The quantities that an engine may tell. An engine's name of one may select values of one label, as `name{label=a|b}`.
METRICS = (
    *("running", "waiting", "swapped"),  # requests now
    *("kv_cache", "cpu_cache", "prefix_hit_rate"),  # shares of 1
    *(
        "prompt_tokens",
        "generation_tokens",
        "prefix_hits",
        "prefix_queries",
        "succeeded",
        "aborted",
    ),  # counters
    *("prompt_progress", "generation_progress"),  # counters that move while a request is worked on
    *("first_token", "token_to_token", "whole_request", "queue_time"),  # histograms, seconds
)


def load_names(metrics: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return what an agent reads to see how busy an instance is, and that its tokens move."""
    told = ("running", "waiting", "kv_cache", "succeeded", "first_token", "token_to_token")
    names = {name: metrics[name] for name in told}
    return names | {
        "prompt_tokens": metrics["prompt_progress"],
        "generation_tokens": metrics["generation_progress"],
    }


def option(flag: str, value: str) -> tuple[str, ...]:
    """Return a flag with its value, in one word where the value would be taken for a flag itself."""
    return (f"{flag}={value}",) if value.startswith("-") else (flag, value)


def completion_health(entry: ModelEntry) -> Health:
    """Return the health of an OpenAI-compatible server: `/health`, and one greedy token."""
    canary = {"model": entry.name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    return Health("/health", "/v1/completions", canary)


def merge_args(defaults: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the platform's arguments without those that the user gives too, then the user's.

    A flag and the values after it are dropped together; `--no-x` counts as `--x`.
    """
    names = {_flag_name(arg) for arg in given if arg.startswith("--")}
    kept: list[str] = []
    keeping = True
    for arg in defaults:
        if arg.startswith("--"):
            keeping = _flag_name(arg) not in names
        if keeping:
            kept.append(arg)
    return (*kept, *given)


def _flag_name(arg: str) -> str:
    name = arg.partition("=")[0].removeprefix("--").replace("_", "-")
    return name.removeprefix("no-")


# What any engine built on PyTorch and the Hugging Face libraries says before it dies (recorded in tests/fixtures/vllm).
COMMON_CAUSES = (
    Cause(r"Address already in use|EADDRINUSE", "port is taken: address already in use", permanent=False),
    Cause(
        r"GatedRepoError|gated repo|Access to model .{1,200} is restricted|401 Client Error",
        "gated model: set HF_TOKEN to a token that was granted access to it",
        permanent=True,
    ),
    Cause(
        r"LocalEntryNotFoundError|outgoing traffic has been disabled",
        "model not found: it is not on this node, and the hub is switched off; set `model_source`",
        permanent=True,
    ),
    Cause(
        r"Repo id must [^\n]{0,200}?: '([^'\n]{0,200})|RepositoryNotFoundError"
        r"|Can't load the configuration of '([^'\n]{0,200})'"
        r"|Invalid repository ID or local directory specified: '([^'\n]{0,200})'",
        "model not found: {}",
        permanent=True,
    ),
    Cause(
        r"(To serve at least one request .{0,200}KV cache is needed, which is larger than.{0,160}?GiB\)"
        r"|No available memory for the cache blocks)",
        "out of memory: {}; lower --max-model-len or raise the tensor parallel size",
        permanent=True,
    ),
    Cause(
        r"(?:OutOfMemoryError|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)[: )]{0,9}(.{0,160})"
        r"|((?:CUDA|HIP|XPU) out of memory.{0,120})|(Free memory on device .{0,160})|(Cannot allocate memory)",
        "out of memory: {}",
        permanent=False,
    ),
    Cause(r"(User-specified max_model_len .{1,160}?)\s*\(", "{}; lower --max-model-len", permanent=True),
    Cause(r"error: (unrecognized arguments: .*|argument .*)", "engine arguments: {}", permanent=True),
    Cause(r"No space left on device", "disk full: no space left on device", permanent=False),
    Cause(r"aegis: cannot start: ([^\n]*)", "{}", permanent=True),  # from our own lines before the engine
    Cause(
        r"aegis: cannot run ([^\n]*)",
        "engine not found: {}; set `venv:`, `image:`, `modules:` or the platform's `setup:`",
        permanent=True,
    ),
    Cause(
        r"FATAL: +\"([^\"\n]+)\": executable file not found",
        "engine not found: {} is not in the image",
        permanent=True,
    ),
    Cause(
        r"FATAL: +could not open image ([^\n]*?): failed to", "the image cannot be opened: {}", permanent=True
    ),
    Cause(
        r"FATAL: .{1,400}mount source ([^\n]{1,400}?) doesn't exist",
        "not on this node, so not to be bound into the container: {}",
        permanent=True,
    ),
    Cause(
        r"(No CUDA GPUs are available|Failed to infer device type|no accelerator .{0,80})",
        "no device is visible: {}",
        permanent=True,
    ),
    Cause(r"ModuleNotFoundError: (No module named [^\n]*)", "engine incomplete: {}", permanent=True),
    Cause(r"(Unsupported CPU attention configuration[^'\n]{0,160})", "{}", permanent=True),
    Cause(r"(?:Value error|ValueError)[,:] ([^\n\[]{1,240})", "{}", permanent=True),
    Cause(r"Worker failed with error '([^'\n]{1,240})", "{}", permanent=False),
    Cause(r"FATAL: +(container creation failed: [^\n]{1,240})", "{}", permanent=False),
)
