"""One worker of one split: how long its steps take and what its GPUs hold, for arrays of configurations at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from aegis.planner.estimate import queueing
from aegis.planner.estimate.host import Host
from aegis.planner.estimate.memory import Memory, Place, Usage, fits, kv_bytes, memory, shortage
from aegis.planner.estimate.steps import Steps, distinct
from aegis.planner.operations import Fallback, NoData
from aegis.planner.perf.evaluate import total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike

    from aegis.planner.answer import Role
    from aegis.planner.estimate.memory import Bools
    from aegis.planner.estimate.steps import Term
    from aegis.planner.estimator import Estimator
    from aegis.planner.models.graph import Graph
    from aegis.planner.operations import Floats, Ints, Operation, Performance, Query
    from aegis.planner.problem import Backend, Load, Mtp, Parallel, Quantization, Tuning

# TensorRT-LLM sizes its buffers for this many tokens of a step, whatever is scheduled.
TRTLLM_MAX_TOKENS = 8192


class Left(NamedTuple):
    """What measured deployments say that predictions leave over; one element a point."""

    factor: Floats  # on the prediction
    spread: Floats  # standard deviation of its logarithm
    measured: int  # deployments of this model, system and engine


class Residual(Protocol):
    """What is left over of a worker's predictions."""

    def aggregated(self, worker: Worker, load: Load, batch: Ints) -> tuple[Left, Left]:
        """Return what is left over of TTFT and TPOT at so many requests of an attention group."""

    def decoding(self, worker: Worker, load: Load, batch: Ints) -> Left:
        """Return what is left over of the TPOT of a decode worker with so many requests of an attention group."""

    def prefilling(self, worker: Worker, load: Load, users: Floats) -> Left:
        """Return what is left over of the TTFT behind a prefill worker, for users of the whole deployment."""


class Worker:
    """One worker: numbers or arrays of them in, arrays of ms or GiB out."""

    def __init__(
        self,
        *,
        graph: Graph,
        split: Parallel,
        quantization: Quantization,
        performance: Performance,
        backend: Backend,
        version: str,
        estimator: Estimator,
        mtp: Mtp,
        host: Host = Host(),  # noqa: B008 - frozen
        residual: Residual | None = None,
    ) -> None:
        self.graph = graph
        self.split = split
        self.quantization = quantization
        self.performance = performance
        self.backend: Backend = backend
        self.version = version
        self.estimator = estimator
        self.mtp = mtp
        self.host = host
        self.residual = residual
        self._steps = Steps(graph, estimator, mtp)
        self.place = Place(performance.system, backend, version, estimator.rules == "guide")

    def changed(
        self,
        *,
        performance: Performance | None = None,
        host: Host | None = None,
        residual: Residual | None = None,
    ) -> Worker:
        """Return the same worker with other figures; what is not given stays."""
        return Worker(
            graph=self.graph,
            split=self.split,
            quantization=self.quantization,
            performance=performance or self.performance,
            backend=self.backend,
            version=self.version,
            estimator=self.estimator,
            mtp=self.mtp,
            host=host or self.host,
            residual=residual or self.residual,
        )

    @property
    def label(self) -> str:
        """Which worker this is, in words: system, backend and the splits that are more than one."""
        split = self.split
        sizes = {name: getattr(split, name) for name in ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")}
        named = " ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "tp 1"
        return f"{self.performance.system.name} {self.backend} {named}"

    @property
    def progress(self) -> float:
        """Tokens that one decode step adds to a sequence; the guide's rules count this in the step's time instead."""
        return 1.0 if self.place.guide else 1.0 + self.mtp.accepted

    def prefill(self, batch: ArrayLike, isl: ArrayLike, prefix: ArrayLike = 0) -> Floats:
        """Return ms of one step that reads `batch` whole prompts, of which `prefix` tokens are cached already.

        Raises:
            NoData: the tables cannot answer for this split.
        """
        return self._time(self._steps.prefill(batch, isl, prefix)) + self.host.step

    def decode(self, batch: ArrayLike, length: ArrayLike) -> Floats:
        """Return ms of one step of `batch` sequences that are `length` tokens long: `progress` tokens for each.

        Raises:
            NoData: the tables cannot answer for this split.
        """
        return self._time(self._steps.decode(batch, length)) + self._hosting(batch)

    def mixed(self, context_tokens: ArrayLike, generation_requests: ArrayLike, load: Load) -> Floats:
        """Return ms of one step with a chunk of so many prompt tokens, and a token of each generating request.

        Raises:
            NoData: the tables cannot answer for this split.
        """
        return self._time(self._steps.mixed(context_tokens, generation_requests, load)) + self._hosting(
            generation_requests
        )

    def generation_total(self, batch: ArrayLike, isl: int, osl: int, stride: int = 32) -> Floats:
        """Return ms in which `batch` sequences get all their tokens after the first one, in the shape of `batch`.

        The time of a step is taken at every `stride`-th token, as all rules do; it grows slowly.

        Raises:
            NoData: the tables cannot answer for this split.
        """
        after = np.arange(0, max(osl - 1, 0), stride)
        if not after.size:
            return np.zeros(np.shape(batch))
        steps = np.minimum(stride, osl - 1 - after)
        times = self.decode(np.asarray(batch)[..., None], isl + after + 1)
        whole: Floats = (times * steps).sum(axis=-1) / self.progress
        return whole

    def breakdown(
        self, step: Literal["prefill", "decode", "mixed"], load: Load, *, batch: int, context_tokens: int = 0
    ) -> dict[str, float]:
        """Return ms of one step by operation, in the order of the model.

        `decode` takes the mean length of a sequence; of a `mixed` step `batch` counts the generating requests.

        Raises:
            NoData: the tables cannot answer for this split.
        """
        if step == "prefill":
            terms = self._steps.prefill(batch, load.isl, load.prefix)
        elif step == "decode":
            terms = self._steps.decode(batch, load.isl + load.osl // 2 + 1)
        else:
            terms = self._steps.mixed(context_tokens, batch, load)
        parts: dict[str, float] = {}
        for term in terms:
            for operation in self._chosen(term.operations, term.at):
                time = self._at((operation,), term.at) * term.factor
                parts[operation.name] = parts.get(operation.name, 0.0) + float(time)
        parts["host"] = float(self._hosting(0 if step == "prefill" else batch))
        return parts

    def memory(
        self, load: Load, *, role: Role, batch: ArrayLike, context_tokens: ArrayLike | None = None
    ) -> Memory:
        """Return GiB that one GPU holds; `context_tokens` of a mixed step for role `agg`."""
        usage = self._usage(
            load, role, np.asarray(batch), np.asarray(load.isl if context_tokens is None else context_tokens)
        )
        return memory(self.graph, self.split, self.place, usage, self.mtp.drafted)

    def room(
        self,
        load: Load,
        tuning: Tuning,
        *,
        role: Role,
        batch: ArrayLike,
        context_tokens: ArrayLike | None = None,
    ) -> tuple[Floats, Bools]:
        """Return GiB that one GPU holds, and where that is possible."""
        used = self.memory(load, role=role, batch=batch, context_tokens=context_tokens)
        fraction = tuning.free_memory_fraction
        return used.total, fits(used, self.split, self.place, fraction=fraction, aggregated=role == "agg")

    def shortage(self, load: Load, *, role: Role, batch: int = 1) -> str:
        """Return in words what one GPU holds with so many requests, against what it has."""
        return shortage(self.memory(load, role=role, batch=batch), self.place)

    def kv_transfer(self, load: Load) -> float:
        """Return ms that the KV cache of one prompt takes to another worker; all GPUs of a worker send at once."""
        share = float(kv_bytes(self.graph, load.isl)) / self.split.pp
        system = self.performance.system
        return queueing.transfer(share, system.inter_node_bandwidth, system.p2p_latency)

    def _usage(self, load: Load, role: Role, batch: Ints, chunk: Ints) -> Usage:
        length = load.isl + load.osl
        if "max-seq-len-everywhere" in self.estimator.corrections:
            length = load.max_seq_len or length
        if role == "prefill":
            drafting = load.isl * batch if self.place.guide else 0
            return Usage(batch, load.isl + 1, batch * (load.isl - load.prefix), drafting)
        if role == "decode":
            return Usage(batch, length, batch, batch)
        if self.backend == "trtllm" and not self.place.guide:
            reserved = load.max_seq_len or length
            return Usage(batch, reserved, TRTLLM_MAX_TOKENS, TRTLLM_MAX_TOKENS)
        generating = np.where(batch > 1, batch - -(-chunk // load.isl), 0)
        tokens = generating + chunk
        return Usage(batch, length, tokens, tokens if self.place.guide else generating)

    def _hosting(self, requests: ArrayLike) -> Floats:
        """Return ms of the host in a step of so many running requests."""
        hosting: Floats = self.host.step + self.host.request * np.asarray(requests, dtype=np.float64)
        return hosting

    def _time(self, terms: Sequence[Term]) -> Floats:
        """Return the sum of the terms, each different point asked once."""
        time: Floats = np.zeros(())
        for term in terms:
            time = time + self._at(term.operations, term.at) * term.factor
        return time

    def _at(self, operations: Sequence[Operation], at: Query) -> Floats:
        shape = np.broadcast_shapes(*(column.shape for column in at))
        if not operations or 0 in shape:
            return np.zeros(shape)
        points, index = distinct(at)
        times: Floats = total(operations, self.performance, points)[index]
        return times

    def _chosen(self, operations: Sequence[Operation], at: Query) -> Iterator[Operation]:
        """Yield operations as they are priced: of a fallback, the ones that the tables have."""
        for operation in operations:
            if not isinstance(operation, Fallback):
                yield operation
                continue
            try:
                self._at(operation.primary, at)
            except NoData:
                yield from self._chosen(operation.otherwise, at)
            else:
                yield from self._chosen(operation.primary, at)
