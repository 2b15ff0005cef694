"""The steps of an engine, as sums over the operations of its model (planner-model, section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.operations import (
    ContextAttention,
    ContextMla,
    Fallback,
    GenerationAttention,
    GenerationMla,
    Measured,
    MlaModule,
    Overlap,
    Query,
    query,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from aegis.planner.estimator import Estimator
    from aegis.planner.models.graph import Graph
    from aegis.planner.operations import Floats, Ints, Operation
    from aegis.planner.problem import Load, Mtp

# What depends on how long a sequence is, and not only on the number of tokens.
SEQUENCE = (ContextAttention, GenerationAttention, ContextMla, GenerationMla, MlaModule, Measured)
# The key of `_distinct` must fit 64 bits.
_LARGEST_KEY = 2**62


class Term(NamedTuple):
    """Operations that are asked at one query; their sum counts `factor` times."""

    operations: tuple[Operation, ...]
    at: Query
    factor: Floats | float = 1.0


class Steps:
    """Steps of one worker: what is asked of which operation. Numbers may be arrays that broadcast."""

    def __init__(self, graph: Graph, estimator: Estimator, mtp: Mtp) -> None:
        self.graph = graph
        self.guide = estimator.rules == "guide"
        self.drafted = mtp.drafted
        self._in_parts = "continuous-batching" in estimator.corrections
        apart = "mla-in-mixed-steps" in estimator.corrections
        chunks = _bound_to_sequences if apart else _named("context_attention")
        decodes = _bound_to_sequences if apart else _named("generation_attention")
        self._whole, self._chunks = _part(graph.context, chunks)
        self._decodes = _part(graph.generation, decodes)[1]
        self._tokens, self._sequences = _part(graph.generation, _bound_to_sequences)

    def prefill(self, batch: ArrayLike, isl: ArrayLike, prefix: ArrayLike = 0) -> tuple[Term, ...]:
        """One step that reads `batch` whole prompts, of which `prefix` tokens are cached."""
        sequences, new = np.asarray(batch), np.asarray(isl) - np.asarray(prefix)
        at = query(tokens=sequences * new, batch=sequences, length=new, prefix=prefix)
        return (Term(self.graph.context, at),)

    def decode(self, batch: ArrayLike, length: ArrayLike) -> tuple[Term, ...]:
        """One step that adds tokens to `batch` sequences; drafted tokens are further rows of the batch."""
        rows = self._rows(batch)
        at = query(tokens=rows, batch=rows, length=length)
        # Apart, so that what does not depend on the length is asked once for many lengths.
        once = query(tokens=rows, batch=rows, length=np.min(length))
        return Term(self._tokens, once), Term(self._sequences, at)

    def mixed(self, context_tokens: ArrayLike, requests: ArrayLike, load: Load) -> tuple[Term, ...]:
        """One step with a chunk of prompts and one token of each of `requests` sequences.

        Everything but attention sees one run of tokens. Attention is priced apart: for the chunk as its share of whole
        prompts, for the sequences at their mean length. Without the correction "mla-in-mixed-steps" a latent-attention
        block that is measured as one piece counts to the former (planner-model, section 5).
        """
        chunk, rows = np.asarray(context_tokens), self._rows(requests)
        # By the rules of aiconfigurator a part of a prompt has nothing cached.
        cached = load.prefix * chunk // load.isl if self._in_parts else load.prefix * (chunk // load.isl)
        tokens = chunk + (np.asarray(requests) if self.guide else rows) - cached
        prompts = 1 if self.guide else -(-chunk // load.isl)
        new = load.isl - load.prefix
        length = load.isl + load.osl // 2 + 1
        idle = rows == 0
        rows = np.maximum(rows, 1)
        return (
            Term(self._whole, query(tokens=tokens, batch=1, length=tokens, prefix=cached)),
            Term(
                self._chunks,
                query(tokens=prompts * new, batch=prompts, length=new, prefix=load.prefix),
                1.0 / -(-load.isl // chunk),
            ),
            Term(
                self._decodes,
                query(tokens=rows, batch=rows, length=length),
                np.where(idle, 0.0, 1.0),
            ),
        )

    def _rows(self, requests: ArrayLike) -> Ints:
        return np.asarray(requests, dtype=np.int64) * (self.drafted + 1)


def distinct(at: Query) -> tuple[Query, Ints]:
    """Return the different points of a query (1-D), and for each element which of them it is."""
    columns = np.broadcast_arrays(*at)
    shape = columns[0].shape
    key, size = np.zeros(shape, dtype=np.int64), 1
    for column in at:
        low = int(column.min())
        span = int(column.max()) - low + 1
        size *= span
        key = key * span + (column - low)
    if size > _LARGEST_KEY:
        return Query(*(column.ravel() for column in columns)), np.arange(key.size).reshape(shape)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return Query(*(column.ravel()[first] for column in columns)), inverse.reshape(shape)


def _part(
    operations: tuple[Operation, ...], wanted: Callable[[Operation], bool]
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Return the others and those that are wanted."""
    others = tuple(each for each in operations if not wanted(each))
    return others, tuple(each for each in operations if wanted(each))


def _named(name: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.name == name


def _bound_to_sequences(operation: Operation) -> bool:
    match operation:
        case Overlap(first=one, second=other) | Fallback(primary=one, otherwise=other):
            return any(_bound_to_sequences(each) for each in (*one, *other))
        case _:
            return isinstance(operation, SEQUENCE)
