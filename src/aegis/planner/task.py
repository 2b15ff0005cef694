"""One question: as it is asked, with gaps, and as it is answered, with every gap filled (planner/defaults.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.planner.estimator import CORRECTED, Estimator
from aegis.planner.problem import Load, Mtp, Replica, Targets, Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.calibrate import Calibrations
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend, DatabaseMode, ServingMode, WorkerSearch

TOP_N = 5  # configurations that are shown of each experiment, as in the guide
# The guide's defaults of a question. ttft and tpot in ms.
LOAD = Load(isl=4000, osl=1000)
TARGETS = Targets(ttft=1000.0, tpot=20.0)


class Lists(Struct, frozen=True, kw_only=True):
    """Sizes that are tried, by dimension of a split; None: the defaults."""

    gpus: tuple[int, ...] | None = None  # of one worker
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    moe_tp: tuple[int, ...] | None = None
    moe_ep: tuple[int, ...] | None = None
    cp: tuple[int, ...] | None = None


class Formats(Struct, frozen=True, kw_only=True):
    """Number formats that are asked for; None: the model's own, or the system's default."""

    gemm: str | None = None
    moe: str | None = None
    kv_cache: str | None = None
    fmha: str | None = None
    comm: str | None = None


class WorkerQuestion(Struct, frozen=True, kw_only=True):
    """What is asked about one kind of workers."""

    model: str
    system: str
    backends: tuple[Backend, ...] = ("trtllm",)  # () is any that has tables
    version: str | None = None
    node_gpus: int | None = None  # of one node, where a platform has other nodes than the system's own
    formats: Formats = Formats()
    lists: Lists = Lists()


class Question(Struct, frozen=True, kw_only=True):
    """An experiment as it is asked: by flags, in Python or in a file."""

    name: str
    mode: ServingMode
    total_gpus: int
    workers: tuple[WorkerQuestion, ...]  # agg: one kind; disagg: prefill, decode
    load: Load = LOAD
    targets: Targets = TARGETS
    replica: Replica | None = None
    tuning: Tuning = Tuning()
    mtp: Mtp | None = None  # None: the rules' default for the model
    wide_ep: bool = False
    complete: bool = False  # `mode: replace`: lists that are not given are [1], not the defaults
    estimator: Estimator = CORRECTED
    database_mode: DatabaseMode = "SILICON"
    calibration: Calibrations = ()
    top_n: int = TOP_N
    notes: tuple[str, ...] = ()
    where: Callable[[str], str] = str  # key -> "file:line", a flag, or the key itself

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest sequence."""
        return self.load.max_seq_len or self.load.isl + self.load.osl


class Experiment(Struct, frozen=True, kw_only=True):
    """A question without gaps. Each search has the workers of one backend: one kind (agg), or prefill and decode."""

    name: str
    mode: ServingMode
    model_name: str  # as it was asked for
    model: ModelShape
    total_gpus: int
    load: Load
    targets: Targets
    searches: tuple[tuple[WorkerSearch, ...], ...]
    replica: Replica = Replica()
    tuning: Tuning = Tuning()
    mtp: Mtp = Mtp()
    wide_ep: bool = False
    estimator: Estimator = CORRECTED
    database_mode: DatabaseMode = "SILICON"
    calibration: Calibrations = ()  # factors from measured sweeps
    top_n: int = TOP_N
    notes: tuple[str, ...] = ()
