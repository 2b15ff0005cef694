"""The speed of light of latent attention beside wide experts, which was measured with its projections in fp8.

Formulas that give what aiconfigurator 0.12.0 (Apache-2.0) gives, in ms; it counts all pairs of tokens, not only those
that attend, and reads the latent cache at two bytes a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.models.formats import flops_of

if TYPE_CHECKING:
    from aegis.planner.operations import Floats
    from aegis.planner.perf.sol import Number
    from aegis.planner.systems import System

# Sizes of DeepSeek-V3: hidden state, latent query and latent cache; a head's query, its two projections, its output.
_HIDDEN, _QUERY_RANK, _LATENT, _CACHE = 7168, 1536, 512, 576
_QUERY, _UP, _VALUE = 192, 256, 128
_WEIGHTS = _QUERY_RANK * _QUERY + _LATENT * _UP + _VALUE * _HIDDEN  # of a head, one byte each
_PAIR, _PAIR_LATENT = _QUERY + _VALUE, _CACHE + _LATENT
_BETWEEN = _QUERY + _UP + _VALUE  # values of a head between projections


def wide_context(system: System, heads: Number, length: Number, batch: Number) -> Floats:
    """Return ms in which prompts of this length are read."""
    tokens = batch * length
    compute = 2 * heads * (tokens * _WEIGHTS + batch * length * length * _PAIR)
    moved = tokens * (2 * _HIDDEN + _QUERY_RANK + _LATENT + 4 * heads * _BETWEEN)
    return _longer(system, compute, heads * _WEIGHTS + moved)


def wide_generation(system: System, heads: Number, batch: Number, length: Number) -> Floats:
    """Return ms of one step of sequences of this length."""
    compute = 2 * batch * heads * (_WEIGHTS + 2 * _PAIR_LATENT * length)
    moved = batch * (2 * _HIDDEN + _QUERY_RANK + 8 * heads * _BETWEEN + 2 * _CACHE * length)
    return _longer(system, compute, heads * _WEIGHTS + moved)


def _longer(system: System, compute: Number, moved: Number) -> Floats:
    flops = flops_of("fp8", system)
    return np.asarray(np.maximum(compute / flops, moved / system.memory_bandwidth) * 1000)
