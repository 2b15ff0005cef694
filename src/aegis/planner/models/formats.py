"""The number formats of weights, activations and caches: bytes of a value, and which tensor cores compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aegis.errors import ConfigError
from aegis.planner.operations import NoData
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.systems import System


class Format(NamedTuple):
    """A number format."""

    bytes: float  # of one value, its scales included
    multiple: float  # of the bfloat16 rate: what the guide's rules multiply by
    tensor: str  # the rate that the current rules read: a key of `System.flops`


_BF16, _FP8, _FP4, _INT8 = "bfloat16", "fp8", "fp4", "int8"

# One fp8 scale for each 16 values: 0.5 + 1/16 bytes.
_NVFP4_BYTES = 9 / 16

FORMATS: dict[str, Format] = {
    "bfloat16": Format(2, 1, _BF16),
    "int8_wo": Format(1, 1, _BF16),  # "wo": weights only, computed in bfloat16
    "int4_wo": Format(0.5, 1, _BF16),
    "fp8": Format(1, 2, _FP8),
    "fp8_static": Format(1, 2, _FP8),  # activation scales are known beforehand
    "fp8_block": Format(1, 2, _FP8),  # one scale for each 128 x 128 weights
    "fp8_ootb": Format(1, 2, _FP8),
    "int8": Format(1, 2, _INT8),  # KV cache
    "sq": Format(1, 2, _INT8),  # SmoothQuant
    "nvfp4": Format(_NVFP4_BYTES, 4, _FP4),
    "nvfp4_wo": Format(_NVFP4_BYTES, 1, _BF16),
    "w4a16_nvfp4": Format(_NVFP4_BYTES, 1, _BF16),
    "w4afp8": Format(0.5, 2, _FP8),
    "w4a16_mxfp4": Format(0.5, 1, _BF16),
    "w4a16_mxfp4_cutlass": Format(0.5, 1, _BF16),
    "w4a8_mxfp4_mxfp8": Format(0.5, 2, _FP8),
    "w4a8_mxfp4_mxfp8_trtllm": Format(0.5, 2, _FP8),
    "half": Format(2, 1, _BF16),  # what collectives carry
}
_ALIASES = {"float16": "bfloat16", "fp16": "bfloat16", "bf16": "bfloat16"}


def format_name(name: str) -> str:
    """Return the name that is used inside: float16 and bfloat16 are measured alike.

    Raises:
        ConfigError: no such format, with the nearest name.
    """
    name = _ALIASES.get(name, name)
    if name not in FORMATS:
        known = f"known: {', '.join(FORMATS)}"
        raise ConfigError(f"`{name}` is no number format", hint=did_you_mean(name, FORMATS) or known)
    return name


def bytes_of(name: str, rules: Rules = "current") -> float:
    """Return the bytes of one value. The guide's rules count nvfp4 without its scales."""
    name = format_name(name)
    return 0.5 if rules == "guide" and name == "nvfp4" else FORMATS[name].bytes


def flops_of(name: str, system: System, rules: Rules = "current") -> float:
    """Return the dense FLOPS of a system in a format.

    The guide's rules take a multiple of the bfloat16 rate; the current rules the rate that the system states.

    Raises:
        NoData: the system does not compute in this format.
    """
    entry = FORMATS[format_name(name)]
    if rules == "guide":
        return system.flops[_BF16] * entry.multiple
    rate = system.flops.get(entry.tensor, 0.0)
    if rate <= 0:
        raise NoData(
            f"{system.name} does not compute in {entry.tensor} (for {name})",
            hint=f"it has {', '.join(system.flops)}: take a format that computes in one of these",
        )
    return rate
