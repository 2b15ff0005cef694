"""Requests of jobs, as the tests ask for them."""

from __future__ import annotations

from typing import Any

from aegis.schedulers.base import Component, JobRequest, Resources


def component(model: str = "meta-llama/Llama-3.1-8B-Instruct", **changes: Any) -> Component:
    """Return a component; `resources` holds changes of its resources."""
    resources: dict[str, Any] = {"nodes": 1, "walltime": "01:00:00", **changes.pop("resources", {})}
    values: dict[str, Any] = {
        "models": (model,),
        "folder": "/home/me/.aegis-logs/Llama-3.1",
        "stem": model.rpartition("/")[2],
        "endpoints_file": "/home/me/project/aegis_endpoints.txt",
        "deployment": f"models:\n  - model: {model}\n",
        "resources": Resources(**resources),
    }
    return Component(**{**values, **changes})


def request(*components: Component, **changes: Any) -> JobRequest:
    """Return a job; of one component by default."""
    values: dict[str, Any] = {
        "name": "Llama",
        "components": components or (component(),),
        "work_dir": "/home/me/project",
        "python": "/opt/aegis/bin/python",
    }
    return JobRequest(**{**values, **changes})
