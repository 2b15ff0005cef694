"""Put workers together: what one backend can do for an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.search.agg import sweep_agg
from aegis.planner.search.disagg import sweep_disagg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.problem import Targets
    from aegis.planner.task import Experiment


def sweep(experiment: Experiment, pool: Sequence[list[Worker]], targets: Targets) -> list[Candidate]:
    """Return what the workers of one backend can be put together to."""
    if experiment.mode == "agg":
        return sweep_agg(
            pool[0],
            load=experiment.load,
            targets=targets,
            tuning=experiment.tuning,
            estimator=experiment.estimator,
        )
    prefill, decode = pool
    return sweep_disagg(
        prefill,
        decode,
        load=experiment.load,
        targets=targets,
        replica=experiment.replica,
        tuning=experiment.tuning,
        estimator=experiment.estimator,
        total_gpus=experiment.total_gpus,
        same_tp=decode[0].backend == "sglang",
    )
