"""Multi-token prediction: who drafts tokens by default, and what it adds to a generation step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.problem import Mtp

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape


def default_mtp(model: ModelShape, rules: Rules) -> Mtp:
    """Return what is drafted unless said: one token with DeepSeek-V3 under the guide's rules, nothing else."""
    return Mtp(drafted=1 if rules == "guide" and model.family == "DEEPSEEK" else 0)


def generation_factor(model: ModelShape, mtp: Mtp, rules: Rules) -> float:
    """Return what all counts of a generation step are multiplied by: a drafted token runs through one more layer.

    The guide's rules divide by the tokens that a step yields as well; under the current rules the estimate does.
    """
    if mtp.drafted <= 0:
        return 1.0
    more = (mtp.drafted + model.layers) / model.layers
    return 1.0 / (1.0 + mtp.accepted) * more if rules == "guide" else more
