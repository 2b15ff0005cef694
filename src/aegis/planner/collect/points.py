"""What is worth measuring: shapes of matrix products and attention, of all common models or of the models named."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from aegis.errors import AegisError
from aegis.planner.models.build import build_graph
from aegis.planner.operations import ContextAttention, Fallback, Gemm, GenerationAttention, Overlap
from aegis.planner.problem import Parallel, Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.operations import Leaf, Operation
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Key

_SPLITS = (1, 2, 4, 8)
_BFLOAT16 = Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16")


class Point(NamedTuple):
    """One row of a table: operation, key and axes in the words of `tables.slices.LAYOUTS`."""

    operation: str
    key: Key
    axes: tuple[int, ...]
    flops: float  # for a guess of how long it takes
    bytes: float  # that it holds in memory


class Shapes(NamedTuple):
    """Sizes that models differ in."""

    products: frozenset[tuple[int, int]]  # n, k of (m, k) x (k, n)
    attention: frozenset[tuple[int, int, int]]  # heads, KV heads, head size of one GPU


class Extent(NamedTuple):
    """How far the batches and lengths go."""

    rows: tuple[int, ...]
    context: tuple[tuple[int, ...], tuple[int, ...]]  # batches, lengths
    generation: tuple[tuple[int, ...], tuple[int, ...]]


# Every product of a model lies within an octave or so of one of these.
COMMON = Shapes(
    frozenset(product([2**power for power in range(8, 17)], [2**power for power in range(8, 16)])),
    frozenset((heads, kv, 128) for heads in (4, 8, 16, 32, 64) for kv in (1, 2, 4, 8, heads) if kv <= heads),
)
QUICK_COMMON = Shapes(
    frozenset(product([256, 1024, 4096, 16384], [256, 1024, 4096, 16384])),
    frozenset({(8, 1, 128), (8, 8, 128), (32, 8, 128)}),
)
FULL = Extent(
    tuple(2**power for power in range(14)),
    ((1, 2, 4, 8, 16), tuple(2**power for power in range(7, 15))),
    (tuple(2**power for power in range(10)), tuple(2**power for power in range(7, 17))),
)
QUICK = Extent((1, 8, 64, 512, 2048), ((1, 4), (128, 512, 2048)), ((1, 8, 64), (128, 1024, 4096)))


def shapes_of(models: Iterable[ModelShape], system: System, backend: Backend) -> Shapes:
    """Return the shapes that models have on one GPU, split over 1 to 8; splits that do not fit are left out."""
    products: set[tuple[int, int]] = set()
    attention: set[tuple[int, int, int]] = set()
    for model, tp in product(list(models), _SPLITS):
        for each in _operations(model, tp, system, backend):
            match each:
                case Gemm():
                    products.add((each.n, each.k))
                case ContextAttention() | GenerationAttention():
                    attention.add((each.heads, each.kv_heads, each.head_size))
    return Shapes(frozenset(products), frozenset(attention))


def points(shapes: Shapes, extent: Extent, formats: Iterable[str]) -> Iterator[Point]:
    """Yield what is to be measured, the most telling operations first."""
    for quant, (n, k), m in product(formats, sorted(shapes.products), extent.rows):
        yield Point("gemm", (quant,), (n, k, m), 2.0 * m * n * k, 2.0 * (m * n + n * k + m * k))
    attention = sorted(shapes.attention)
    for (heads, kv, size), batch, length in product(attention, *extent.generation):
        cache = 4.0 * batch * kv * length * size
        key = ("default", "bfloat16", _kv_heads(heads, kv), size, 0)
        yield Point(
            "generation_attention", key, (heads, batch, length), 4.0 * batch * heads * length * size, cache
        )
    for (heads, kv, size), batch, length in product(attention, *extent.context):
        held = 4.0 * batch * length * size * (heads + kv)
        slot = ("default", "bfloat16", "bfloat16", _kv_heads(heads, kv), size, 0)
        flops = 2.0 * batch * heads * length * length * size
        yield Point("context_attention", slot, (heads, length, batch), flops, held)


def _kv_heads(heads: int, kv_heads: int) -> int:
    return 0 if kv_heads == heads else kv_heads


def _operations(model: ModelShape, tp: int, system: System, backend: Backend) -> Iterator[Leaf]:
    try:
        graph = build_graph(model, Parallel(tp=tp, moe_tp=tp), _BFLOAT16, system=system, backend=backend)
    except AegisError:  # its heads do not divide
        return
    yield from _leaves((*graph.context, *graph.generation))


def _leaves(operations: Iterable[Operation]) -> Iterator[Leaf]:
    for each in operations:
        match each:
            case Overlap(first=one, second=other) | Fallback(primary=one, otherwise=other):
                yield from _leaves((*one, *other))
            case _:
                yield each
