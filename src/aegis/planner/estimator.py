"""Which rules a plan goes by, and the named corrections that may be switched on its own."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

Rules: TypeAlias = Literal["guide", "current"]
Correction: TypeAlias = Literal[
    "mla-in-mixed-steps",  # fused latent attention: chunks and decodes are priced apart
    "logits-in-prefill",  # experts' prefill samples a token too
    "attention-extras-per-token",  # norms and casts around attention grow with the tokens
    "kv-transfer",  # disaggregated: the KV cache travels before the second token
    "prefill-queueing",  # disaggregated: requests wait for a prefill worker
    "count-output-alike",  # both modes count osl - 1 decoded tokens and the first one the same way
    "decode-slots-in-use",  # disaggregated: users are the requests under way, not all slots of the decode workers
    "continuous-batching",  # aggregated: waiting and mixed steps by a discrete-event model, not by rounds and factors
    "host-time-in-ttft",  # network, tokenizer and the host's queue, before a prompt is scheduled
    "max-seq-len-everywhere",  # the length that is reserved counts with every engine and role
    "user-tpot-in-sweep",  # the user's own TPOT is one of the targets that are swept
    "reach-past-tables",  # mode HYBRID: what was measured stands in for its nearest relatives, experts over nodes too
    "steps-as-measured",  # operations and the host take as long as they did in measured deployments
    "deployments-as-measured",  # what measured deployments like it say remains; with an interval
]
CORRECTIONS: tuple[Correction, ...] = Correction.__args__  # type: ignore[attr-defined]


class Estimator(Struct, frozen=True):
    """Rules and corrections. `exact`: the guide's rules interpolate as in its time, cubic and not linear."""

    name: str
    rules: Rules
    corrections: frozenset[str] = frozenset()
    exact: bool = False


GUIDE = Estimator("guide", "guide", exact=True)
AIC_012 = Estimator("aic-0.12", "current")
CORRECTED = Estimator("aegis", "current", frozenset(CORRECTIONS))
# What the measured deployments are held against: without what they say remains, and without all that was fitted to them.
MECHANISM = Estimator("mechanism", "current", CORRECTED.corrections - {"deployments-as-measured"})
PLAIN = Estimator("plain", "current", MECHANISM.corrections - {"steps-as-measured"})
ESTIMATORS = {each.name: each for each in (CORRECTED, AIC_012, GUIDE)}
