"""What a sweep found, and the file that holds it: sweep.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from aegis.errors import ConfigError
from aegis.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "aegis-sweep-1"
FILE: Final = "sweep.json"
BROKEN: Final = 0.05  # share of failed requests beyond which a point is none

Kind = Literal["concurrency", "rate"]
Dataset = Literal["random", "sharegpt", "jsonl"]
Statistic = Literal["mean", "median", "p90", "p99"]
Figures = dict[str, float]  # by the names of `vllm bench serve`: output_throughput, mean_ttft_ms, ...


class Question(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured: points of two sweeps with the same question may be mixed."""

    model: str
    servers: tuple[str, ...]  # host:port, sorted
    kind: Kind  # of a level: requests that each server holds at once, or requests/s that each gets
    dataset: Dataset = "random"
    path: str = ""  # of the file of prompts
    input_tokens: int = 0  # of random prompts
    output_tokens: int = 0  # of an answer; 0: as the file has it, -1: each row's own
    burstiness: float = 1.0  # of arrivals; 1 is a Poisson process
    chat: bool = False
    requests: int | None = None  # that count, of a point and server; None: as many as the noise wants
    seconds: float | None = None  # of a point; None: as above
    seed: int = 0


class Targets(Struct, frozen=True, kw_only=True):
    """What a user shall not wait longer than."""

    ttft: float | None = None  # ms
    tpot: float | None = None  # ms
    statistic: Statistic = "mean"

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return self.ttft is not None or self.tpot is not None

    def met(self, figures: Figures) -> bool:
        """Tell whether figures keep to all of them."""
        return all(
            limit is None or 0 < figures.get(f"{self.statistic}_{name}_ms", 0.0) <= limit
            for name, limit in (("ttft", self.ttft), ("tpot", self.tpot))
        )


class ServerPoint(Struct, frozen=True, kw_only=True):
    """One server at one load."""

    address: str
    figures: Figures
    failed: int = 0
    error: str = ""  # what its first failed request was told


class Point(Struct, frozen=True, kw_only=True):
    """All servers together at one load; figures count what ended after the warm-up."""

    level: float
    began: str  # UTC
    figures: Figures
    noise: Figures = {}  # standard error of each figure, from slices of time; empty: too few of them
    slices: int = 0
    seconds: float  # that count
    sent: int
    failed: int
    servers: tuple[ServerPoint, ...]
    processes: int = 1  # of the load generator
    bottleneck: str | None = None  # why the figures may be the generator's
    predicted: Figures = {}  # what the plan says of the same load

    @property
    def broken(self) -> bool:
        """Whether too many requests failed, or a server answered none."""
        lost = any(not server.figures["completed"] for server in self.servers)
        return lost or self.failed > BROKEN * self.sent

    @property
    def tokens_per_s_user(self) -> float:
        """How fast one user's tokens come."""
        tpot = self.figures["mean_tpot_ms"]
        return 1000 / tpot if tpot else 0.0

    @property
    def ratios(self) -> Figures:
        """Predicted / measured, for every figure that is predicted."""
        return {
            name: value / self.figures[name]
            for name, value in self.predicted.items()
            if self.figures.get(name, 0.0) > 0 and value > 0
        }


class Planned(Struct, frozen=True, kw_only=True):
    """The configuration that predictions are for."""

    file: str
    model: str
    system: str
    backend: str
    version: str
    split: str
    calibrated: bool = False  # by factors of earlier sweeps
    notes: tuple[str, ...] = ()


class Sweep(Struct, frozen=True, kw_only=True):
    """Points by their level, and what is needed to read them."""

    format: Literal["aegis-sweep-1"] = FORMAT
    question: Question
    machine: dict[str, str] = {}  # where the load came from
    gpus: int = 0  # of one server; 0: not known
    targets: Targets = Targets()
    plan: Planned | None = None
    end: str = ""  # why there are no more points
    points: tuple[Point, ...] = ()

    def with_point(self, point: Point) -> Sweep:
        """Return the sweep with a point in the place of one of the same level."""
        points = {each.level: each for each in self.points} | {point.level: point}
        return replace(self, points=tuple(points[level] for level in sorted(points)))

    @property
    def best(self) -> Point | None:
        """The SLA point: the highest throughput that keeps to the targets; without targets there is none."""
        meeting = [
            each
            for each in self.points
            if self.targets and not each.broken and self.targets.met(each.figures)
        ]
        return max(meeting, key=lambda each: each.figures["output_throughput"], default=None)

    @property
    def all_gpus(self) -> int:
        """GPUs of all servers; 0: not known."""
        return self.gpus * len(self.question.servers)


def read(file: Path) -> Sweep:
    """Read a sweep.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Sweep)
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is no sweep: {error}") from None


def write(sweep: Sweep, file: Path) -> None:
    """Write a sweep.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(file, msgspec.json.format(msgspec.json.encode(sweep), indent=1) + b"\n")


def kept(file: Path, question: Question) -> tuple[Point, ...]:
    """Return the points of an earlier run of the same question; those that failed are left out.

    Raises:
        ConfigError: the file holds another question.
    """
    if not file.exists():
        return ()
    before = read(file)
    then, now = asdict(before.question), asdict(question)
    changed = [f"{name} was {then[name]!r}, is {now[name]!r}" for name in now if then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"{str(file)!r} holds another sweep: {'; '.join(changed)}",
            hint="name another folder with --output",
        )
    return tuple(point for point in before.points if not point.broken)
