"""What models of the catalog have got, as a table for whoever launched them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.cli.list import shown
from aegis.cli.render import table
from aegis.fleet.facts import handles_of, model_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.schedulers.base import Component
    from aegis.spec.resolve import Resolved


def summary(name: str, resolved: Sequence[Resolved], components: Sequence[Component], handle: str) -> str:
    """Return what was submitted; of several models, each with its part of the job."""
    rows: list[tuple[str, object]] = [("Job", handle), ("Job name", name)]
    several = len(components) > 1
    for each, component, own in zip(resolved, components, handles_of(handle, len(components)), strict=True):
        part = list(_part(each, component, own))
        rows += (
            [*part[:1], *((f"  {key}", value) for key, value in part[1:])] if several else part[:1] + part[2:]
        )
    return table(("KEY", "VALUE"), rows)


def _part(resolved: Resolved, component: Component, handle: str) -> Iterator[tuple[str, object]]:
    facts, asked = model_json(resolved, component, handle), component.resources
    yield "Model", facts["model_name"]
    yield "Job", handle
    for key, value in (
        ("Type", facts["model_type"]),
        ("Account", asked.account),
        ("Partition", asked.queue),
        ("QoS", asked.qos),
        ("Time limit", asked.walltime),
        ("Nodes", asked.nodes),
        ("GPUs/node", asked.devices),
        ("CPUs/node", asked.cpus),
        ("Memory/node", asked.memory),
        ("Engine", facts["engine"]),
        ("Weights", resolved.deployment.models[0].model_source or resolved.deployment.models[0].model),
        ("Endpoints", facts["endpoints_file"]),
        ("Logs", facts["out_file"].rpartition("/")[0]),
    ):
        if value is not None:
            yield key, value
    for flag, value in facts["engine_args"].items():
        yield flag, "" if value is True else shown(value)
