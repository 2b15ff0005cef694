"""`aegis top` and the targets for Prometheus of a real job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import request, wait_until

if TYPE_CHECKING:
    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_a_job_is_seen_while_it_lives(lab: Lab) -> None:
    job = lab.submit(instances=2)
    wait_until(
        lambda: json.loads(lab.aegis("top", job.handle, "--json").out)["jobs"], "the head tells of its job"
    )
    for name in (job.handle, "jobs", "rehearsal-1B"):
        text = lab.aegis("top", name).out
        assert text.startswith(f"{name}  2/2 instances")
        assert job.handle in text.split("INSTANCE")[0]
        assert "rehearsal-1B-1  healthy" in text
    file = lab.path / "targets.json"
    lab.aegis("metrics", job.handle, "--prometheus", file)
    targets = {each["labels"]["instance"]: each["targets"][0] for each in json.loads(file.read_text())}
    assert set(targets) == {"rehearsal-1B-0", "rehearsal-1B-1", f"registry@{job.registry}"}
    for address in targets.values():
        code, page = request(address, "GET", "/metrics")
        assert code == 200
        assert "# TYPE" in page
    lab.aegis("shutdown", job.handle)
    assert "has ended" in lab.aegis("top", job.handle, code=3).err
    assert "has ended" in lab.aegis("metrics", job.handle, "--prometheus", "-", code=3).err
