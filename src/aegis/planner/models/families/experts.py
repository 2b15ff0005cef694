"""Routed experts: the router, what is sent to them and back, and the experts themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aegis.planner.operations import AllReduce, Collective, Moe, PointToPoint

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.operations import CollectiveKind, Gemm, Operation

# The guide's rules count a router only where it is wide.
FEWEST_ROUTED = 128
# Bytes of a value that is gathered before experts on sm 100, against two of bfloat16: nvfp4 with its scales, fp8.
GATHERED = {"nvfp4": 0.25 + 0.25 / 8, "fp8": 0.5, "fp8_block": 0.5}
BLACKWELL = 100
WIDE_NODE = 72  # GPUs of one node whose all-reduce beyond 4 is NCCL's


def routed(
    step: Step,
    *,
    count: float,
    distribution: str,
    prefix: str = "",
    hidden: int | None = None,
    gated: bool = True,
    router: bool = True,
    gathered: str | None = None,
) -> list[Operation]:
    """Return router, dispatch, experts and combine of so many layers.

    Args:
        step: what sizes them.
        count: layers.
        distribution: of tokens over experts, as the tables name it.
        prefix: of the names.
        hidden: size of the hidden state that experts see, if not the model's.
        gated: whether experts have a gate.
        router: whether the router counts.
        gathered: format in which tokens travel, if not that of the experts.
    """
    hidden = step.model.hidden if hidden is None else hidden
    routes, compute = router_and_experts(
        step, count=count, distribution=distribution, prefix=prefix, hidden=hidden, gated=gated
    )

    def travel(name: str, *, before: bool) -> list[Operation]:
        return exchange(step, prefix + name, count=count, hidden=hidden, before=before, gathered=gathered)

    return [
        *([routes] if router else []),
        *travel("moe_pre_dispatch", before=True),
        compute,
        *travel("moe_post_dispatch", before=False),
    ]


def router_and_experts(
    step: Step,
    *,
    count: float,
    distribution: str,
    prefix: str = "",
    hidden: int | None = None,
    gated: bool = True,
) -> tuple[Gemm, Moe]:
    """Return what chooses the experts of a token, and the experts."""
    model, split = step.model, step.split
    compute = Moe(
        name=step.named(f"{prefix}moe"),
        count=float(count * step.factor),
        hidden=model.hidden if hidden is None else hidden,
        inter=model.moe_inter,
        topk=model.topk,
        experts=model.experts,
        moe_tp=split.moe_tp,
        moe_ep=split.moe_ep,
        attention_dp=split.dp,
        quant=step.quantization.moe,
        distribution=distribution,
        gated=gated,
        wide=step.phase if step.transport else None,
    )
    return step.gemm(
        f"{prefix}router_gemm", model.experts, model.hidden, count=count, quant="bfloat16"
    ), compute


def shared(
    step: Step,
    *,
    count: float,
    inter: int,
    prefix: str = "shared",
    quant: str | None = None,
    parts: int | None = None,
) -> list[Operation]:
    """Return the experts that see all tokens, in so many parts (None: tp): gate and up, activation, down."""
    if not inter:
        return []
    tp, hidden = step.split.tp if parts is None else parts, step.model.hidden
    both, down = (
        2 * inter // tp,
        step.gemm(f"{prefix}_ffn2_gemm", hidden, inter // tp, count=count, quant=quant),
    )
    if step.rules == "guide":
        first = [
            step.gemm(f"{prefix}_gate_gemm", inter // tp, hidden, count=count, quant=quant),
            step.gemm(f"{prefix}_ffn1_gemm", inter // tp, hidden, count=count, quant=quant),
        ]
    else:
        first = [step.gemm(f"{prefix}_gate_up_gemm", both, hidden, count=count, quant=quant)]
    return [*first, step.memory(f"{prefix}_act_gate", both, inter // tp, count=count), down]


def exchange(
    step: Step,
    name: str,
    *,
    count: float,
    hidden: int,
    before: bool,
    gathered: str | None = None,
    summed: bool = False,
) -> list[Operation]:
    """Return how tokens get to the experts (`before`) and their results back: as the engine does it.

    Args:
        step: what sizes it.
        name: of the operations.
        count: layers.
        hidden: size of what travels.
        before: the experts, or after them.
        gathered: format in which tokens travel, if not that of the experts.
        summed: the all-reduce of attention is in the list already.
    """
    group = _Exchange(
        step=step,
        name=step.named(name),
        times=float(count * step.factor),
        hidden=float(hidden),
        before=before,
        gathered=gathered or step.quantization.moe,
        summed=summed,
    )
    if step.backend == "vllm":
        return group.vllm()
    if step.backend == "sglang":
        return group.sglang()
    if step.rules == "guide" and step.system.sm_version == BLACKWELL:
        return group.guide_blackwell()
    return group.trtllm()


class _Exchange(NamedTuple):
    """One exchange between all GPUs of the experts."""

    step: Step
    name: str
    times: float
    hidden: float
    before: bool
    gathered: str
    summed: bool

    @property
    def gpus(self) -> int:
        return self.step.split.moe_tp * self.step.split.moe_ep

    @property
    def dp(self) -> int:
        return self.step.split.dp

    @property
    def attention_tp(self) -> int:
        """GPUs that hold the same tokens."""
        return max(self.gpus // self.dp, 1)

    def vllm(self) -> list[Operation]:
        sums = self.attention_tp > 1 and not (self.before and self.summed)
        return [*(self._sum() if sums else []), *(self._spread() if self.dp > 1 else [])]

    def sglang(self) -> list[Operation]:
        if self.step.token_split > 1:  # context parallel: each GPU holds a part of the tokens
            return [self._collective(self._direction(), self.gpus, self.hidden)]
        if self.step.split.cp > 1 and self.before and self.step.model.family != "MOE":
            return []  # all GPUs decode the same tokens
        if self.attention_tp > 1 and self.dp > 1:
            inner: CollectiveKind = "reduce_scatter" if self.before else "all_gather"
            part = self._collective(inner, self.attention_tp, self.hidden)
            return [part, *self._spread()] if self.before else [*self._spread(), part]
        if self.attention_tp > 1:
            return self._sum()
        return self._spread() if self.dp > 1 else []

    def trtllm(self) -> list[Operation]:
        if self.step.system.sm_version == BLACKWELL and self.step.rules == "current":
            if self.dp > 1:
                narrow = GATHERED.get(self.gathered, 1.0) if self.before else 1.0
                return [self._collective(self._direction(), self.gpus, self.dp * (self.hidden * narrow))]
            return self._sum() if self.attention_tp > 1 else []
        if self.attention_tp > 1:
            return self._sum()
        return self._spread() if self.dp > 1 else []

    def guide_blackwell(self) -> list[Operation]:
        """All-to-all in fp4: the mean of all experts on one GPU and each on another, a quarter of the bytes."""
        if self.attention_tp > 1:
            return self._sum()
        if self.dp == 1:
            return []
        width = self.hidden * (1 + min(self.step.model.topk, self.dp)) / 2 / 4
        values = self._collective("alltoall", self.gpus, width)
        if not self.before:
            return [values]
        start = PointToPoint(name=self.name, count=self.times, bytes_per_token=0.0)  # a message's latency
        return [values, self._collective("alltoall", self.gpus, width / 8), start]

    def _direction(self) -> CollectiveKind:
        return "all_gather" if self.before else "reduce_scatter"

    def _spread(self) -> list[Operation]:
        return [self._collective(self._direction(), self.gpus, self.hidden * self.dp)]

    def _sum(self) -> list[Operation]:
        system = self.step.system
        if system.gpus_per_node == WIDE_NODE and self.gpus > 4:  # noqa: PLR2004 - measured up to 4 GPUs
            return [self._collective("all_reduce", self.gpus, self.hidden)]
        return [AllReduce(name=self.name, count=self.times, gpus=self.gpus, width=self.hidden)]

    def _collective(self, kind: CollectiveKind, gpus: int, width: float) -> Collective:
        return Collective(name=self.name, count=self.times, kind=kind, gpus=gpus, width=width)
