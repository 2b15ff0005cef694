"""The pieces that operation lists are made of, sized for one GPU of one split and named for one phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    Gemm,
    GenerationAttention,
    Memory,
    PointToPoint,
)

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.operations import Operation, Phase
    from aegis.planner.problem import Backend, Parallel, Quantization, WideExperts
    from aegis.planner.systems import System

HALF = 2  # bytes of what flows between operations, and of collectives


class Lanes(NamedTuple):
    """Kernel sources of attention, in order of preference."""

    context: tuple[str, ...] = ("default",)
    generation: tuple[str, ...] = ("default",)


class Step(NamedTuple):
    """One step of one GPU: what its operations are sized by."""

    phase: Phase
    model: ModelShape
    split: Parallel
    quantization: Quantization
    system: System
    backend: Backend
    rules: Rules
    factor: float  # of all counts: drafted tokens run through more layers
    lanes: Lanes
    cached_bytes: float  # of one token in all layers: what context parallelism gathers
    corrections: frozenset[str]
    wide: WideExperts | None = None  # how tokens get to experts that are spread over many GPUs

    @property
    def in_context(self) -> bool:
        """Whether new tokens are read (and not generated)."""
        return self.phase == "context"

    @property
    def transport(self) -> str:
        """The measured all-to-all that carries tokens to wide experts; empty: experts are not wide."""
        if self.wide is None:
            return ""
        return self.wide.prefill if self.in_context else self.wide.decode

    @property
    def token_split(self) -> int:
        """GPUs that share the tokens: context parallelism is for reading only."""
        return self.split.cp if self.in_context else 1

    @property
    def heads(self) -> int:
        """Attention heads of this GPU."""
        return self.model.heads // self.split.tp

    @property
    def kv_heads(self) -> int:
        """KV heads of this GPU: at least one, on several GPUs if there are fewer."""
        return -(-self.model.kv_heads // self.split.tp)

    def part_format(self, part: str) -> str | None:
        """Return the format in which the checkpoint has a part; None: as the others, or the user chose one for all."""
        checkpoint, chosen = self.model.checkpoint, self.quantization.gemm
        stored = chosen in (checkpoint.gemm, f"{checkpoint.gemm}_wo") and self.rules == "current"
        return checkpoint.format_of(part) if stored else None

    def named(self, name: str) -> str:
        """Return a name with the phase before it."""
        return f"{self.phase}_{name}"

    def gemm(
        self,
        name: str,
        n: int,
        k: int,
        *,
        count: float,
        quant: str | None = None,
        quantized_input: bool = False,
        below_grid: bool = False,
    ) -> Gemm:
        """Return a product with weights of n x k; the format is that of dense weights unless said."""
        return Gemm(
            name=self.named(name),
            count=float(count * self.factor),
            n=n,
            k=k,
            quant=quant or self.quantization.gemm,
            quantized_input=quantized_input and self.rules == "current",
            below_grid=below_grid,
            token_split=self.token_split,
        )

    def memory(self, name: str, values_in: int, values_out: int, *, count: float) -> Memory:
        """Return an element-wise operation that reads and writes so many values a token."""
        return Memory(
            name=self.named(name),
            count=float(count * self.factor),
            bytes_per_token=float((values_in + values_out) * HALF),
            token_split=self.token_split,
        )

    def norm(self, name: str, *, count: float) -> Memory:
        """Return a residual sum with a norm: two hidden states in, two out."""
        hidden = 2 * self.model.hidden
        return self.memory(name, hidden, hidden, count=count)

    def all_reduce(self, name: str, *, count: float, gpus: int | None = None) -> list[Operation]:
        """Return an all-reduce of hidden states over the tensor-parallel group; nothing for a group of one."""
        gpus = self.split.tp if gpus is None else gpus
        if gpus == 1 or not count:
            return []
        return [
            AllReduce(
                name=self.named(name),
                count=float(count * self.factor),
                gpus=gpus,
                width=float(self.model.hidden),
                token_split=self.token_split,
            )
        ]

    def embedding(self) -> Memory:
        """Return the look-up of embeddings."""
        return Memory(
            name=self.named("embedding"),
            count=self.factor,
            bytes_per_token=float(self.model.hidden * HALF),
            token_split=self.token_split,
        )

    def logits(self) -> Gemm:
        """Return the product with the vocabulary, of sampled tokens only."""
        return Gemm(
            name=self.named("logits_gemm"),
            count=self.factor,
            n=self.model.vocab // self.split.tp,
            k=self.model.hidden,
            quant="bfloat16",
            token_split=self.token_split,
            sampled=True,
        )

    def send_on(self, *, split: bool = True) -> list[Operation]:
        """Return what is sent from stage to stage of a pipeline."""
        if self.split.pp == 1:
            return []
        return [
            PointToPoint(
                name=self.named("p2p"),
                count=float((self.split.pp - 1) * self.factor),
                bytes_per_token=float(self.model.hidden * HALF),
                token_split=self.token_split if split else 1,
            )
        ]

    def attention(
        self,
        *,
        count: float,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_size: int | None = None,
        window: int = 0,
        qk_norm: bool | None = None,
    ) -> ContextAttention | GenerationAttention:
        """Return attention; heads of this GPU and sizes are those of the model unless said."""
        heads = self.heads if heads is None else heads
        kv_heads = self.kv_heads if kv_heads is None else kv_heads
        head_size = self.model.head_size if head_size is None else head_size
        if self.in_context:
            return ContextAttention(
                name="context_attention",
                count=float(count),
                heads=heads,
                kv_heads=kv_heads,
                head_size=head_size,
                window=window,
                kv_cache=self.quantization.kv_cache,
                fmha=self.quantization.fmha,
                qk_norm=self.model.qk_norm if qk_norm is None else qk_norm,
                lanes=self.lanes.context,
                cp=self.split.cp,
            )
        return GenerationAttention(
            name="generation_attention",
            count=float(count * self.factor),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            window=window,
            kv_cache=self.quantization.kv_cache,
            lanes=self.lanes.generation,
        )

    def gather_cache(self) -> list[Operation]:
        """Return what context parallelism gathers in each layer: keys and values of all tokens."""
        if self.token_split == 1:
            return []
        layers = self.model.layers
        width = self.cached_bytes / layers / HALF
        return [
            Collective(
                name="context_cp_all_gather",
                count=float(layers),
                kind="all_gather",
                gpus=self.split.cp,
                width=width,
            )
        ]
